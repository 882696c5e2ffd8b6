-- An approval holds the request that an operator is shown, whatever becomes of the operation's row.
-- What older versions asked about may since be another request: where the fingerprint shows that, or
-- does not tell, it ends, and is asked anew.

CREATE TABLE approvals_anew (
    id              TEXT PRIMARY KEY,
    operation_id    TEXT NOT NULL,
    lineage_id      TEXT NOT NULL,
    key_id          TEXT NOT NULL,
    endpoint        TEXT NOT NULL,
    customer        TEXT,
    amount          INTEGER NOT NULL CHECK (amount >= 0),
    currency        TEXT NOT NULL,
    period          TEXT,
    reference       TEXT,
    payment_method  TEXT,
    destination     TEXT,
    fingerprint     TEXT NOT NULL,
    state           TEXT NOT NULL CHECK (state IN ('pending', 'approved', 'denied', 'used')),
    expires_at      INTEGER NOT NULL,
    created_at      INTEGER NOT NULL,
    decided_by      TEXT,
    decided_at      INTEGER
) STRICT;
INSERT INTO approvals_anew
SELECT a.id, a.operation_id, a.lineage_id,
       coalesce((SELECT k.id FROM keys AS k WHERE k.lineage_id = a.lineage_id
                  ORDER BY k.created_at DESC LIMIT 1), o.key_id),
       o.route, o.customer, o.amount, o.currency, o.period, o.reference, NULL, NULL, a.fingerprint, a.state,
       CASE WHEN a.state IN ('pending', 'approved') AND a.fingerprint <> o.fingerprint
            THEN a.created_at ELSE a.expires_at END,
       a.created_at, a.decided_by, a.decided_at
  FROM approvals AS a JOIN operations AS o ON o.id = a.operation_id;
DROP TABLE approvals;
ALTER TABLE approvals_anew RENAME TO approvals;

CREATE INDEX approvals_by_lineage ON approvals (lineage_id, state);
CREATE INDEX approvals_by_operation ON approvals (operation_id);
