-- Jobs (J): the version of each job known at `known`, started on or before the date. A job without a start date stays out,
-- with all its rows. An end after the date is not known to be one yet.
-- Sector, first match: division 84 PUBLIC, a person as employer INDIVIDUAL, no division UNKNOWN, else PRIVATE.
jobs AS MATERIALIZED (
    SELECT
        CAST(row_number() OVER () AS INTEGER) AS job_no,
        asked.link_no,
        e.employment_key,
        e.employer_key,
        CASE
            WHEN e.cnae_division = '84' THEN 'PUBLIC'
            WHEN e.employer_code_type = 'CPF' THEN 'INDIVIDUAL'
            WHEN e.cnae_division IS NULL THEN 'UNKNOWN'
            ELSE 'PRIVATE'
        END AS sector,
        e.cnae_section,
        e.cnae_division,
        e.start_date,
        CASE WHEN e.end_date <= CAST(as_of AS DATE) THEN e.end_date END AS ended_on,
        coalesce(e.end_date < e.start_date, false) AS ends_before_start,
        month_number(e.start_date) AS start_month,
        CASE WHEN e.end_date <= CAST(as_of AS DATE) THEN month_number(e.end_date) END AS end_month,
        -- A month of pay is partial when the job began after its first day, or ended before its last.
        CASE WHEN day(e.start_date) > 1 THEN month_number(e.start_date) END AS partial_start_month,
        CASE WHEN e.end_date <= CAST(as_of AS DATE) AND e.end_date < last_day(e.end_date) THEN month_number(e.end_date) END
            AS partial_end_month
    FROM employments_history AS e
    JOIN asked ON asked.link_id = e.link_id
    WHERE e.known_from <= CAST(known AS TIMESTAMPTZ)
      AND (e.known_to IS NULL OR e.known_to > CAST(known AS TIMESTAMPTZ))
      AND NOT e.is_deleted
      AND e.start_date <= CAST(as_of AS DATE)
)
