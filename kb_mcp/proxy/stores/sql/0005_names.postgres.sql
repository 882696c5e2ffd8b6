-- The keys that SDKs made up, and which operation answered each: the same key from the same customer
-- and endpoint is the same request for as long as the ledger lives.

CREATE TABLE caller_keys (
    key           TEXT PRIMARY KEY,       -- 16 bytes of a keyed hash, in hex
    operation_id  TEXT NOT NULL
);

-- What an older version kept of them: 8 bytes without a key, only of the first, beside the operation.
INSERT INTO caller_keys
SELECT DISTINCT ON (caller_key, route, customer)
       caller_key || '|' || route || '|' || coalesce(customer, ''), id
  FROM operations WHERE caller_key IS NOT NULL AND named_by = 'body'
 ORDER BY caller_key, route, customer, created_at DESC, id DESC;
ALTER TABLE operations DROP COLUMN caller_key;

-- What an operator lets be billed once more: for how much, and which operation took it.
ALTER TABLE operations ADD COLUMN permit_amount BIGINT;
ALTER TABLE operations ADD COLUMN successor TEXT;
ALTER TABLE operations ADD COLUMN released BOOLEAN NOT NULL DEFAULT false;
ALTER TABLE operations ADD COLUMN refunded_at BIGINT;
ALTER TABLE operations ADD COLUMN refund_read_at BIGINT;
CREATE INDEX operations_by_successor ON operations (successor) WHERE successor IS NOT NULL;
CREATE INDEX operations_refund_watched ON operations (refund_read_at)
    WHERE refund_read_at IS NOT NULL;

-- Of bills that were reopened before, the next generation took the permit; their refunds are read.
UPDATE operations SET refunded_at = updated_at, refund_read_at = updated_at WHERE reopened;
UPDATE operations
   SET successor = (SELECT n.id FROM operations AS n
                     WHERE n.name = operations.name AND n.generation = operations.generation + 1)
 WHERE reopened OR waived;
