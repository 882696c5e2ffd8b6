-- The ledger. Amounts are integer minor units, times are milliseconds since 1970 UTC (audit.time
-- is RFC 3339 text, for people). Sealed columns hold AES-GCM under a key kept outside the store.

CREATE TABLE lineages (
    id             TEXT PRIMARY KEY,
    frozen_at      INTEGER,
    frozen_reason  TEXT
) STRICT;

CREATE TABLE keys (
    id             TEXT PRIMARY KEY,
    lineage_id     TEXT NOT NULL REFERENCES lineages (id),
    token_hash     TEXT NOT NULL,
    mode           TEXT NOT NULL CHECK (mode IN ('test', 'live')),
    role           TEXT NOT NULL,
    label          TEXT,
    agent          TEXT,
    policy         TEXT NOT NULL,
    created_at     INTEGER NOT NULL,
    expires_at     INTEGER,
    revoked_at     INTEGER,
    revoke_reason  TEXT,
    last_used_at   INTEGER,
    rotated_to     TEXT
) STRICT;

CREATE TABLE operations (
    id                TEXT PRIMARY KEY,
    name              TEXT NOT NULL,
    generation        INTEGER NOT NULL,
    named_by          TEXT NOT NULL,
    route             TEXT NOT NULL,
    customer          TEXT,
    amount            INTEGER NOT NULL CHECK (amount >= 0),  -- 0: the request does not tell
    currency          TEXT NOT NULL,
    period            TEXT,
    period_start      TEXT,
    period_end        TEXT,
    reference         TEXT,
    fingerprint       TEXT NOT NULL,
    upstream_name     TEXT NOT NULL,
    caller_key        TEXT,
    state             TEXT NOT NULL CHECK (state IN
        ('reserved', 'unknown', 'awaiting_approval', 'succeeded', 'failed', 'voided')),
    final             INTEGER NOT NULL,
    held              INTEGER NOT NULL CHECK (held >= 0),
    reserved_at       INTEGER NOT NULL,
    first_arrival_at  INTEGER NOT NULL,
    attempt           INTEGER NOT NULL,
    lease_owner       TEXT,
    lease_token       INTEGER NOT NULL,
    lease_until       INTEGER NOT NULL,
    key_id            TEXT NOT NULL,
    lineage_id        TEXT NOT NULL,
    object_id         TEXT,
    stripe_status     TEXT,
    code              TEXT,
    answer_status     INTEGER,
    answer            BLOB,               -- sealed
    reopened          INTEGER NOT NULL,
    waived            INTEGER NOT NULL,
    overshoot         INTEGER NOT NULL,
    voided_at         INTEGER,
    empty_listings    INTEGER NOT NULL,
    next_read_at      INTEGER,
    approval_id       TEXT,
    created_at        INTEGER NOT NULL,
    updated_at        INTEGER NOT NULL,
    UNIQUE (name, generation)
) STRICT;

CREATE INDEX operations_by_period ON operations (customer, period, reference);
CREATE INDEX operations_by_bill ON operations (customer, amount, currency, first_arrival_at);
CREATE INDEX operations_by_lineage_state ON operations (lineage_id, state)
    WHERE state IN ('reserved', 'unknown');
CREATE INDEX operations_by_age ON operations (created_at);
CREATE INDEX operations_by_object ON operations (object_id) WHERE object_id IS NOT NULL;
-- What recovery has to look at: short, whatever the size of the table.
CREATE INDEX operations_to_read ON operations (next_read_at)
    WHERE state IN ('reserved', 'unknown') OR next_read_at IS NOT NULL;

