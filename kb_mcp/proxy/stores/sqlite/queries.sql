-- Named queries that SQLite needs in words of its own; what both stores share is in ../queries.sql.
-- CROSS JOIN keeps SQLite from walking a table where a list, a JSON array, is short.

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

-- name: windows
SELECT w.*
  FROM json_each(:ids) AS k CROSS JOIN windows AS w
    ON w.scope = k.value ->> 0 AND w.scope_id = k.value ->> 1 AND w.window = k.value ->> 2
       AND w.start = k.value ->> 3 AND w.currency = k.value ->> 4

-- name: deciding_facts
-- What every decision depends on, whatever it is about, and why nothing may be sent.
SELECT name, value FROM facts
 WHERE name IN ('high_water_ms', 'clock_boot', 'clock_confirmed', 'clock_doubt',
                'ceilings', 'refund_ceilings', 'recovery_grace_ms', 'gap', 'moved_to')

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

-- name: newest_row
SELECT max(rowid) AS row FROM audit

-- name: audit_counts
-- The last row that is counted comes by itself, without a kind.
WITH news AS MATERIALIZED (
    SELECT rowid AS place, kind, decision, code FROM audit
     WHERE rowid > :rowid ORDER BY rowid LIMIT :most
)
SELECT kind, decision, code, count(*) AS count, NULL AS row FROM news GROUP BY 1, 2, 3
 UNION ALL SELECT NULL, NULL, NULL, 0, max(place) FROM news HAVING count(*) > 0
