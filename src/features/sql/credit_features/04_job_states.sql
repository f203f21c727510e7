-- What state each job is in at the date. last_paid is its latest paid month.
-- alive: no end, and paid or begun in the last three months that may be complete.
-- zombie: no end, and not alive: the register never closed it.
-- effective_end: the end; none when alive; for a zombie the last day of its last paid month, or of its start month.
job_states AS MATERIALIZED (
    SELECT
        jobs.*,
        pay.first_paid,
        pay.last_paid,
        pay.is_repeated,
        pay.is_future,
        pay.has_other_currency,
        pay.has_unknown_type,
        pay.has_retained_above_base,
        coalesce(pay.first_paid < jobs.start_month, false) OR coalesce(pay.last_paid > jobs.end_month, false)
            AS is_paid_outside,
        jobs.ended_on IS NULL AND (
            coalesce(month_number(CAST(as_of AS DATE)) - lag_months - pay.last_paid <= 2, false)
            OR month_number(CAST(as_of AS DATE)) - lag_months - jobs.start_month <= 2
        ) AS is_alive,
        jobs.ended_on IS NULL AND NOT is_alive AS is_zombie,
        CASE WHEN is_zombie THEN last_day(month_date(coalesce(pay.last_paid, jobs.start_month))) ELSE jobs.ended_on END
            AS effective_end,
        coalesce(effective_end, CAST(as_of AS DATE)) AS end_or_date
    FROM jobs
    LEFT JOIN (
        SELECT
            job_no,
            min(month) FILTER (WHERE base IS NOT NULL) AS first_paid,
            max(month) FILTER (WHERE base IS NOT NULL) AS last_paid,
            bool_or(is_repeated) AS is_repeated,
            bool_or(is_future) AS is_future,
            bool_or(has_other_currency) AS has_other_currency,
            bool_or(has_unknown_type) AS has_unknown_type,
            bool_or(has_retained_above_base) AS has_retained_above_base
        FROM job_months
        GROUP BY job_no
    ) AS pay ON pay.job_no = jobs.job_no
)
