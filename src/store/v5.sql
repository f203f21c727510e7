-- Runs of features, and the rows that decisions used.

-- One row for each date and mode that credit_features is published for; `rebuild` repeats them.
CREATE TABLE feature_runs (
    as_of_date  TEXT NOT NULL,             -- YYYY-MM-DD
    pit_mode    TEXT NOT NULL,             -- strict | retro
    known_at    BIGINT NOT NULL,
    lag_months  BIGINT NOT NULL,
    ran_at      BIGINT NOT NULL,
    changed_seq BIGINT NOT NULL,           -- `changes` when it was recorded
    PRIMARY KEY (as_of_date, pit_mode)
);

-- The row of features that a decision used, as it was.
CREATE TABLE frozen_features (
    decision_id TEXT PRIMARY KEY,
    link_id     TEXT NOT NULL,
    as_of_date  TEXT NOT NULL,
    pit_mode    TEXT NOT NULL,
    frozen_at   BIGINT NOT NULL,
    body        {bytes} NOT NULL           -- JSON
);
CREATE INDEX frozen_features_by_link ON frozen_features (link_id);
