-- Collected: links whose jobs were asked for and answered by `known`, even when the answer was empty. Not asked is not
-- unemployed: without such a row has_data is false and no feature is computed.
-- An answer that came after the first and is older than it counts for no time before the first: of what it told, only what
-- nobody knew yet is kept as of then, and the link would seem to be without the rest.
asked AS MATERIALIZED (
    SELECT CAST(row_number() OVER (ORDER BY link_id) AS INTEGER) AS link_no, link_id, collected_at
    FROM (
        SELECT
            link_id,
            max(coalesce(collected_at, fetched_at))
                FILTER (WHERE coalesce(collected_at, fetched_at) <= CAST(known AS TIMESTAMPTZ)) AS collected_at,
            arg_min(collected_at, fetched_at) FILTER (WHERE collected_at IS NOT NULL) AS first_collected_at,
            min(fetched_at) FILTER (WHERE collected_at IS NULL) AS first_empty_at
        FROM link_snapshots
        WHERE resource = 'employments'
        GROUP BY link_id
    ) AS answers
    WHERE first_collected_at <= CAST(known AS TIMESTAMPTZ) OR first_empty_at <= CAST(known AS TIMESTAMPTZ)
)
