-- What state each job is in at the date. counted_to: its effective end, or the date.
SELECT
    employment_key,
    employer_key,
    sector,
    start_date,
    ended_on,
    effective_end,
    end_or_date AS counted_to,
    is_alive,
    is_zombie,
    month_date(first_paid) AS first_paid_month,
    month_date(last_paid) AS last_paid_month,
    EXISTS (FROM main_jobs AS m WHERE m.employment_key = job_states.employment_key) AS is_main_job
FROM job_states
ORDER BY start_date, employment_key
