-- How fresh each link is on the day of the snapshot, and what stands in its way.
CREATE VIEW link_health AS
SELECT
    l.link_id,
    l.external_id,
    l.status,
    (epoch_us(m.published_at) - epoch_us(l.employments_collected_at)) // 86400000000 AS employments_age_days,
    (epoch_us(m.published_at) - epoch_us(l.owners_collected_at)) // 86400000000 AS owners_age_days,
    l.is_stale,
    e.last_error_code
FROM links AS l
CROSS JOIN meta_snapshot AS m
LEFT JOIN (
    SELECT link_id, arg_min(last_error_code, resource) AS last_error_code FROM link_errors GROUP BY link_id
) AS e ON e.link_id = l.link_id;
