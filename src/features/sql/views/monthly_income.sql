-- Regular pay in reais of all jobs of a link, month by month, of what is known now. The person-months of credit_features are
-- cut at a date: they leave out later months, jobs without a start, and what was not known yet.
CREATE VIEW monthly_income AS
SELECT
    s.link_id,
    s.reference_month,
    TRY_CAST(sum(s.base_amount) AS DECIMAL(19, 4)) AS income_brl,
    TRY_CAST(sum(s.retained_amount) AS DECIMAL(19, 4)) AS inss_brl,
    count(DISTINCT s.employment_key) AS jobs_paid,
    coalesce(bool_or(
        (day(e.start_date) > 1 AND month_number(e.start_date) = month_number(s.reference_month))
        OR (e.end_date < last_day(e.end_date) AND month_number(e.end_date) = month_number(s.reference_month))
    ), false) AS is_partial
FROM salaries AS s
JOIN employments AS e ON e.employment_key = s.employment_key
WHERE coalesce(s.salary_type, 'REGULAR') = 'REGULAR' AND s.currency = 'BRL' AND s.base_amount IS NOT NULL
  AND s.reference_month >= DATE '1994-07-01'
GROUP BY s.link_id, s.reference_month;
