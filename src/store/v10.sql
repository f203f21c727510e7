-- Version 10: a link that Belvo does not delete after all stands as it did before, and links that wait are found by why.

ALTER TABLE deletions ADD COLUMN status_before TEXT;   -- NULL: it was not known

CREATE INDEX links_paused ON links (paused_reason) WHERE paused_reason IS NOT NULL;
