-- Everything that a prediction is. Rows are never removed, so positions in lists hold for ever.
CREATE TABLE predictions (
    key              INTEGER PRIMARY KEY,
    kind             TEXT    NOT NULL,               -- 'prediction'; later 'training'
    id               TEXT    NOT NULL UNIQUE,
    stream_key       TEXT    NOT NULL,
    created_at       INTEGER NOT NULL,               -- times are microseconds since 1970, UTC
    ended_at         INTEGER,
    attempt          INTEGER NOT NULL DEFAULT 0,     -- the fence: only the latest holder may append
    owner            TEXT,
    lease_until      INTEGER,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    data_removed     INTEGER NOT NULL DEFAULT 0,
    request          TEXT    NOT NULL,               -- as asked, without its input
    state            TEXT    NOT NULL                -- the fold of its events so far
) STRICT;
CREATE INDEX predictions_newest ON predictions (kind, created_at);
CREATE INDEX predictions_stream ON predictions (stream_key);
CREATE INDEX predictions_open ON predictions (kind, created_at, key, lease_until) WHERE ended_at IS NULL;
CREATE INDEX predictions_unswept ON predictions (ended_at) WHERE ended_at IS NOT NULL AND data_removed = 0;

-- Apart from the row, so that a large input is written once and not with every batch of events.
CREATE TABLE inputs (
    prediction INTEGER PRIMARY KEY,
    input      TEXT NOT NULL
) STRICT;

CREATE TABLE events (
    prediction INTEGER NOT NULL,
    seq        INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    event      TEXT    NOT NULL,
    PRIMARY KEY (prediction, seq)
) STRICT, WITHOUT ROWID;

-- Completed webhooks still to be sent. A row goes when it was delivered or given up.
CREATE TABLE outbox (
    key        INTEGER PRIMARY KEY AUTOINCREMENT,
    prediction INTEGER NOT NULL UNIQUE,
    msg_id     TEXT    NOT NULL,
    url        TEXT    NOT NULL,
    attempts   INTEGER NOT NULL DEFAULT 0,
    first_at   INTEGER NOT NULL,
    next_at    INTEGER NOT NULL
) STRICT;
CREATE INDEX outbox_due ON outbox (next_at);

CREATE TABLE tokens (
    key        INTEGER PRIMARY KEY,
    name       TEXT    NOT NULL,
    hash       TEXT    NOT NULL UNIQUE,              -- sha256 of the token, which itself is kept nowhere
    last_four  TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;
CREATE UNIQUE INDEX tokens_in_use ON tokens (name) WHERE revoked_at IS NULL;

CREATE TABLE secrets (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
