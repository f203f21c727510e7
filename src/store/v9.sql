-- 1: an older answer than what was held when it came, so that it says nothing about what it lacks.
ALTER TABLE link_snapshots ADD COLUMN is_stale BIGINT NOT NULL DEFAULT 0;
UPDATE link_snapshots SET is_stale = 1 WHERE EXISTS (SELECT 1 FROM record_versions v WHERE v.link_id = link_snapshots.link_id
    AND v.resource = link_snapshots.resource AND v.fetched_at = link_snapshots.fetched_at AND v.is_late = 1);
-- One that said what was held already brought no version. Of lists from before, only the newest time that each names is kept.
UPDATE link_snapshots SET is_stale = 1 WHERE (link_id, resource, fetched_at) IN (SELECT link_id, resource, fetched_at FROM
    (SELECT link_id, resource, fetched_at, collected_at, max(collected_at) OVER (PARTITION BY link_id, resource
    ORDER BY fetched_at) AS newest FROM link_snapshots) AS l WHERE collected_at < newest);
DROP INDEX record_versions_late;
