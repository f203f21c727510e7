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
