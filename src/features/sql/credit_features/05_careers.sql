-- One row for each link that has jobs: what its jobs say without their amounts (F01, F02, F04 to F10, F15), and the end of
-- its windows. window_end (W): the latest paid month of any job when some job is alive and only the last one or two months
-- are missing, because reporting lag is not a cut; else the last month that may be complete.
-- An n-month window is the months W-n+1 to W.
careers AS MATERIALIZED (
    SELECT
        link_no,
        CASE
            WHEN bool_or(is_alive) AND month_number(CAST(as_of AS DATE)) - lag_months - max(last_paid) IN (1, 2)
                THEN max(last_paid)
            ELSE month_number(CAST(as_of AS DATE)) - lag_months
        END AS window_end,
        bool_or(is_alive) AS is_employed,
        least(count(*) FILTER (WHERE is_alive), 32767) AS open_jobs,
        max(greatest(0, end_or_date - start_date)) AS longest_days,
        CASE WHEN bool_or(is_alive) THEN 0 ELSE CAST(as_of AS DATE) - max(end_or_date) END AS days_since_last_job,
        CAST(as_of AS DATE) - min(start_date) AS days_since_first_job,
        least(count(DISTINCT employer_key) FILTER (WHERE end_or_date > CAST(as_of AS DATE) - INTERVAL 12 MONTH), 32767) AS employers_12m,
        least(count(DISTINCT employer_key) FILTER (WHERE end_or_date > CAST(as_of AS DATE) - INTERVAL 24 MONTH), 32767) AS employers_24m,
        least(count(DISTINCT employer_key) FILTER (WHERE end_or_date > CAST(as_of AS DATE) - INTERVAL 36 MONTH), 32767) AS employers_36m,
        least(count(*) FILTER (WHERE start_date > CAST(as_of AS DATE) - INTERVAL 12 MONTH), 32767) AS jobs_started_12m,
        least(count(*) FILTER (WHERE is_zombie), 32767) AS open_jobs_without_pay,
        min(start_month) AS first_start_month,
        min(first_paid) AS first_paid,
        max(last_paid) AS last_paid,
        bool_or(is_repeated) AS is_repeated,
        bool_or(ends_before_start) AS ends_before_start,
        bool_or(is_paid_outside) AS is_paid_outside,
        bool_or(is_future) AS is_future,
        bool_or(has_other_currency) AS has_other_currency,
        bool_or(has_unknown_type) AS has_unknown_type,
        bool_or(has_retained_above_base) AS has_retained_above_base
    FROM job_states
    GROUP BY link_no
)
