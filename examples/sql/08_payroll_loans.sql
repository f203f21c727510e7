-- How large a payroll loan fits at most? Twelve instalments at 3 % a month within the margin: an upper bound, because income
-- tax and other deductions are not in the data.
SELECT
    left(link_id, 8) AS link,
    tenure_current_months AS tenure,
    round(consignado_margin_upper_brl, 2) AS margin,
    round(consignado_margin_upper_brl * (1 - pow(1.03, -12)) / 0.03, 2) AS loan
FROM credit_features
WHERE consignado_margin_upper_brl > 0 AND tenure_current_months >= 12
ORDER BY margin DESC, link
LIMIT 5;

-- link      tenure   margin      loan
-- ────────  ──────  ───────  ────────
-- c43272f2   129.0  7910.25  78738.61
-- da541f61   103.6  3020.83  30069.31
-- b7f2eb7b    53.1  2856.29  28431.53
-- d8633157   138.6  2620.61  26085.57
-- cdf3d6f6    52.8  2306.10   22954.9
