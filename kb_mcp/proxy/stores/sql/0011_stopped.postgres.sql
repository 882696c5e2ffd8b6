-- Calls that were stopped, counted as their audit rows are written: a page that sums them up need not
-- walk the audit. A row without a key is of all keys.

CREATE TABLE stopped (
    start     TEXT NOT NULL,              -- first day, UTC
    "window"  TEXT NOT NULL,              -- day, month
    key_id    TEXT NOT NULL,
    agent_id  TEXT NOT NULL,
    why       TEXT NOT NULL,              -- replay, held, or the code of a refusal
    kind      TEXT NOT NULL,              -- charge, refund, invoice
    currency  TEXT NOT NULL,
    calls     BIGINT NOT NULL,
    amount    BIGINT NOT NULL,            -- asked for by all of them, in minor units
    PRIMARY KEY (start, "window", key_id, agent_id, why, kind, currency)
);
CREATE INDEX stopped_most ON stopped (start, "window", calls) WHERE key_id <> '';

-- Refunds, newest first, among the charges.
CREATE INDEX operations_refunds ON operations (created_at) WHERE gives_back IS NOT NULL;
