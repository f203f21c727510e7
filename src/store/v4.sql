-- Keys of links, tombstones of erased ones, the audit.

-- The data key of each link's bodies, wrapped by the master key; '' is the key of webhooks that name no link. Without its
-- row a body is noise.
CREATE TABLE link_keys (
    link_id TEXT PRIMARY KEY,
    wrapped {bytes} NOT NULL
);

-- What was erased, as salted hashes: nothing personal can be read from them. The salt is in `meta`.
CREATE TABLE tombstones (
    kind      TEXT NOT NULL,             -- link | external_id | person
    hash      TEXT NOT NULL,
    erased_at BIGINT NOT NULL,
    PRIMARY KEY (kind, hash)
);

-- Every erasure, and how far it has come.
CREATE TABLE erasures (
    erasure   TEXT PRIMARY KEY,
    asked_at  BIGINT NOT NULL,
    asked_for TEXT NOT NULL,             -- link | external_id | person: what kind of name was given
    reason    TEXT NOT NULL,
    step      TEXT NOT NULL,             -- asked | removed | published | done
    plan      TEXT,                      -- JSON, whom it is about; NULL from `removed` on
    receipt   TEXT NOT NULL              -- JSON without personal data
);

-- What was done with personal data, each line under the hash of the one before.
CREATE TABLE audit (
    seq      {counter},
    at       BIGINT NOT NULL,
    action   TEXT NOT NULL,
    detail   TEXT NOT NULL,              -- JSON without personal data
    previous TEXT NOT NULL,
    hash     TEXT NOT NULL
);
