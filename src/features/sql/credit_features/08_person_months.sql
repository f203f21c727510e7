-- Person-months: income (I) = sum of base, inss (T) = sum of retained over the jobs paid in the month (N of them). Partial when
-- one of them began or ended within the month. Full months carry level, spread and trend; sums and counts use all.
-- A month with only a 13th salary has no income and is not paid.
person_months AS MATERIALIZED (
    SELECT
        m.link_no,
        m.month,
        sum(m.base) AS income,
        sum(m.retained) AS inss,
        count(m.base) AS jobs_paid,
        sum(m.thirteenth) AS thirteenth,
        coalesce(bool_or(m.is_partial) FILTER (WHERE m.base IS NOT NULL), false) AS is_partial
    FROM job_months AS m
    WHERE m.base IS NOT NULL OR m.thirteenth IS NOT NULL
    GROUP BY m.link_no, m.month
),

-- The law of each month: a month belongs to the row that holds its first day.
wage_months AS MATERIALIZED (
    SELECT month_number(CAST(day AS DATE)) AS month, amount AS minimum_wage
    FROM (
        SELECT amount, unnest(generate_series(
            date_trunc('month', CAST(valid_from AS TIMESTAMP) + INTERVAL 1 MONTH - INTERVAL 1 DAY),
            CAST(valid_to AS TIMESTAMP),
            INTERVAL 1 MONTH
        )) AS day
        FROM ref_minimum_wage
    )
),
inss_months AS MATERIALIZED (
    SELECT month_number(CAST(day AS DATE)) AS month, bracket, method, lower_amount, upper_amount, rate, teto, accumulated_amount
    FROM (
        SELECT *, unnest(generate_series(
            date_trunc('month', CAST(valid_from AS TIMESTAMP) + INTERVAL 1 MONTH - INTERVAL 1 DAY),
            CAST(valid_to AS TIMESTAMP),
            INTERVAL 1 MONTH
        )) AS day
        FROM ref_inss
    )
)
