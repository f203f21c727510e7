-- Widget sessions and asks to read an institution again.

-- One row for each widget token that was asked for, written before it was. No token is kept.
CREATE TABLE widget_sessions (
    session     {counter},
    external_id TEXT NOT NULL,
    access_mode TEXT,                    -- NULL when a link is updated
    link_id     TEXT,                    -- the link to update, or the one that was made; NULL until it is known
    asked_at    BIGINT NOT NULL,
    expires_at  BIGINT,                  -- when the token ends; NULL when none was given
    due_at      BIGINT,                  -- when to see whether a link was made; NULL: nothing to see any more
    attempts    BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX widget_sessions_by_external_id ON widget_sessions (external_id, asked_at);
CREATE INDEX widget_sessions_due ON widget_sessions (due_at) WHERE due_at IS NOT NULL;

-- Links in the order in which they became known, for the deadline of their first data.
CREATE INDEX links_by_first_seen ON links (first_seen_at, link_id);

-- The latest ask of each link to read its institution again.
CREATE TABLE recollects (
    link_id         TEXT PRIMARY KEY,
    resources       TEXT NOT NULL,       -- names, separated by commas
    asked_at        BIGINT NOT NULL,
    free_at         BIGINT NOT NULL,     -- not asked again before
    change          BIGINT NOT NULL,     -- `changes` at the ask: later sightings are its results
    due_at          BIGINT,              -- when to list without a webhook; NULL: nothing to wait for
    attempts        BIGINT NOT NULL DEFAULT 0,
    last_error_code TEXT                 -- why the ask came to nothing; NULL when it was taken
);
CREATE INDEX recollects_due ON recollects (due_at) WHERE due_at IS NOT NULL;

-- Links that Belvo was asked to delete.
CREATE TABLE deletions (
    link_id  TEXT PRIMARY KEY,
    asked_at BIGINT NOT NULL,
    due_at   BIGINT,                     -- when to see whether it is gone; NULL: it is, or Belvo refused
    attempts BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX deletions_due ON deletions (due_at) WHERE due_at IS NOT NULL;
