-- The sandbox's memory. One file may be shared by several processes.

CREATE TABLE IF NOT EXISTS objects (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, -- order of creation; lists run it backwards
    kind TEXT NOT NULL,
    id TEXT NOT NULL UNIQUE,
    body TEXT NOT NULL CHECK (json_valid(body)),
    customer TEXT GENERATED ALWAYS AS (json_extract(body, '$.customer')) VIRTUAL,
    charge TEXT GENERATED ALWAYS AS (json_extract(body, '$.charge')) VIRTUAL,
    payment_intent TEXT GENERATED ALWAYS AS (json_extract(body, '$.payment_intent')) VIRTUAL,
    transfer_group TEXT GENERATED ALWAYS AS (json_extract(body, '$.transfer_group')) VIRTUAL,
    email TEXT GENERATED ALWAYS AS (json_extract(body, '$.email')) VIRTUAL,
    created INTEGER GENERATED ALWAYS AS (json_extract(body, '$.created')) VIRTUAL
);
CREATE INDEX IF NOT EXISTS objects_by_kind ON objects (kind, seq);
CREATE INDEX IF NOT EXISTS objects_by_customer ON objects (kind, customer, seq);

-- An idempotency key and the answer that is stored under it. Execution and answer are written in
-- one transaction, so there is no key without an answer; busy_until_ms says that the first
-- request has not been answered yet (host's clock), and only while the process pid lives.
CREATE TABLE IF NOT EXISTS keys (
    key TEXT PRIMARY KEY,
    method TEXT NOT NULL,
    path TEXT NOT NULL,
    params TEXT NOT NULL,
    status INTEGER NOT NULL,
    body TEXT NOT NULL,
    request_id TEXT NOT NULL,
    created_ms INTEGER NOT NULL, -- sandbox's clock
    busy_until_ms INTEGER NOT NULL DEFAULT 0,
    pid INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS keys_by_age ON keys (created_ms);

CREATE TABLE IF NOT EXISTS faults (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    match TEXT NOT NULL,
    kind TEXT NOT NULL,
    times INTEGER NOT NULL CHECK (times > 0),
    delay_ms INTEGER NOT NULL CHECK (delay_ms >= 0)
);

CREATE TABLE IF NOT EXISTS requests (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    method TEXT NOT NULL,
    path TEXT NOT NULL,
    idempotency_key TEXT,
    customer TEXT,
    status INTEGER -- NULL: the connection was dropped
);

CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO numbers VALUES ('offset_ms', 0), ('request_count', 0);
