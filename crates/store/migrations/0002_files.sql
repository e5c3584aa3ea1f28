-- Files that callers sent and files that models made. Their content lies beside the database, under the id.
CREATE TABLE files (
    key          INTEGER PRIMARY KEY AUTOINCREMENT,
    id           TEXT    NOT NULL UNIQUE,
    kind         TEXT    NOT NULL,                   -- 'upload' or 'output'
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    file         TEXT    NOT NULL                    -- everything about it
) STRICT;
CREATE INDEX files_newest ON files (kind, created_at);
CREATE INDEX files_expiry ON files (expires_at);
