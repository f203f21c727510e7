-- Who had a job half a year ago and has none now? The macro looks back to any date; what is known now may correct the past,
-- so such rows are marked retro.
SELECT
    count(*) FILTER (WHERE before.is_employed) AS employed_then,
    count(*) FILTER (WHERE before.is_employed AND NOT now.is_employed) AS lost_since,
    round(median(now.months_since_last_job) FILTER (WHERE before.is_employed AND NOT now.is_employed), 1) AS months_without,
    any_value(before.pit_mode) AS mode
FROM credit_features(DATE '2026-05-20', TIMESTAMPTZ '2026-11-20 23:59:59.999999+00', 1) AS before
JOIN credit_features AS now ON now.link_id = before.link_id;

-- employed_then  lost_since  months_without  mode
-- ─────────────  ──────────  ──────────────  ─────
--           350          38             2.4  retro
