-- The ledger. Amounts are integer minor units, times are milliseconds since 1970 UTC (audit.time
-- is RFC 3339 text, for people). Sealed columns hold AES-GCM under a key kept outside the store.
-- No triggers, sequences, advisory locks or foreign keys: what is exact here rests on row locks, so
-- that engines that speak PostgreSQL's wire can serve. The audit is append-only by grants.

CREATE TABLE lineages (
    id             TEXT PRIMARY KEY,
    frozen_at      BIGINT,
    frozen_reason  TEXT
);

CREATE TABLE keys (
    id             TEXT PRIMARY KEY,
    lineage_id     TEXT NOT NULL,
    token_hash     TEXT NOT NULL,
    mode           TEXT NOT NULL CHECK (mode IN ('test', 'live')),
    role           TEXT NOT NULL,
    label          TEXT,
    agent          TEXT,
    policy         TEXT NOT NULL,
    created_at     BIGINT NOT NULL,
    expires_at     BIGINT,
    revoked_at     BIGINT,
    revoke_reason  TEXT,
    last_used_at   BIGINT,
    rotated_to     TEXT
);

CREATE TABLE operations (
    id                TEXT PRIMARY KEY,
    name              TEXT NOT NULL,
    generation        BIGINT NOT NULL,
    named_by          TEXT NOT NULL,
    route             TEXT NOT NULL,
    customer          TEXT,
    amount            BIGINT NOT NULL CHECK (amount >= 0),  -- 0: the request does not tell
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
    final             BOOLEAN NOT NULL,
    held              BIGINT NOT NULL CHECK (held >= 0),
    reserved_at       BIGINT NOT NULL,
    first_arrival_at  BIGINT NOT NULL,
    attempt           BIGINT NOT NULL,
    lease_owner       TEXT,
    lease_token       BIGINT NOT NULL,
    lease_until       BIGINT NOT NULL,
    key_id            TEXT NOT NULL,
    lineage_id        TEXT NOT NULL,
    object_id         TEXT,
    stripe_status     TEXT,
    code              TEXT,
    answer_status     BIGINT,
    answer            BYTEA,              -- sealed
    reopened          BOOLEAN NOT NULL,
    waived            BOOLEAN NOT NULL,
    overshoot         BOOLEAN NOT NULL,
    voided_at         BIGINT,
    empty_listings    BIGINT NOT NULL,
    next_read_at      BIGINT,
    approval_id       TEXT,
    created_at        BIGINT NOT NULL,
    updated_at        BIGINT NOT NULL,
    UNIQUE (name, generation)
);

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
    operation_id   TEXT NOT NULL,
    number         BIGINT NOT NULL,
    upstream_key   TEXT NOT NULL UNIQUE,
    path           TEXT NOT NULL,
    stripe_version TEXT,
    body           BYTEA NOT NULL,        -- sealed; resent byte for byte
    first_sent_at  BIGINT NOT NULL,
    last_sent_at   BIGINT NOT NULL,
    sends          BIGINT NOT NULL,
    open_sends     BIGINT NOT NULL CHECK (open_sends >= 0),
    status         BIGINT,
    object_id      TEXT UNIQUE,           -- an object concludes one attempt, never another
    outcome        TEXT NOT NULL,
    key_id         TEXT NOT NULL,
    PRIMARY KEY (operation_id, number)
);

CREATE TABLE windows (
    scope          TEXT NOT NULL,         -- account, key (a lineage), customer
    scope_id       TEXT NOT NULL,
    "window"       TEXT NOT NULL,         -- day, month
    start          TEXT NOT NULL,         -- first day, UTC
    currency       TEXT NOT NULL,         -- '' counts sends and declines
    reserved       BIGINT NOT NULL CHECK (reserved >= 0),
    settled        BIGINT NOT NULL CHECK (settled >= 0),
    sends          BIGINT NOT NULL CHECK (sends >= 0),
    declines       BIGINT NOT NULL CHECK (declines >= 0),
    PRIMARY KEY (scope, scope_id, "window", start, currency)
);

CREATE TABLE tallies (
    key               TEXT PRIMARY KEY,
    declines          BIGINT NOT NULL,
    last_declined_at  BIGINT NOT NULL,
    last_operation    TEXT
);

CREATE TABLE approvals (
    id            TEXT PRIMARY KEY,
    operation_id  TEXT NOT NULL,
    lineage_id    TEXT NOT NULL,
    fingerprint   TEXT NOT NULL,
    state         TEXT NOT NULL CHECK (state IN ('pending', 'approved', 'denied', 'used')),
    expires_at    BIGINT NOT NULL,
    created_at    BIGINT NOT NULL,
    decided_by    TEXT,
    decided_at    BIGINT
);

CREATE INDEX approvals_by_lineage ON approvals (lineage_id, state);

CREATE TABLE audit (
    id             TEXT NOT NULL UNIQUE,
    time           TEXT NOT NULL,
    node           TEXT NOT NULL,
    seq            BIGINT NOT NULL,
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
    attempt        BIGINT,
    amount         BIGINT,
    currency       TEXT,
    stripe_status  BIGINT,
    request_id     TEXT,
    object_id      TEXT,
    duration_ms    BIGINT,
    customer_id    TEXT,
    note           TEXT,
    hash           TEXT NOT NULL,
    UNIQUE (node, seq)
);

CREATE INDEX audit_by_time ON audit (time);
CREATE INDEX audit_by_operation ON audit (operation_id);
CREATE INDEX audit_by_key ON audit (key_id, time);
CREATE INDEX audit_by_customer ON audit (customer_id, time) WHERE customer_id IS NOT NULL;
CREATE INDEX audit_by_code ON audit (code, time) WHERE code IS NOT NULL;

-- Every process that ever wrote, in a chain of its own, so that a lost node shows.
CREATE TABLE nodes (
    position    BIGINT PRIMARY KEY,
    node        TEXT NOT NULL UNIQUE,
    started_at  TEXT NOT NULL,
    hash        TEXT NOT NULL
);

CREATE TABLE operators (
    name        TEXT PRIMARY KEY,
    token_hash  TEXT NOT NULL,
    created_at  BIGINT NOT NULL
);

-- What all processes on this store must agree on, its binding, and its clock's high-water mark.
CREATE TABLE facts (
    name   TEXT PRIMARY KEY,
    value  TEXT NOT NULL
);

-- What a decision depends on and has no row of its own: made if absent, locked in the order of
-- (kind, value), which is the global order of docs/exactly-once.md. Rows are never deleted.
CREATE TABLE guards (
    kind   SMALLINT NOT NULL,             -- account day, lineage, customer day, period, bill, ...
    value  TEXT COLLATE "C" NOT NULL,     -- a hash of what is guarded
    PRIMARY KEY (kind, value)
);

-- The fencing token of every writing process: which of its transactions was the last to commit.
-- Its row is locked while a transaction runs, so that whoever reads it under a lock knows.
CREATE TABLE flushes (
    node   TEXT PRIMARY KEY,
    token  BIGINT NOT NULL
);
