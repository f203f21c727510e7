-- Whose income growth is only the yearly step of the INSS ceiling? Pay above it may not be shown.
SELECT
    CASE WHEN capped_months_12m = 0 THEN 'not capped' WHEN capped_months_12m < 12 THEN 'capped at times' ELSE 'capped all year' END
        AS capped,
    count(*) AS people,
    round(median(income_growth_yoy), 4) AS median_growth,
    round(median(income_to_teto), 3) AS median_to_teto
FROM credit_features
WHERE capped_months_12m IS NOT NULL
GROUP BY capped
ORDER BY people DESC;

-- capped           people  median_growth  median_to_teto
-- ───────────────  ──────  ─────────────  ──────────────
-- not capped          440         0.0739           0.245
-- capped at times       6         3.2148             1.0
-- capped all year       1          0.039             1.0