CREATE TABLE attempts (
    operation_id   TEXT NOT NULL REFERENCES operations (id),
    number         INTEGER NOT NULL,
    upstream_key   TEXT NOT NULL UNIQUE,
    path           TEXT NOT NULL,
    stripe_version TEXT,
    body           BLOB NOT NULL,         -- sealed; resent byte for byte
    first_sent_at  INTEGER NOT NULL,
    last_sent_at   INTEGER NOT NULL,
    sends          INTEGER NOT NULL,
    open_sends     INTEGER NOT NULL CHECK (open_sends >= 0),
    status         INTEGER,
    object_id      TEXT UNIQUE,           -- an object concludes one attempt, never another
    outcome        TEXT NOT NULL,
    key_id         TEXT NOT NULL,
    PRIMARY KEY (operation_id, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE windows (
    scope          TEXT NOT NULL,         -- account, key (a lineage), customer
    scope_id       TEXT NOT NULL,
    window         TEXT NOT NULL,         -- day, month
    start          TEXT NOT NULL,         -- first day, UTC
    currency       TEXT NOT NULL,         -- '' counts sends and declines
    reserved       INTEGER NOT NULL CHECK (reserved >= 0),
    settled        INTEGER NOT NULL CHECK (settled >= 0),
    sends          INTEGER NOT NULL CHECK (sends >= 0),
    declines       INTEGER NOT NULL CHECK (declines >= 0),
    PRIMARY KEY (scope, scope_id, window, start, currency)
) STRICT, WITHOUT ROWID;

CREATE TABLE tallies (
    key               TEXT PRIMARY KEY,
    declines          INTEGER NOT NULL,
    last_declined_at  INTEGER NOT NULL,
    last_operation    TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE approvals (
    id            TEXT PRIMARY KEY,
    operation_id  TEXT NOT NULL,
    lineage_id    TEXT NOT NULL,
    fingerprint   TEXT NOT NULL,
    state         TEXT NOT NULL CHECK (state IN ('pending', 'approved', 'denied', 'used')),
    expires_at    INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    decided_by    TEXT,
    decided_at    INTEGER
) STRICT;

CREATE INDEX approvals_by_lineage ON approvals (lineage_id, state);

CREATE TABLE audit (
    id             TEXT NOT NULL UNIQUE,
    time           TEXT NOT NULL,
    node           TEXT NOT NULL,
    seq            INTEGER NOT NULL,
    kind           TEXT NOT NULL,
    decision       TEXT,
    code           TEXT,
    key_id         TEXT,
    role           TEXT,
    agent_id       TEXT,
    session_id     TEXT,
    method         TEXT,
    path           TEXT,
    operation_id   TEXT,
    attempt        INTEGER,
    amount         INTEGER,
    currency       TEXT,
    stripe_status  INTEGER,
    request_id     TEXT,
    object_id      TEXT,
    duration_ms    INTEGER,
    customer_id    TEXT,
    note           TEXT,
    hash           TEXT NOT NULL,
    UNIQUE (node, seq)
) STRICT;

CREATE INDEX audit_by_time ON audit (time);
CREATE INDEX audit_by_operation ON audit (operation_id);
CREATE INDEX audit_by_key ON audit (key_id, time);
CREATE INDEX audit_by_customer ON audit (customer_id, time) WHERE customer_id IS NOT NULL;
CREATE INDEX audit_by_code ON audit (code, time) WHERE code IS NOT NULL;

CREATE TRIGGER audit_refuses_update BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TRIGGER audit_refuses_delete BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;

-- Every process that ever wrote, in a chain of its own, so that a lost node shows.
CREATE TABLE nodes (
    position    INTEGER PRIMARY KEY,
    node        TEXT NOT NULL UNIQUE,
    started_at  TEXT NOT NULL,
    hash        TEXT NOT NULL
) STRICT;

CREATE TABLE operators (
    name        TEXT PRIMARY KEY,
    token_hash  TEXT NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT;

-- What all processes on this store must agree on, its binding, and its clock's high-water mark.
CREATE TABLE facts (
    name   TEXT PRIMARY KEY,
    value  TEXT NOT NULL
) STRICT, WITHOUT ROWID;
