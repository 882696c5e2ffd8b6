-- Named queries of the SQLite store: "-- name: x" begins one, it ends at the next name.

-- Lists arrive as JSON arrays, so that one statement serves a batch of any size; CROSS JOIN keeps
-- SQLite from walking a table where the list is short.

-- name: operations
-- What a batch needs: by name (the newest, and whose permit it took), by id, by a caller's key, by guard, and the last decline of each tally.
-- A period's guard: same customer and reference, and days that touch ours; the labels keep it to a
-- part of the index. A bill's guard: same customer, amount and currency, and recent or unresolved.
WITH named AS (
    SELECT o.id, max(o.generation)
      FROM json_each(:names) AS n CROSS JOIN operations AS o ON o.name = n.value
     GROUP BY o.name
), chosen AS (
    SELECT id FROM named
    UNION SELECT o.id
      FROM named CROSS JOIN operations AS o
        ON o.successor = named.id AND o.successor IS NOT NULL
    UNION SELECT value FROM json_each(:ids)
    UNION SELECT c.operation_id
      FROM json_each(:caller_keys) AS k CROSS JOIN caller_keys AS c ON c.key = k.value
    UNION SELECT t.last_operation
      FROM json_each(:tallies) AS k CROSS JOIN tallies AS t ON t.key = k.value
    UNION SELECT o.id
      FROM json_each(:periods) AS p CROSS JOIN operations AS o
        ON o.customer = p.value ->> 0 AND o.period >= p.value ->> 2 AND o.period < p.value ->> 3
           AND coalesce(o.reference, '') = p.value ->> 1
     WHERE o.state IN ('reserved', 'unknown', 'succeeded', 'voided')
       AND o.period_start <= p.value ->> 5 AND o.period_end >= p.value ->> 4
    UNION SELECT o.id
      FROM json_each(:bills) AS b CROSS JOIN operations AS o
        ON o.customer = b.value ->> 0 AND o.amount = b.value ->> 1 AND o.currency = b.value ->> 2
     WHERE o.state IN ('reserved', 'unknown', 'succeeded', 'voided')
       AND (o.first_arrival_at > b.value ->> 3 OR o.state <> 'succeeded'
            -- adopted without a period: it may be a bill of any of those days
            OR (o.period IS NULL AND o.period_start IS NOT NULL))
    UNION SELECT o.id
      FROM json_each(:charges) AS c CROSS JOIN operations AS o ON o.gives_back = c.value
)
SELECT o.* FROM chosen CROSS JOIN operations AS o ON o.id = chosen.id

-- name: attempts
SELECT a.* FROM json_each(?) AS wanted CROSS JOIN attempts AS a ON a.operation_id = wanted.value

-- name: attempts_of
SELECT * FROM attempts WHERE operation_id = ?

-- name: objects
SELECT a.object_id, a.operation_id
  FROM json_each(?) AS wanted CROSS JOIN attempts AS a ON a.object_id = wanted.value

-- name: windows
SELECT w.*
  FROM json_each(?) AS k CROSS JOIN windows AS w
    ON w.scope = k.value ->> 0 AND w.scope_id = k.value ->> 1 AND w.window = k.value ->> 2
       AND w.start = k.value ->> 3 AND w.currency = k.value ->> 4

-- name: tallies
SELECT t.* FROM json_each(?) AS wanted CROSS JOIN tallies AS t ON t.key = wanted.value

-- name: caller_keys
SELECT c.* FROM json_each(?) AS wanted CROSS JOIN caller_keys AS c ON c.key = wanted.value

-- name: keys
SELECT k.* FROM json_each(?) AS wanted CROSS JOIN keys AS k ON k.id = wanted.value

-- name: approvals
SELECT a.* FROM json_each(?) AS wanted CROSS JOIN approvals AS a ON a.id = wanted.value

-- name: approvals_of
SELECT a.* FROM json_each(?) AS wanted CROSS JOIN approvals AS a ON a.operation_id = wanted.value

-- name: grants
SELECT g.* FROM json_each(?) AS wanted CROSS JOIN grants AS g ON g.id = wanted.value

-- name: issuers
SELECT g.* FROM json_each(?) AS wanted CROSS JOIN grants AS g ON g.issuer = wanted.value
 WHERE g.removed_at IS NULL ORDER BY g.created_at, g.id

