-- What happened when, in counts: for people who look at it later.

-- One row for each code with which refreshes failed. It begins anew after a week without a failure.
CREATE TABLE failures (
    code     TEXT PRIMARY KEY,
    first_at BIGINT NOT NULL,
    last_at  BIGINT NOT NULL,
    count    BIGINT NOT NULL
);

-- Calls of Belvo's API in each hour; hours without one have no row.
CREATE TABLE belvo_hours (
    hour_at BIGINT PRIMARY KEY,
    calls   BIGINT NOT NULL
);
