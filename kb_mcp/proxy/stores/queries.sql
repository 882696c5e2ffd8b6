-- Named queries of both stores: "-- name: x" begins one, it ends at the next name.
-- They are written for PostgreSQL, with named parameters (:x); the SQLite store drops the types and
-- collations, and reads a list from a JSON array (queries.py). A query that has to differ, by its
-- locks or by what its planner needs, stands in queries.sql of each store instead.

-- name: facts
SELECT name, value FROM facts

-- name: set_fact
INSERT INTO facts (name, value) VALUES (:name, :value)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value

-- name: ceilings
SELECT name, value FROM facts WHERE name IN ('ceilings', 'refund_ceilings')

-- name: operators
SELECT * FROM operators ORDER BY name

-- name: add_operator
INSERT INTO operators (name, token_hash, created_at) VALUES (:name, :token_hash, :created_at)
    ON CONFLICT (name) DO NOTHING

-- name: remove_operator
DELETE FROM operators WHERE name = :name

-- name: nodes
SELECT * FROM nodes ORDER BY position

-- name: last_node
SELECT position, hash FROM nodes ORDER BY position DESC LIMIT 1

-- name: add_node
INSERT INTO nodes (position, node, started_at, hash) VALUES (:position, :node, :started_at, :hash)

-- name: writers
SELECT DISTINCT node FROM audit

-- name: audit_size
SELECT count(*) AS size FROM audit

-- name: audit_hash
SELECT hash FROM audit WHERE node = :node AND seq = :seq

-- name: audit_head
SELECT seq, hash FROM audit WHERE node = :node ORDER BY seq DESC LIMIT 1

-- name: audit_chain
SELECT * FROM audit WHERE node = :node AND seq > :after ORDER BY seq LIMIT :most

-- name: drop_segment
DELETE FROM audit WHERE node = :node AND seq <= :seq

-- name: attempts_of
SELECT * FROM attempts WHERE operation_id = ANY(:ids::text[]) ORDER BY operation_id, number

-- name: objects
SELECT object_id, operation_id FROM attempts WHERE object_id = ANY(:ids::text[])

-- name: tallies
SELECT * FROM tallies WHERE key = ANY(:ids::text[])

-- name: caller_keys
SELECT * FROM caller_keys WHERE key = ANY(:ids::text[])

-- name: keys
SELECT * FROM keys WHERE id = ANY(:ids::text[])

-- name: approvals
SELECT * FROM approvals WHERE id = ANY(:ids::text[])

-- name: approvals_of
SELECT * FROM approvals WHERE operation_id = ANY(:ids::text[])

-- name: grants
SELECT * FROM grants WHERE id = ANY(:ids::text[])

-- name: deliveries
SELECT * FROM deliveries WHERE key = ANY(:ids::text[])

-- name: issuers
SELECT * FROM grants WHERE issuer = ANY(:ids::text[]) AND removed_at IS NULL
 ORDER BY created_at, id

-- name: lineages
-- With what is counted of each; a lineage without a row (adopted charges) is counted too.
SELECT wanted.id, l.id IS NOT NULL AS known, l.frozen_at, l.frozen_reason,
       (SELECT count(*) FROM operations AS o
         WHERE o.lineage_id = wanted.id AND o.state = 'unknown') AS unresolved,
       (SELECT count(*) FROM approvals AS a
         WHERE a.lineage_id = wanted.id AND a.state = 'pending' AND a.expires_at > :now) AS outstanding
  FROM unnest(:ids::text[]) AS wanted (id) LEFT JOIN lineages AS l ON l.id = wanted.id

-- name: keys_with_lineages
SELECT k.*, l.frozen_at AS lineage_frozen_at, l.frozen_reason AS lineage_frozen_reason
  FROM keys AS k JOIN lineages AS l ON l.id = k.lineage_id
 WHERE k.id = ANY(:ids::text[])

-- name: every_key
SELECT k.*, l.frozen_at AS lineage_frozen_at, l.frozen_reason AS lineage_frozen_reason
  FROM keys AS k JOIN lineages AS l ON l.id = k.lineage_id ORDER BY k.created_at, k.id COLLATE "C"

