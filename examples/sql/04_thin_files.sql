-- Which files are too thin for a score, and why? One reason each, the first that fits.
SELECT
    CASE
        WHEN NOT has_data THEN '1 not asked yet'
        WHEN history_months IS NULL THEN '2 no pay on file: self-employed, civil servant or never employed'
        WHEN history_months < 6 THEN '3 less than half a year of pay'
        WHEN salary_coverage_24m < 0.8 THEN '4 months of jobs without pay'
        WHEN salary_lag_months > 2 THEN '5 nothing paid lately'
        ELSE '6 thick enough'
    END AS file,
    count(*) AS people
FROM credit_features
GROUP BY file
ORDER BY file;

-- file                                                          people
-- ────────────────────────────────────────────────────────────  ──────
-- 2 no pay on file: self-employed, civil servant or never emp…      53
-- 3 less than half a year of pay                                    10
-- 4 months of jobs without pay                                       1
-- 5 nothing paid lately                                             59
-- 6 thick enough                                                   377
