-- What do people earn in each sector, and how steady is it? The spread only counts where income is not capped at the teto.
SELECT
    s.sector_group,
    count(*) AS people,
    round(median(f.income_median_12m_brl), 2) AS median_income,
    round(median(f.income_cv_12m) FILTER (WHERE f.capped_months_12m = 0), 4) AS median_spread
FROM credit_features AS f
JOIN ref_cnae_sections AS s ON s.section = f.cnae_section
WHERE f.is_employed
GROUP BY s.sector_group
ORDER BY people DESC, s.sector_group;

-- sector_group  people  median_income  median_spread
-- ────────────  ──────  ─────────────  ─────────────
-- SERVICES         167        2158.42         0.0437
-- COMMERCE          67        1809.04         0.0572
-- INDUSTRY          67        2188.61         0.0609
-- CONSTRUCTION      21        2084.21         0.0609
-- PUBLIC            19        3072.21         0.0969
-- AGRICULTURE       10        1648.56         0.0437
