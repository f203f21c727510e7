-- How long were people without any job in the last three years?
SELECT
    CASE WHEN gap_max_months_36m = 0 THEN 'none' WHEN gap_max_months_36m <= 3 THEN '1 to 3 months' WHEN gap_max_months_36m <= 12
        THEN '4 to 12 months' ELSE 'more than a year' END AS longest_gap,
    count(*) AS people,
    round(avg(gap_count_36m), 1) AS gaps,
    count(*) FILTER (WHERE is_employed) AS employed_now
FROM credit_features
WHERE gap_max_months_36m IS NOT NULL
GROUP BY longest_gap
ORDER BY min(gap_max_months_36m);

-- longest_gap       people  gaps  employed_now
-- ────────────────  ──────  ────  ────────────
-- none                 185   0.0           182
-- 1 to 3 months         79   1.4            64
-- 4 to 12 months       126   2.0            81
-- more than a year      60   1.5            35