-- name: lineages
SELECT wanted.value AS id, l.id IS NOT NULL AS known, l.frozen_at, l.frozen_reason,
       (SELECT count(*) FROM operations AS o
         WHERE o.lineage_id = wanted.value AND o.state = 'unknown') AS unresolved,
       (SELECT count(*) FROM approvals AS a
         WHERE a.lineage_id = wanted.value AND a.state = 'pending' AND a.expires_at > :now) AS outstanding
  FROM json_each(:wanted) AS wanted LEFT JOIN lineages AS l ON l.id = wanted.value

-- name: key_with_lineage
SELECT k.*, l.frozen_at AS lineage_frozen_at, l.frozen_reason AS lineage_frozen_reason
  FROM keys AS k JOIN lineages AS l ON l.id = k.lineage_id WHERE k.id = ?

-- name: to_recover
-- What recovery looks at: held and nobody's, or due to be read again. SQLite takes an index with a
-- condition only where that condition stands in the query.
SELECT id FROM (
    SELECT id, updated_at FROM operations WHERE next_read_at <= :now
    UNION ALL
    SELECT id, updated_at FROM operations
     WHERE state = 'reserved' AND state <> 'succeeded' AND next_read_at IS NULL)
 ORDER BY updated_at LIMIT :limit

-- name: refunds_to_watch
SELECT id FROM operations WHERE refund_read_at <= :now
 ORDER BY refund_read_at LIMIT :limit

-- name: answered_before
SELECT id FROM operations
 WHERE created_at < ? AND state = 'succeeded' AND final = 1 AND answer IS NOT NULL
 ORDER BY created_at LIMIT ?

-- name: facts
SELECT name, value FROM facts

-- name: known_objects
-- Which of these objects at Stripe belong to an operation that stands. Attempts know whose an object
-- is, but where the request did not tell an amount.
SELECT a.object_id AS id
  FROM json_each(:ids) AS wanted CROSS JOIN attempts AS a ON a.object_id = wanted.value
       CROSS JOIN operations AS o ON o.id = a.operation_id
 WHERE a.outcome = 'succeeded' AND o.state = 'succeeded'
 UNION
SELECT o.object_id FROM json_each(:ids) AS wanted CROSS JOIN operations AS o
    ON o.object_id = wanted.value
 WHERE o.amount = 0 AND o.object_id IS NOT NULL AND o.state = 'succeeded'

-- name: known_attempts
SELECT a.upstream_key, a.operation_id, a.outcome, o.state, o.next_read_at
  FROM json_each(:ids) AS wanted CROSS JOIN attempts AS a ON a.upstream_key = wanted.value
       CROSS JOIN operations AS o ON o.id = a.operation_id

-- name: known_lineages
SELECT l.id FROM json_each(:ids) AS wanted CROSS JOIN lineages AS l ON l.id = wanted.value

-- name: deciding_facts
-- What every decision depends on, whatever it is about, and why nothing may be sent.
SELECT name, value FROM facts
 WHERE name IN ('high_water_ms', 'clock_boot', 'clock_confirmed', 'clock_doubt',
                'ceilings', 'refund_ceilings', 'recovery_grace_ms', 'gap', 'moved_to')

