-- Collected: links whose jobs were asked for and answered by `known`, even when the answer was empty. Not asked is not
-- unemployed: without such a row has_data is false and no feature is computed.
asked AS MATERIALIZED (
    SELECT
        CAST(row_number() OVER (ORDER BY link_id) AS INTEGER) AS link_no,
        link_id,
        max(coalesce(collected_at, fetched_at)) AS collected_at
    FROM link_snapshots
    WHERE resource = 'employments' AND coalesce(collected_at, fetched_at) <= CAST(known AS TIMESTAMPTZ)
    GROUP BY link_id
)
