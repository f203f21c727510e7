-- How would a scorecard bin the year's income? Ten equal bins, with the direction that risk is expected to take.
SELECT
    bin,
    count(*) AS people,
    min(income) AS from_brl,
    max(income) AS to_brl,
    (SELECT expected_direction FROM data_dictionary WHERE table_name = 'credit_features' AND column_name = 'income_median_12m_brl')
        AS risk
FROM (
    SELECT income_median_12m_brl AS income, ntile(10) OVER (ORDER BY income_median_12m_brl, link_id) AS bin
    FROM credit_features
    WHERE income_median_12m_brl IS NOT NULL
)
GROUP BY bin
ORDER BY bin;

-- bin  people   from_brl      to_brl  risk
-- ───  ──────  ─────────  ──────────  ─────
--   1      42   908.4900   1621.0000  falls
--   2      42  1621.0000   1634.8900  falls
--   3      42  1637.2100   1697.9700  falls
--   4      42  1700.1600   1870.1800  falls
--   5      42  1870.1800   2089.4700  falls
--   6      42  2093.9050   2322.5400  falls
--   7      42  2326.3600   2744.3500  falls
--   8      42  2745.9700   3254.5900  falls
--   9      42  3283.4300   4400.6800  falls
--  10      42  4489.3350  22698.1900  falls
