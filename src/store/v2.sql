-- The life of links, their refreshes and what ran.

-- runs: what a person asked for, by a command or over the admin listener. The schedule's own runs are in `job_runs`.
CREATE TABLE runs (
    run_id      {counter},
    kind        TEXT NOT NULL,           -- refresh | publish | rebuild | sync-links | replay | job
    name        TEXT,                    -- of the job
    reason      TEXT NOT NULL,           -- command | api
    started_at  BIGINT NOT NULL,
    finished_at BIGINT,
    outcome     TEXT,                    -- done | partly | failed | interrupted, or the code of a failure
    total       BIGINT,                  -- how many things it is about; NULL while nobody knows
    done        BIGINT NOT NULL DEFAULT 0,
    failed      TEXT,                    -- a JSON object: how many failed, by code
    snapshot    BIGINT,                  -- what it published
    message     TEXT                     -- why it failed
);
CREATE INDEX runs_by_start ON runs (started_at);

-- runs: a webhook of the quarantine can be read again.
ALTER TABLE webhooks ADD COLUMN replayed_at BIGINT;
CREATE INDEX webhooks_in_quarantine ON webhooks (seq) WHERE outcome = 'quarantined';

-- Links: whether their data may be asked for, and what stood in the way last.
ALTER TABLE links ADD COLUMN status_at BIGINT;            -- since when `status` is what it is; an answer to an older question does not change it
ALTER TABLE links ADD COLUMN paused_reason TEXT;          -- why no job asks for its data; NULL: nothing stands in the way
ALTER TABLE links ADD COLUMN paused_at BIGINT;
ALTER TABLE links ADD COLUMN pauses BIGINT NOT NULL DEFAULT 0;  -- times in a row that a fetch found it in need of its user
ALTER TABLE links ADD COLUMN last_error_code TEXT;
ALTER TABLE links ADD COLUMN last_error_at BIGINT;
ALTER TABLE links ADD COLUMN last_error_detail TEXT;      -- Belvo's own code and request id
ALTER TABLE links ADD COLUMN sync_number BIGINT;          -- the last of our readings of Belvo's whole list that showed it
