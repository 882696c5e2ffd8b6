-- Named queries of the SQLite store: "-- name: x" begins one, it ends at the next name.

-- name: operation_by_name
SELECT * FROM operations WHERE name = ? ORDER BY generation DESC LIMIT 1

-- name: operation_by_id
SELECT * FROM operations WHERE id = ?

-- name: operations_by_period
SELECT * FROM operations WHERE customer = ? AND period = ? AND coalesce(reference, '') = ?
   AND state IN ('reserved', 'unknown', 'succeeded', 'voided')

-- name: operations_by_bill
-- Same customer, amount and currency, and: recent, or unresolved, or a period that touches ours.
SELECT * FROM operations
 WHERE customer = :customer AND amount = :amount AND currency = :currency
   AND state IN ('reserved', 'unknown', 'succeeded', 'voided')
   AND (first_arrival_at > :since OR state <> 'succeeded'
        OR (:start IS NOT NULL AND period_start <= :end AND period_end >= :start))

-- name: attempts_of
SELECT * FROM attempts WHERE operation_id = ?

-- name: attempt_by_object
SELECT operation_id FROM attempts WHERE object_id = ?

-- name: window
SELECT reserved, settled, sends, declines FROM windows
 WHERE scope = ? AND scope_id = ? AND window = ? AND start = ? AND currency = ?

-- name: tally
SELECT * FROM tallies WHERE key = ?

-- name: key
SELECT * FROM keys WHERE id = ?

-- name: lineage
SELECT * FROM lineages WHERE id = ?

-- name: approval
SELECT * FROM approvals WHERE id = ?

-- name: unresolved
SELECT count(*) FROM operations WHERE lineage_id = ? AND state = 'unknown'

-- name: outstanding_approvals
SELECT count(*) FROM approvals WHERE lineage_id = ? AND state = 'pending'

-- name: to_recover
-- What recovery looks at: held and nobody's, or due to be read again.
SELECT id FROM operations
 WHERE next_read_at <= :now
    OR (state = 'reserved' AND next_read_at IS NULL)
 ORDER BY updated_at LIMIT :limit

-- name: answered_before
SELECT id FROM operations
 WHERE created_at < ? AND state = 'succeeded' AND final = 1 AND answer IS NOT NULL
 ORDER BY created_at LIMIT ?

-- name: fact
SELECT value FROM facts WHERE name = ?

-- name: set_fact
INSERT INTO facts (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value

-- name: head_of_node
SELECT seq, hash FROM audit WHERE node = ? ORDER BY seq DESC LIMIT 1

-- name: last_node
SELECT position, hash FROM nodes ORDER BY position DESC LIMIT 1
