-- Pay of each alive job in the 3-month window, partial months included: twice the median base, and base less INSS of its
-- latest month in which INSS is known.
recent_pay AS (
    SELECT
        m.job_no,
        middle_sum(list_sort(list(m.base))) AS base_middle_sum,
        arg_max(m.base - m.retained, m.month) FILTER (WHERE m.retained IS NOT NULL) AS base_less_inss
    FROM job_months AS m
    JOIN job_states AS s ON s.job_no = m.job_no
    JOIN careers AS c ON c.link_no = s.link_no
    WHERE s.is_alive AND m.base IS NOT NULL AND m.month BETWEEN c.window_end - 2 AND c.window_end
    GROUP BY m.job_no
),

-- The main job: the alive job with the highest median base; then the earliest start, then the smallest employment_key.
main_jobs AS MATERIALIZED (
    SELECT
        s.link_no,
        s.employment_key,
        s.start_date,
        s.sector,
        s.cnae_section,
        s.cnae_division,
        p.base_middle_sum
    FROM job_states AS s
    LEFT JOIN recent_pay AS p ON p.job_no = s.job_no
    WHERE s.is_alive
    QUALIFY row_number() OVER (
        PARTITION BY s.link_no ORDER BY coalesce(p.base_middle_sum, 0) DESC, s.start_date, s.employment_key
    ) = 1
),

-- Its occupation at the date: the latest start (none given: the job's), then one that has not ended, then the latest end,
-- then the lowest seq. Chosen first, parsed after: a title without a CBO code is not passed over.
main_occupations AS (
    SELECT j.link_no, o.cbo_major_group, o.cbo_family
    FROM occupations_history AS o
    JOIN main_jobs AS j ON j.employment_key = o.employment_key
    WHERE o.known_from <= CAST(known AS TIMESTAMPTZ)
      AND (o.known_to IS NULL OR o.known_to > CAST(known AS TIMESTAMPTZ))
      AND NOT o.is_deleted
      AND coalesce(o.start_date, j.start_date) <= CAST(as_of AS DATE)
    QUALIFY row_number() OVER (
        PARTITION BY j.link_no
        ORDER BY
            coalesce(o.start_date, j.start_date) DESC,
            coalesce(o.end_date <= CAST(as_of AS DATE), false),
            o.end_date DESC NULLS FIRST,
            o.seq,
            o.name
    ) = 1
),

-- Ceiling of a payroll loan's instalment (F36): the PRIVATE rate in force on the date, on base less INSS, over the alive
-- PRIVATE jobs of which that is known. An upper bound: income tax and other deductions are not shown.
margins AS (
    SELECT s.link_no, sum(p.base_less_inss) * any_value(r.loan_rate) AS margin
    FROM job_states AS s
    JOIN recent_pay AS p ON p.job_no = s.job_no
    JOIN ref_consignado_margin AS r
        ON r.regime = 'PRIVATE' AND CAST(as_of AS DATE) BETWEEN r.valid_from AND r.valid_to
    WHERE s.is_alive AND s.sector = 'PRIVATE' AND p.base_less_inss IS NOT NULL
    GROUP BY s.link_no
)