-- name: set_fact
INSERT INTO facts (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value

-- name: head_of_node
SELECT seq, hash FROM audit WHERE node = ? ORDER BY seq DESC LIMIT 1

-- name: last_node
SELECT position, hash FROM nodes ORDER BY position DESC LIMIT 1

-- name: ceilings
SELECT name, value FROM facts WHERE name IN ('ceilings', 'refund_ceilings')

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

-- name: fullest_keys
-- By thousandths of a cap that are held, the fuller of day and month: two looks into an index for
-- each key. Without a cap that is nothing, and a key that holds nothing at all comes after those.
-- Materialized, or the order would look again.
WITH held AS MATERIALIZED (
    SELECT k.id, k.revoked_at IS NULL AND coalesce(k.expires_at > :now, 1) AS serves,
           (SELECT max(coalesce(1000 * (w.reserved + w.settled)
                                / (k.policy ->> ('$.caps.daily.' || w.currency)), 0))
              FROM windows AS w
             WHERE w.start = :day AND w.scope = 'key' AND w.scope_id = k.lineage_id
               AND w.window = 'day' AND w.currency > '' AND w.reserved + w.settled > 0) AS of_day,
           (SELECT max(coalesce(1000 * (w.reserved + w.settled)
                                / (k.policy ->> ('$.caps.monthly.' || w.currency)), 0))
              FROM windows AS w
             WHERE w.start = :month AND w.scope = 'key' AND w.scope_id = k.lineage_id
               AND w.window = 'month' AND w.currency > '' AND w.reserved + w.settled > 0) AS of_month
      FROM keys AS k WHERE k.rotated_to IS NULL
)
SELECT id FROM held
 ORDER BY max(coalesce(of_day, -1), coalesce(of_month, -1)) DESC, serves DESC, id LIMIT :most

-- name: keys_by_id
SELECT k.*, l.frozen_at AS lineage_frozen_at, l.frozen_reason AS lineage_frozen_reason
  FROM keys AS k JOIN lineages AS l ON l.id = k.lineage_id
 WHERE k.id IN (SELECT value FROM json_each(:ids)) ORDER BY k.created_at, k.id

-- name: key_page
-- Ids are sorted, not whole keys: their policies are long. A freeze is looked up only where a
-- status is asked for.
WITH page AS MATERIALIZED (
    SELECT k.id FROM keys AS k
     WHERE (:after IS NULL
            OR (k.created_at, k.id) < (SELECT created_at, id FROM keys WHERE id = :after))
       AND (:text IS NULL OR k.id = :text OR instr(lower(k.label), lower(:text))
            OR instr(lower(k.agent), lower(:text)) OR instr(lower(k.role), lower(:text)))
       AND (:status IS NULL
            OR :status = CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked'
                              WHEN k.expires_at <= :now THEN 'expired'
                              WHEN (SELECT l.frozen_at FROM lineages AS l
                                     WHERE l.id = k.lineage_id) IS NOT NULL THEN 'frozen'
                              ELSE 'active' END)
     ORDER BY k.created_at DESC, k.id DESC LIMIT :most
)
SELECT k.*, l.frozen_at AS lineage_frozen_at, l.frozen_reason AS lineage_frozen_reason
  FROM page CROSS JOIN keys AS k ON k.id = page.id JOIN lineages AS l ON l.id = k.lineage_id
 ORDER BY k.created_at DESC, k.id DESC

-- name: spend_of_keys
WITH spans AS (SELECT 'day' AS window, :day AS start UNION ALL SELECT 'month', :month)
SELECT k.id, k.lineage_id, k.policy -> '$.caps' AS caps, k.revoked_at, k.expires_at,
       s.window, s.start, w.currency, w.reserved, w.settled
  FROM json_each(:ids) AS wanted CROSS JOIN keys AS k ON k.id = wanted.value CROSS JOIN spans AS s
       LEFT JOIN windows AS w
    ON w.scope = 'key' AND w.scope_id = k.lineage_id AND w.window = s.window
       AND w.start = s.start AND w.currency > ''

-- name: caps_of_keys
SELECT k.id, k.lineage_id, k.policy -> '$.caps' AS caps, k.rotated_to IS NOT NULL AS rotated
  FROM keys AS k ORDER BY k.created_at, k.id

-- name: held_of_keys
WITH spans AS (SELECT 'day' AS window, :day AS start UNION ALL SELECT 'month', :month)
SELECT w.scope_id, w.window, w.currency, w.reserved, w.settled
  FROM spans AS s CROSS JOIN windows AS w
    ON w.start = s.start AND w.scope = 'key' AND w.window = s.window AND w.currency > ''

-- name: count_stopped
INSERT INTO stopped (start, window, key_id, agent_id, why, kind, currency, calls, amount)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE
   SET calls = calls + excluded.calls, amount = amount + excluded.amount

-- name: stopped_on
SELECT s.start, s.why, s.kind, s.currency, s.calls, s.amount
  FROM json_each(:ids) AS days CROSS JOIN stopped AS s
    ON s.start = days.value AND s.window = 'day' AND s.key_id = ''

-- name: stopped_most
-- Those of one day or month that were stopped most often, by an index: however many there are.
SELECT key_id, agent_id, why, kind, currency, calls, amount FROM stopped
 WHERE start = :start AND window = :window AND key_id <> ''
 ORDER BY calls DESC LIMIT :most

-- name: newest_row
SELECT max(rowid) AS row FROM audit

-- name: audit_counts
-- The last row that is counted comes by itself, without a kind.
WITH news AS MATERIALIZED (
    SELECT rowid AS place, kind, decision, code FROM audit
     WHERE rowid > :after ORDER BY rowid LIMIT :most
)
SELECT kind, decision, code, count(*) AS count, NULL AS row FROM news GROUP BY 1, 2, 3
 UNION ALL SELECT NULL, NULL, NULL, 0, max(place) FROM news HAVING count(*) > 0
