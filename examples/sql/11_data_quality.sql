-- Which data are odd, and do odd files earn less? One line for each flag; a file may have several.
SELECT flag, count(*) AS people, round(median(income_median_12m_brl), 2) AS median_income
FROM (SELECT unnest(CASE WHEN len(dq_flags) = 0 THEN ['none'] ELSE dq_flags END) AS flag, income_median_12m_brl FROM credit_features)
GROUP BY flag
ORDER BY people DESC, flag;

-- flag                       people  median_income
-- ─────────────────────────  ──────  ─────────────
-- none                          251        1983.05
-- DUP_MONTH                     210        2158.42
-- NON_BRL                        52        2216.28
-- BELOW_MIN_WAGE_FULL_MONTH      51        2213.16
