-- Does the time in the main job go with fewer employers? Bands for a scorecard; no job is a bin of its own.
SELECT
    CASE
        WHEN tenure_current_months IS NULL THEN 'no job'
        WHEN tenure_current_months < 3 THEN '0 to 3 months: probation'
        WHEN tenure_current_months < 12 THEN '3 to 12 months'
        WHEN tenure_current_months < 36 THEN '1 to 3 years'
        ELSE 'more than 3 years'
    END AS tenure,
    count(*) AS people,
    round(avg(employers_36m), 2) AS employers_in_3_years,
    round(avg(employed_months_36m), 1) AS employed_months
FROM credit_features
WHERE has_data AND open_jobs IS NOT NULL
GROUP BY tenure
ORDER BY min(coalesce(tenure_current_months, -1));

-- tenure                    people  employers_in_3_years  employed_months
-- ────────────────────────  ──────  ────────────────────  ───────────────
-- no job                        88                  1.92             19.8
-- 0 to 3 months: probation      35                  2.51             17.5
-- 3 to 12 months                83                   2.6             21.9
-- 1 to 3 years                 103                  1.96             28.6
-- more than 3 years            141                  1.04             36.0
