-- Where does the INSS withheld not fit the pay? Errors of the payroll, concurrent jobs, or something made up.
SELECT left(link_id, 8) AS link, month, income, withheld, expected
FROM (
    SELECT
        f.link_id,
        m.reference_month AS month,
        m.income_brl AS income,
        m.inss_brl AS withheld,
        inss_expected(m.income_brl, m.reference_month) AS expected
    FROM credit_features AS f
    JOIN monthly_income AS m ON m.link_id = f.link_id
    WHERE f.inss_plausible_share_12m < 1
      AND m.reference_month BETWEEN f.window_end_month - INTERVAL 11 MONTH AND f.window_end_month
)
WHERE withheld > 0 AND abs(withheld - expected) > greatest(0.05, 0.005 * expected)
ORDER BY abs(withheld - expected) DESC, link, month
LIMIT 5;

-- link      month           income   withheld  expected
-- ────────  ──────────  ──────────  ─────────  ────────
-- 1c103c07  2026-06-01  16951.1000  1976.1800    988.09
-- b0200e26  2026-09-01  21876.9000  1976.1800    988.09
-- 39cb62c0  2026-10-01  11496.2400  1239.0800    988.09
-- 0b025632  2026-08-01   8115.2200   751.0200    937.65
-- a2a77a3f  2026-05-01   6931.1800   608.9400    771.88
