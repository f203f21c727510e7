-- Pay rows (R): the version of each salary row known at `known`, of those jobs. Counted rows (S) are in reais, with a base,
-- from July 1994 to the last month that may be complete: the month of the date less `lag_months`.
pay_rows AS (
    SELECT
        jobs.link_no,
        jobs.job_no,
        month_number(s.reference_month) AS month,
        s.salary_type,
        s.currency,
        s.base_amount,
        s.retained_amount,
        month_number(s.reference_month) IN (jobs.partial_start_month, jobs.partial_end_month) AS is_partial,
        month_number(s.reference_month) <= month_number(CAST(as_of AS DATE)) - lag_months AS is_past,
        s.currency = 'BRL' AND s.base_amount IS NOT NULL AND s.reference_month >= DATE '1994-07-01'
            AND month_number(s.reference_month) <= month_number(CAST(as_of AS DATE)) - lag_months AS is_counted
    FROM salaries_history AS s
    JOIN jobs ON jobs.employment_key = s.employment_key
    WHERE s.known_from <= CAST(known AS TIMESTAMPTZ)
      AND (s.known_to IS NULL OR s.known_to > CAST(known AS TIMESTAMPTZ))
      AND NOT s.is_deleted
      AND s.reference_month IS NOT NULL
),

-- Job-months: everything that any feature needs of the pay of one job in one month, in one pass over the rows.
-- Paid (P): counted rows of type REGULAR or none. base = sum of base_amount, retained = sum of retained_amount over them;
-- base is NULL in a month without such a row, retained also when INSS shows none.
job_months AS MATERIALIZED (
    SELECT
        link_no,
        job_no,
        month,
        sum(base_amount) FILTER (WHERE is_counted AND coalesce(salary_type, 'REGULAR') = 'REGULAR') AS base,
        sum(retained_amount) FILTER (WHERE is_counted AND coalesce(salary_type, 'REGULAR') = 'REGULAR') AS retained,
        sum(base_amount) FILTER (WHERE is_counted AND salary_type = 'THIRTEENTH') AS thirteenth,
        coalesce(bool_or(is_partial), false) AS is_partial,
        count(*) FILTER (WHERE is_counted AND coalesce(salary_type, 'REGULAR') = 'REGULAR') > 1 AS is_repeated,
        coalesce(bool_or(month > month_number(make_timestamp(epoch_us(CAST(known AS TIMESTAMPTZ))))), false) AS is_future,
        coalesce(bool_or(is_past AND currency <> 'BRL'), false) AS has_other_currency,
        coalesce(bool_or(is_past AND salary_type NOT IN ('REGULAR', 'THIRTEENTH', 'VOLUNTARY', 'RETIREMENT')), false)
            AS has_unknown_type,
        coalesce(bool_or(is_counted AND retained_amount > base_amount), false) AS has_retained_above_base
    FROM pay_rows
    GROUP BY link_no, job_no, month
)
