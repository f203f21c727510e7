-- `changes` when the list was kept, if it says anything that the list before it did not: a record has changed, or Belvo
-- collected something since. The next publish learns from it what may be new to days that are over. NULL: it says nothing new.
ALTER TABLE link_snapshots ADD COLUMN news_seq BIGINT;
CREATE INDEX link_snapshots_with_news ON link_snapshots (news_seq) WHERE news_seq IS NOT NULL;

-- Answers that came too late are few, and looked for by their list whenever another list of the link is kept.
CREATE INDEX record_versions_late ON record_versions (link_id, resource, fetched_at) WHERE is_late = 1;

-- `changes` when retention last removed versions of the link's records; NULL: never.
ALTER TABLE refreshes ADD COLUMN removed_seq BIGINT;

-- In `records`, `collected_at` of one that is gone is that of the list which said so.
