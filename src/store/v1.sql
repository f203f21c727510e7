-- Facts about the state itself.
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- Every webhook that was answered 200, as it came.
CREATE TABLE webhooks (
    seq          {counter},
    received_at  BIGINT NOT NULL,
    webhook_type TEXT,
    webhook_code TEXT,
    link_id      TEXT,
    outcome      TEXT NOT NULL,          -- queued | noted | quarantined
    reason       TEXT,                   -- why it is in the quarantine
    body         {bytes} NOT NULL
);
CREATE INDEX webhooks_by_link ON webhooks (link_id);

-- The tracked links. What only Belvo knows is NULL until it was asked.
CREATE TABLE links (
    link_id             TEXT PRIMARY KEY,
    external_id         TEXT,
    institution         TEXT,
    access_mode         TEXT,
    status              TEXT,
    refresh_rate        TEXT,
    credentials_storage TEXT,
    stale_in            TEXT,
    fetch_resources     TEXT,            -- a JSON array of strings
    created_at          BIGINT,
    last_accessed_at    BIGINT,
    first_seen_at       BIGINT NOT NULL,
    last_webhook_at     BIGINT,
    looked_up_at        BIGINT,          -- when Belvo last told the columns above
    lookup_due_at       BIGINT,          -- NULL: nothing to look up
    lookup_attempts     BIGINT NOT NULL DEFAULT 0,
    changed_seq         BIGINT NOT NULL
);
CREATE INDEX links_by_external_id ON links (external_id);
CREATE INDEX links_to_look_up ON links (lookup_due_at) WHERE lookup_due_at IS NOT NULL;

-- One row for each link and resource: the queue, and how fresh the resource is. `marks` counts the wishes for a refresh;
-- a fetch that ends well clears those that it saw when it began, and no later one.
CREATE TABLE refreshes (
    link_id            TEXT NOT NULL,
    resource           TEXT NOT NULL,
    marks              BIGINT NOT NULL,
    cleared            BIGINT NOT NULL DEFAULT 0,
    due_at             BIGINT,           -- NULL: nothing to do
    priority           BIGINT NOT NULL,  -- 0 is served first
    attempts           BIGINT NOT NULL DEFAULT 0,
    lease              BIGINT,           -- NULL: nobody works on it
    lease_marks        BIGINT,           -- `marks` when the running fetch began
    webhook_count      BIGINT,           -- what the latest webhook counted; NULL when none did
    last_started_at    BIGINT,
    last_fetched_at    BIGINT,
    last_collected_at  BIGINT,
    last_error_code    TEXT,
    last_error_at      BIGINT,
    blocked_reason     TEXT,             -- why it waits for a person; NULL when it does not
    content_seq        BIGINT NOT NULL DEFAULT 0,  -- `changes` at the last new version of a record
    sighted_seq        BIGINT NOT NULL DEFAULT 0,  -- `changes` when a list last brought another id, created_at or collected_at
    touched_seq        BIGINT NOT NULL DEFAULT 0,  -- `changes` at the last complete list
    PRIMARY KEY (link_id, resource)
);
CREATE INDEX refreshes_due ON refreshes (priority, due_at) WHERE due_at IS NOT NULL AND lease IS NULL;
CREATE INDEX refreshes_by_content ON refreshes (resource, content_seq);
CREATE INDEX refreshes_by_sighting ON refreshes (sighted_seq);
CREATE INDEX refreshes_by_touch ON refreshes (resource, touched_seq);

-- One row for each complete list.
CREATE TABLE link_snapshots (
    link_id       TEXT NOT NULL,
    resource      TEXT NOT NULL,
    fetched_at    BIGINT NOT NULL,
    started_at    BIGINT NOT NULL,
    collected_at  BIGINT,
    item_count    BIGINT NOT NULL,
    webhook_count BIGINT,
    changed       BIGINT NOT NULL,
    PRIMARY KEY (link_id, resource, fetched_at)
);

-- The latest sighting of each record. `record_key` stays when Belvo gives the record another id.
CREATE TABLE records (
    link_id         TEXT NOT NULL,
    resource        TEXT NOT NULL,
    record_key      TEXT NOT NULL,
    record_id       TEXT NOT NULL,
    likeness        TEXT NOT NULL,       -- what alike records share; see `records`
    created_at      BIGINT,
    collected_at    BIGINT,
    seen_started_at BIGINT NOT NULL,     -- start of the last list that showed it
    seen_fetched_at BIGINT NOT NULL,
    content_hash    {bytes} NOT NULL,
    version         BIGINT NOT NULL,     -- the latest that is not late
    version_at      BIGINT NOT NULL,     -- when the list that brought it was complete
    PRIMARY KEY (link_id, resource, record_key)
);

-- Every id that Belvo ever gave a record.
CREATE TABLE record_ids (
    link_id    TEXT NOT NULL,
    resource   TEXT NOT NULL,
    record_id  TEXT NOT NULL,
    record_key TEXT NOT NULL,
    PRIMARY KEY (link_id, resource, record_id)
);

-- Every content that a record ever had, as it came. The lake is a function of these rows.
CREATE TABLE record_versions (
    link_id      TEXT NOT NULL,
    resource     TEXT NOT NULL,
    record_key   TEXT NOT NULL,
    version      BIGINT NOT NULL,
    is_late      BIGINT NOT NULL,        -- 1: an observation older than one already held; never current
    record_id    TEXT NOT NULL,
    created_at   BIGINT,
    collected_at BIGINT,
    known_from   BIGINT NOT NULL,
    started_at   BIGINT NOT NULL,
    fetched_at   BIGINT NOT NULL,
    body         {bytes} NOT NULL,       -- Belvo's JSON, zstd
    PRIMARY KEY (link_id, resource, record_key, version)
);

-- When each job last ran.
CREATE TABLE job_runs (
    job         TEXT NOT NULL,
    slot_at     BIGINT NOT NULL,
    started_at  BIGINT NOT NULL,
    finished_at BIGINT,
    reason      TEXT NOT NULL,
    outcome     TEXT,
    item_count  BIGINT,
    PRIMARY KEY (job, slot_at)
);
