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
