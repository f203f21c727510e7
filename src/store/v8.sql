-- `changes` when the list was kept: the next publish learns from it what came after the one before. NULL: before this column.
ALTER TABLE link_snapshots ADD COLUMN kept_seq BIGINT;
