-- Whose income rests on two jobs at once, and what is left if the smaller one goes?
SELECT
    left(link_id, 8) AS link,
    concurrent_months_12m AS months,
    income_median_3m_brl AS income,
    main_job_income_share AS main_share,
    round(income_median_3m_brl * main_job_income_share, 2) AS income_of_main_job
FROM credit_features
WHERE concurrent_months_12m >= 6 AND open_jobs >= 2 AND main_job_income_share < 1
ORDER BY main_share, link
LIMIT 5;

-- link      months     income  main_share  income_of_main_job
-- ────────  ──────  ─────────  ──────────  ──────────────────
-- 06256377      12  5159.6400       0.506             2610.78
-- e82e09db      12  4073.6800       0.557             2269.04
-- 71eab00c      12  3810.9700        0.57             2172.25
-- 49817479       7  4642.7900       0.573             2660.32
-- 58f4bc81      12  4213.9600       0.588             2477.81
