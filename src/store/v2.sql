-- The life of links, their refreshes and what ran.

-- Links: whether their data may be asked for, and what stood in the way last.
ALTER TABLE links ADD COLUMN status_at BIGINT;            -- since when `status` is what it is; an answer to an older question does not change it
ALTER TABLE links ADD COLUMN paused_reason TEXT;          -- why no job asks for its data; NULL: nothing stands in the way
ALTER TABLE links ADD COLUMN paused_at BIGINT;
ALTER TABLE links ADD COLUMN pauses BIGINT NOT NULL DEFAULT 0;  -- times in a row that a fetch found it in need of its user
ALTER TABLE links ADD COLUMN last_error_code TEXT;
ALTER TABLE links ADD COLUMN last_error_at BIGINT;
ALTER TABLE links ADD COLUMN last_error_detail TEXT;      -- Belvo's own code and request id
ALTER TABLE links ADD COLUMN sync_number BIGINT;          -- the last of our readings of Belvo's whole list that showed it