-- name: every_approval
SELECT * FROM approvals ORDER BY created_at DESC, id COLLATE "C"

-- name: every_grant
SELECT * FROM grants ORDER BY created_at, id COLLATE "C"

-- name: to_recover
-- What recovery looks at: held and nobody's, or due to be read again. SQLite takes an index with a
-- condition only where that condition stands in the query.
SELECT id FROM (
    SELECT id, updated_at FROM operations WHERE next_read_at <= :now
    UNION ALL
    SELECT id, updated_at FROM operations
     WHERE state = 'reserved' AND state <> 'succeeded' AND next_read_at IS NULL) AS due
 ORDER BY updated_at LIMIT :most

-- name: redate_reads
-- What an open operation has from later than now was dated by a clock that was ahead.
UPDATE operations SET next_read_at = :now WHERE next_read_at > :now AND state <> 'voided'

-- name: redate_voids
UPDATE operations SET voided_at = :now, next_read_at = :now + 90000000
 WHERE state = 'voided' AND state <> 'succeeded' AND voided_at > :now AND next_read_at IS NOT NULL

-- name: redate_leases
-- Who sends or reads right now keeps its lease, which is two minutes at most.
UPDATE operations SET lease_until = :now + 120000
 WHERE lease_until > :now + 120000 AND id IN (
    SELECT id FROM operations WHERE state IN ('reserved', 'unknown', 'voided') AND state <> 'succeeded'
    UNION SELECT id FROM operations WHERE next_read_at IS NOT NULL)

-- name: redate_sends
UPDATE attempts SET last_sent_at = :now WHERE last_sent_at > :now AND operation_id IN (
    SELECT id FROM operations WHERE state IN ('reserved', 'unknown', 'voided') AND state <> 'succeeded'
    UNION SELECT id FROM operations WHERE next_read_at IS NOT NULL)

-- name: refunds_to_watch
-- Bills whose refund is to be read by now, the most overdue first.
SELECT id FROM operations WHERE refund_read_at <= :now
 ORDER BY refund_read_at LIMIT :most

-- name: answered_before
-- Final operations that still hold an answer from before that, the oldest first.
SELECT id FROM operations
 WHERE created_at < :before AND state = 'succeeded' AND final AND answer IS NOT NULL
 ORDER BY created_at LIMIT :most

-- name: known_objects
-- Which of these objects at Stripe belong to an operation that stands. Attempts know whose an object
-- is, but where the request did not tell an amount.
SELECT a.object_id AS id FROM attempts AS a JOIN operations AS o ON o.id = a.operation_id
 WHERE a.object_id = ANY(:ids::text[]) AND a.outcome = 'succeeded' AND o.state = 'succeeded'
 UNION
SELECT object_id FROM operations
 WHERE object_id = ANY(:ids::text[]) AND amount = 0 AND object_id IS NOT NULL
   AND state = 'succeeded'

-- name: known_attempts
SELECT a.upstream_key, a.operation_id, a.outcome, o.state, o.next_read_at
  FROM attempts AS a JOIN operations AS o ON o.id = a.operation_id
 WHERE a.upstream_key = ANY(:ids::text[])

-- name: known_lineages
SELECT id FROM lineages WHERE id = ANY(:ids::text[])

-- name: billed_days
-- Of every live bill with a period: whose it is, and by whose key it came; of one customer and
-- reference together, by their first day.
SELECT o.customer, o.reference, o.period, o.reserved_at, o.key_id
  FROM operations AS o
 WHERE o.customer IS NOT NULL AND o.period IS NOT NULL
   AND (o.state IN ('reserved', 'unknown', 'succeeded')
        OR (o.state = 'voided' AND o.empty_listings < 3))
   AND NOT o.released
 ORDER BY o.customer, o.reference, o.period_start, o.reserved_at

-- name: open_operations
SELECT state, count(*) AS count FROM operations
 WHERE state <> 'succeeded' AND state IN ('reserved', 'unknown', 'awaiting_approval')
 GROUP BY state

