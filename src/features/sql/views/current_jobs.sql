-- Jobs open in the register on the day of the snapshot, with their latest regular pay in reais, which began in July 1994:
-- INSS lists what was paid before as BRL, too.
CREATE VIEW current_jobs AS
WITH paid AS (
    SELECT employment_key, reference_month, sum(base_amount) AS base_amount
    FROM salaries
    WHERE coalesce(salary_type, 'REGULAR') = 'REGULAR' AND currency = 'BRL' AND base_amount IS NOT NULL
      AND reference_month >= DATE '1994-07-01'
    GROUP BY employment_key, reference_month
),
latest AS (
    SELECT employment_key, max(reference_month) AS month, arg_max(base_amount, reference_month) AS base_amount
    FROM paid
    GROUP BY employment_key
)
SELECT
    e.link_id,
    e.employment_key,
    e.employer_name,
    e.employer_key,
    e.start_date,
    months_of_days(CAST(make_timestamp(epoch_us(m.published_at)) AS DATE) - e.start_date) AS tenure_months,
    l.month AS last_paid_month,
    TRY_CAST(l.base_amount AS DECIMAL(19, 4)) AS last_base_amount
FROM employments AS e
CROSS JOIN meta_snapshot AS m
LEFT JOIN latest AS l ON l.employment_key = e.employment_key
WHERE (e.end_date IS NULL OR e.end_date > CAST(make_timestamp(epoch_us(m.published_at)) AS DATE))
  AND (e.start_date IS NULL OR e.start_date <= CAST(make_timestamp(epoch_us(m.published_at)) AS DATE));
