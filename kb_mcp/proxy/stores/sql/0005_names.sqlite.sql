-- The keys that SDKs made up, and which operation answered each: the same key from the same customer
-- and endpoint is the same request for as long as the ledger lives.

CREATE TABLE caller_keys (
    key           TEXT PRIMARY KEY,       -- 16 bytes of a keyed hash, in hex
    operation_id  TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- What an older version kept of them: 8 bytes without a key, only of the first, beside the operation.
INSERT INTO caller_keys
SELECT caller_key || '|' || route || '|' || coalesce(customer, ''), id FROM (
    SELECT caller_key, route, customer, id,
           row_number() OVER (PARTITION BY caller_key, route, customer
                              ORDER BY created_at DESC, rowid DESC) AS place
      FROM operations WHERE caller_key IS NOT NULL AND named_by = 'body')
 WHERE place = 1;
ALTER TABLE operations DROP COLUMN caller_key;

-- What an operator lets be billed once more: for how much, and which operation took it.
ALTER TABLE operations ADD COLUMN permit_amount INTEGER;
ALTER TABLE operations ADD COLUMN successor TEXT;
ALTER TABLE operations ADD COLUMN released INTEGER NOT NULL DEFAULT 0;
ALTER TABLE operations ADD COLUMN refunded_at INTEGER;
ALTER TABLE operations ADD COLUMN refund_read_at INTEGER;
CREATE INDEX operations_by_successor ON operations (successor) WHERE successor IS NOT NULL;
CREATE INDEX operations_refund_watched ON operations (refund_read_at)
    WHERE refund_read_at IS NOT NULL;

-- Of bills that were reopened before, the next generation took the permit; their refunds are read.
UPDATE operations SET refunded_at = updated_at, refund_read_at = updated_at WHERE reopened = 1;
UPDATE operations
   SET successor = (SELECT n.id FROM operations AS n
                     WHERE n.name = operations.name AND n.generation = operations.generation + 1)
 WHERE reopened = 1 OR waived = 1;