-- name: key_counts
SELECT CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked' WHEN k.expires_at <= :now THEN 'expired'
            WHEN l.frozen_at IS NOT NULL THEN 'frozen' ELSE 'active' END AS status,
       k.rotated_to IS NOT NULL AS rotated, count(*) AS count
  FROM keys AS k JOIN lineages AS l ON l.id = k.lineage_id
 GROUP BY 1, 2

-- name: key_page
-- Ids are sorted, not whole keys: their policies are long. A freeze is looked up only where a
-- status is asked for. Letters are matched in either case where they are ASCII.
WITH page AS MATERIALIZED (
    SELECT k.id FROM keys AS k
     WHERE (:after::text IS NULL
            OR (k.created_at, k.id COLLATE "C")
               < ((SELECT created_at FROM keys WHERE id = :after::text), :after::text))
       AND (:text::text IS NULL OR k.id = :text::text
            OR strpos(lower(k.label COLLATE "C"), lower(:text::text COLLATE "C")) > 0
            OR strpos(lower(k.agent COLLATE "C"), lower(:text::text COLLATE "C")) > 0
            OR strpos(lower(k.role COLLATE "C"), lower(:text::text COLLATE "C")) > 0)
       AND (:status::text IS NULL
            OR :status::text = CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked'
                                    WHEN k.expires_at <= :now THEN 'expired'
                                    WHEN (SELECT l.frozen_at FROM lineages AS l
                                           WHERE l.id = k.lineage_id) IS NOT NULL THEN 'frozen'
                                    ELSE 'active' END)
     ORDER BY k.created_at DESC, k.id COLLATE "C" DESC LIMIT :most
)
SELECT k.*, l.frozen_at AS lineage_frozen_at, l.frozen_reason AS lineage_frozen_reason
  FROM page JOIN keys AS k ON k.id = page.id JOIN lineages AS l ON l.id = k.lineage_id
 ORDER BY k.created_at DESC, k.id COLLATE "C" DESC

-- name: spend_of_keys
WITH spans AS (
    SELECT 'key' AS scope, 'day' AS "window", :day::text AS start
     UNION ALL SELECT 'key', 'month', :month::text
     UNION ALL SELECT 'key_refunds', 'day', :day::text
     UNION ALL SELECT 'key_refunds', 'month', :month::text)
SELECT k.id, k.lineage_id, k.policy::json ->> 'caps' AS caps,
       k.policy::json ->> 'refund_caps' AS refund_caps, k.revoked_at, k.expires_at,
       s.scope, s."window", s.start, w.currency, w.reserved, w.settled
  FROM keys AS k CROSS JOIN spans AS s
       LEFT JOIN windows AS w
    ON w.scope = s.scope AND w.scope_id = k.lineage_id AND w."window" = s."window"
       AND w.start = s.start AND w.currency > ''
 WHERE k.id = ANY(:ids::text[])

-- name: caps_of_keys
SELECT k.id, k.lineage_id, k.policy::json ->> 'caps' AS caps,
       k.policy::json ->> 'refund_caps' AS refund_caps, k.rotated_to IS NOT NULL AS rotated
  FROM keys AS k ORDER BY k.created_at, k.id COLLATE "C"

-- name: held_of_keys
WITH spans AS (SELECT 'day' AS "window", :day::text AS start UNION ALL SELECT 'month', :month::text)
SELECT w.scope_id, w."window", w.currency, w.reserved, w.settled
  FROM spans AS s CROSS JOIN windows AS w
 WHERE w.start = s.start AND w.scope = :scope AND w."window" = s."window" AND w.currency > ''

-- name: stopped_on
SELECT start, why, kind, currency, calls, amount FROM stopped
 WHERE start = ANY(:ids::text[]) AND "window" = 'day' AND key_id = ''

-- name: stopped_most
-- Those of one day or month that were stopped most often, by an index: however many there are.
SELECT key_id, agent_id, why, kind, currency, calls, amount FROM stopped
 WHERE start = :start AND "window" = :window AND key_id <> ''
 ORDER BY calls DESC LIMIT :most
