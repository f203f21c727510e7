-- The row of each link, in the order in which it is published. Each value is rounded here, once.
SELECT
    links.link_id,
    CAST(as_of AS DATE) AS as_of_date,
    CAST(known AS TIMESTAMPTZ) AS known_at,
    -- retro: known after the date was over, so that later corrections may be in it.
    CASE WHEN CAST(make_timestamp(epoch_us(CAST(known AS TIMESTAMPTZ))) AS DATE) > CAST(as_of AS DATE) THEN 'retro' ELSE 'strict' END
        AS pit_mode,
    CAST(lag_months AS SMALLINT) AS lag_months,
    '1.0.0' AS feature_version,
    a.link_no IS NOT NULL AS has_data,
    month_date(c.window_end) AS window_end_month,

    -- Employment
    CASE WHEN a.link_no IS NOT NULL THEN coalesce(c.is_employed, false) END AS is_employed,
    CAST(c.open_jobs AS SMALLINT) AS open_jobs,
    months_of_days(CAST(as_of AS DATE) - j.start_date) AS tenure_current_months,
    months_of_days(c.longest_days) AS tenure_max_months,
    months_of_days(c.days_since_last_job) AS months_since_last_job,
    months_of_days(c.days_since_first_job) AS months_since_first_job,
    CAST(c.employers_12m AS SMALLINT) AS employers_12m,
    CAST(c.employers_24m AS SMALLINT) AS employers_24m,
    CAST(c.employers_36m AS SMALLINT) AS employers_36m,
    CAST(c.jobs_started_12m AS SMALLINT) AS jobs_started_12m,
    CAST(v.employed_months AS SMALLINT) AS employed_months_36m,
    CAST(v.gap_max_months AS SMALLINT) AS gap_max_months_36m,
    CAST(v.gap_count AS SMALLINT) AS gap_count_36m,
    CAST(CASE WHEN h.has_pay THEN coalesce(i.concurrent_months, 0) END AS SMALLINT) AS concurrent_months_12m,
    CAST(c.open_jobs_without_pay AS SMALLINT) AS open_jobs_without_pay,

    -- Income
    brl(h.last_income) AS income_last_brl,
    brl(i.middle_3m * 0.5) AS income_median_3m_brl,
    brl(i.middle_6m * 0.5) AS income_median_6m_brl,
    brl(i.middle_12m * 0.5) AS income_median_12m_brl,
    CASE WHEN a.link_no IS NOT NULL THEN
        brl(CAST(rounded_units(coalesce(i.income_12m, 0), 12, 4) AS DECIMAL(34, 0)) * 0.0001)
    END AS income_mean_12m_zero_filled_brl,
    CASE WHEN a.link_no IS NOT NULL THEN CAST(coalesce(i.paid_months_12m, 0) AS SMALLINT) END AS paid_months_12m,
    -- sd / mean = sqrt(n (n sum(y^2) - sum(y)^2) / (n - 1)) / sum(y)
    CASE WHEN i.n >= 6 AND i.sum_y <> 0 AND NOT i.is_beyond_squares THEN
        -- Nothing divided by a negative sum is a zero with a sign.
        coalesce(
            nullif(round(sqrt(CAST(i.n * i.sum_yy - i.sum_y * i.sum_y AS DOUBLE) * i.n / (i.n - 1)) / i.sum_y, 4), 0), 0
        )
    END AS income_cv_12m,
    -- 12 slope / mean = 12 n (n sum(xy) - sum(x) sum(y)) / ((n sum(x^2) - sum(x)^2) sum(y))
    CASE WHEN i.n >= 6 THEN
        rounded_ratio(
            12 * i.n * (i.n * i.sum_xy - i.sum_x * i.sum_y), (i.n * i.sum_xx - i.sum_x * i.sum_x) * i.sum_y, 4
        )
    END AS income_slope_12m,
    rounded_ratio(i.middle_6m - i.middle_6m_year_before, i.middle_6m_year_before, 4) AS income_growth_yoy,
    rounded_ratio(i.middle_3m, i.middle_12m, 4) AS income_ratio_3m_12m,
    rounded_ratio(i.middle_3m, 2 * w.minimum_wage, 2) AS income_in_minimum_wages,
    rounded_ratio(i.middle_3m, 2 * t.teto, 3) AS income_to_teto,

    -- Contributions and the 13th salary
    CAST(CASE WHEN h.has_pay AND coalesce(k.has_table, true) THEN coalesce(k.capped_months, 0) END AS SMALLINT)
        AS capped_months_12m,
    -- sum / (median * paid months / 12), with the doubled median
    rounded_ratio(24 * coalesce(i.thirteenth_last_year, 0), i.middle_last_year * i.paid_months_last_year, 3)
        AS thirteenth_ratio_last_year,
    rounded_ratio(p.plausible_months, p.comparable_months, 3) AS inss_plausible_share_12m,
    CAST(CASE WHEN h.has_pay THEN coalesce(i.inss_zero_months, 0) END AS SMALLINT) AS inss_zero_months_12m,

    -- The main job
    rounded_ratio(j.base_middle_sum, i.middle_3m, 3) AS main_job_income_share,
    j.sector AS employer_sector,
    j.cnae_section,
    j.cnae_division,
    o.cbo_major_group,
    o.cbo_family,
    brl(g.margin) AS consignado_margin_upper_brl,

    -- Quality
    CASE WHEN CAST(make_timestamp(epoch_us(CAST(known AS TIMESTAMPTZ))) AS DATE) <= CAST(as_of AS DATE) THEN
        CAST(CAST(as_of AS DATE) - CAST(make_timestamp(epoch_us(a.collected_at)) AS DATE) AS INTEGER)
    END AS data_age_days,
    CAST(month_number(CAST(as_of AS DATE)) - lag_months - c.last_paid AS SMALLINT) AS salary_lag_months,
    CAST(c.last_paid - c.first_paid + 1 AS SMALLINT) AS history_months,
    rounded_ratio(q.paid_months, q.legal_months, 3) AS salary_coverage_24m,
    CASE WHEN h.is_below_minimum_wage THEN ['BELOW_MIN_WAGE_FULL_MONTH'] ELSE CAST([] AS VARCHAR[]) END
        || CASE WHEN c.is_repeated THEN ['DUP_MONTH'] ELSE CAST([] AS VARCHAR[]) END
        || CASE WHEN c.ends_before_start THEN ['END_BEFORE_START'] ELSE CAST([] AS VARCHAR[]) END
        || CASE WHEN c.is_future THEN ['FUTURE_MONTH'] ELSE CAST([] AS VARCHAR[]) END
        || CASE WHEN c.has_other_currency THEN ['NON_BRL'] ELSE CAST([] AS VARCHAR[]) END
        || CASE WHEN c.is_paid_outside THEN ['PAY_OUTSIDE_JOB'] ELSE CAST([] AS VARCHAR[]) END
        || CASE WHEN c.has_retained_above_base THEN ['RETAINED_GT_BASE'] ELSE CAST([] AS VARCHAR[]) END
        || CASE WHEN c.has_unknown_type THEN ['TYPE_UNKNOWN'] ELSE CAST([] AS VARCHAR[]) END AS dq_flags
FROM links
LEFT JOIN asked AS a ON a.link_id = links.link_id
LEFT JOIN careers AS c ON c.link_no = a.link_no
LEFT JOIN coverage AS v ON v.link_no = a.link_no
LEFT JOIN paid_share AS q ON q.link_no = a.link_no
LEFT JOIN main_jobs AS j ON j.link_no = a.link_no
LEFT JOIN main_occupations AS o ON o.link_no = a.link_no
LEFT JOIN margins AS g ON g.link_no = a.link_no
LEFT JOIN histories AS h ON h.link_no = a.link_no
LEFT JOIN levels AS i ON i.link_no = a.link_no
LEFT JOIN capped AS k ON k.link_no = a.link_no
LEFT JOIN plausible AS p ON p.link_no = a.link_no
LEFT JOIN wage_months AS w ON w.month = c.window_end
LEFT JOIN inss_months AS t ON t.month = c.window_end AND t.bracket = 1
