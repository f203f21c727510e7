-- Version 10: a link that Belvo does not delete after all stands as it did before.

ALTER TABLE deletions ADD COLUMN status_before TEXT;   -- NULL: it was not known
