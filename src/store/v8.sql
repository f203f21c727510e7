-- `changes` when the list was kept, if it says anything that the list before it did not: a record has changed, or Belvo
-- collected something since. The next publish learns from it what may be new to days that are over. NULL: it says nothing new.
ALTER TABLE link_snapshots ADD COLUMN news_seq BIGINT;
CREATE INDEX link_snapshots_with_news ON link_snapshots (news_seq) WHERE news_seq IS NOT NULL;
