-- Named queries of the PostgreSQL store: "-- name: x" begins one, it ends at the next name.
-- Lists arrive as arrays, so that one statement serves a batch of any size.

-- name: fence
-- Locks this process's own row: nobody else wants it but a later self that asks what committed.
SELECT token FROM flushes WHERE node = %s FOR UPDATE

-- name: make_guards
INSERT INTO guards (kind, value)
SELECT kind, value FROM unnest(%s::smallint[], %s::text[]) AS wanted (kind, value)
 ORDER BY kind, value COLLATE "C"
    ON CONFLICT DO NOTHING

-- name: lock_guards
-- Locked in the order in which they are sorted: one order for every process on the store.
SELECT guards.kind
  FROM guards JOIN unnest(%s::smallint[], %s::text[]) AS wanted (kind, value)
    ON guards.kind = wanted.kind AND guards.value = wanted.value COLLATE "C"
 ORDER BY guards.kind, guards.value
   FOR UPDATE OF guards

-- name: clock
-- After the locks: clock_timestamp() says when we got them, now() only when we began to wait.
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms,
       (SELECT value FROM facts WHERE name = 'high_water_ms') AS high_water_ms,
       (SELECT value FROM facts WHERE name = 'clock_boot') AS clock_boot,
       (SELECT value FROM facts WHERE name = 'clock_confirmed') AS clock_confirmed,
       (SELECT value FROM facts WHERE name = 'clock_doubt') AS clock_doubt,
       (SELECT value FROM facts WHERE name = 'ceilings') AS ceilings,
       (SELECT value FROM facts WHERE name = 'refund_ceilings') AS refund_ceilings,
       (SELECT value FROM facts WHERE name = 'recovery_grace_ms') AS recovery_grace_ms,
       (SELECT value FROM facts WHERE name = 'gap') AS gap,
       (SELECT value FROM facts WHERE name = 'moved_to') AS moved_to

-- name: facts
SELECT name, value FROM facts

-- name: known_objects
-- Which of these objects at Stripe belong to an operation that stands. Attempts know whose an object
-- is, but where the request did not tell an amount.
SELECT a.object_id AS id FROM attempts a JOIN operations o ON o.id = a.operation_id
 WHERE a.object_id = ANY(%(ids)s::text[]) AND a.outcome = 'succeeded' AND o.state = 'succeeded'
 UNION
SELECT object_id FROM operations
 WHERE object_id = ANY(%(ids)s::text[]) AND amount = 0 AND object_id IS NOT NULL
   AND state = 'succeeded'

-- name: known_attempts
SELECT a.upstream_key, a.operation_id, a.outcome, o.state, o.next_read_at
  FROM attempts a JOIN operations o ON o.id = a.operation_id
 WHERE a.upstream_key = ANY(%(ids)s::text[])

-- name: known_lineages
SELECT id FROM lineages WHERE id = ANY(%(ids)s::text[])

-- name: wanted
-- The operations that a batch needs: by name, by id, by guard, and the last decline of each tally.
WITH wanted AS (
    SELECT DISTINCT ON (name) id FROM (
        SELECT id, name, generation FROM operations WHERE name = ANY(%(names)s::text[])) AS named
     ORDER BY name, generation DESC
), chosen AS (
    SELECT id FROM wanted
    UNION SELECT o.id FROM wanted JOIN operations o ON o.successor = wanted.id
    UNION SELECT unnest(%(ids)s::text[])
    UNION SELECT operation_id FROM caller_keys WHERE key = ANY(%(caller_keys)s::text[])
    UNION SELECT last_operation FROM tallies WHERE key = ANY(%(tallies)s::text[])
    UNION SELECT o.id
      FROM unnest(%(period_customers)s::text[], %(references)s::text[], %(first_labels)s::text[],
                  %(after_labels)s::text[], %(starts)s::text[], %(ends)s::text[])
           AS p (customer, reference, first_label, after_label, first_day, last_day)
      JOIN operations o ON o.customer = p.customer AND o.period >= p.first_label
           AND o.period < p.after_label AND coalesce(o.reference, '') = p.reference
     WHERE o.state IN ('reserved', 'unknown', 'succeeded', 'voided')
       AND o.period_start <= p.last_day AND o.period_end >= p.first_day
    UNION SELECT o.id
      FROM unnest(%(customers)s::text[], %(amounts)s::bigint[], %(currencies)s::text[],
                  %(sinces)s::bigint[])
           AS b (customer, amount, currency, since)
      JOIN operations o ON o.customer = b.customer AND o.amount = b.amount
           AND o.currency = b.currency
     WHERE o.state IN ('reserved', 'unknown', 'succeeded', 'voided')
       AND (o.first_arrival_at > b.since OR o.state <> 'succeeded'
            -- adopted without a period: it may be a bill of any of those days
            OR (o.period IS NULL AND o.period_start IS NOT NULL))
    UNION SELECT o.id FROM operations o WHERE o.gives_back = ANY(%(charges)s::text[])
)

-- name: operations
-- Follows `wanted`.
SELECT o.* FROM operations o JOIN chosen ON o.id = chosen.id

-- name: attempts
-- Follows `wanted`.
SELECT a.* FROM attempts a JOIN chosen ON a.operation_id = chosen.id

-- name: windows
SELECT w.*
  FROM windows w JOIN unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[])
       AS k (scope, scope_id, "window", start, currency)
    ON w.scope = k.scope AND w.scope_id = k.scope_id AND w."window" = k."window"
       AND w.start = k.start AND w.currency = k.currency

-- name: tallies
SELECT * FROM tallies WHERE key = ANY(%s::text[])

-- name: caller_keys
SELECT * FROM caller_keys WHERE key = ANY(%s::text[])

-- name: keys
SELECT * FROM keys WHERE id = ANY(%s::text[])

-- name: objects
SELECT object_id, operation_id FROM attempts WHERE object_id = ANY(%s::text[])

-- name: approvals
SELECT * FROM approvals WHERE id = ANY(%s::text[])

-- name: approvals_of
SELECT * FROM approvals WHERE operation_id = ANY(%s::text[])

-- name: grants
SELECT * FROM grants WHERE id = ANY(%s::text[])

-- name: issuers
SELECT * FROM grants WHERE issuer = ANY(%s::text[]) AND removed_at IS NULL
 ORDER BY created_at, id

-- name: lineages
-- With what is counted of each; a lineage without a row (adopted charges) is counted too.
SELECT wanted.id, l.id IS NOT NULL AS known, l.frozen_at, l.frozen_reason,
       (SELECT count(*) FROM operations o
         WHERE o.lineage_id = wanted.id AND o.state = 'unknown') AS unresolved,
       (SELECT count(*) FROM approvals a
         WHERE a.lineage_id = wanted.id AND a.state = 'pending' AND a.expires_at > %(now)s) AS outstanding
  FROM unnest(%(wanted)s::text[]) AS wanted (id) LEFT JOIN lineages l ON l.id = wanted.id

-- name: keys_with_lineages
SELECT k.*, l.frozen_at AS lineage_frozen_at, l.frozen_reason AS lineage_frozen_reason
  FROM keys k JOIN lineages l ON l.id = k.lineage_id
 WHERE k.id = ANY(%s::text[])

-- name: set_fact
INSERT INTO facts (name, value) VALUES (%s, %s)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value

-- name: raise_high_water
-- Another process may be ahead of us: time never runs back.
INSERT INTO facts (name, value) VALUES ('high_water_ms', %s)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value
 WHERE facts.value::bigint < excluded.value::bigint

-- name: set_token
UPDATE flushes SET token = %s WHERE node = %s

-- name: to_recover
-- What recovery looks at: held and nobody's, or due to be read again.
SELECT id FROM (
    SELECT id, updated_at FROM operations WHERE next_read_at <= %(now)s
    UNION ALL
    SELECT id, updated_at FROM operations
     WHERE state = 'reserved' AND state <> 'succeeded' AND next_read_at IS NULL) AS due
 ORDER BY updated_at LIMIT %(limit)s

-- name: refunds_to_watch
SELECT id FROM operations WHERE refund_read_at <= %(now)s
 ORDER BY refund_read_at LIMIT %(limit)s

-- name: answered_before
SELECT id FROM operations
 WHERE created_at < %s AND state = 'succeeded' AND final AND answer IS NOT NULL
 ORDER BY created_at LIMIT %s

-- name: last_node
SELECT position, hash FROM nodes ORDER BY position DESC LIMIT 1

-- name: server
-- The timeline is the first eight hex digits of the name of the file being written.
SELECT current_setting('server_version_num')::int AS version, pg_is_in_recovery() AS standby,
       (SELECT system_identifier FROM pg_control_system())::text AS system_identifier,
       CASE WHEN pg_is_in_recovery() THEN NULL
            ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END AS timeline

-- name: schema
-- Every column of ours that is really there.
SELECT table_name, column_name FROM information_schema.columns
 WHERE table_schema = current_schema()

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
SELECT CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked' WHEN k.expires_at <= %(now)s THEN 'expired'
            WHEN l.frozen_at IS NOT NULL THEN 'frozen' ELSE 'active' END AS status,
       k.rotated_to IS NOT NULL AS rotated, count(*) AS count
  FROM keys k JOIN lineages l ON l.id = k.lineage_id
 GROUP BY 1, 2

-- name: fullest_keys
-- By thousandths of a cap that are held, the fuller of day and month. Without a cap that is nothing,
-- and a key that holds nothing at all comes after those. Materialized, so that each policy is read
-- once, and the windows of both days in one go.
WITH standing AS MATERIALIZED (
    SELECT id, lineage_id, policy::json -> 'caps' AS caps,
           revoked_at IS NULL AND coalesce(expires_at > %(now)s, true) AS serves
      FROM keys WHERE rotated_to IS NULL
), held AS MATERIALIZED (
    SELECT w.scope_id, w.currency, s.caps, w.reserved + w.settled AS amount
      FROM (VALUES ('day', %(day)s::text, 'daily'), ('month', %(month)s::text, 'monthly'))
           AS s ("window", start, caps)
      JOIN windows w
        ON w.scope = 'key' AND w."window" = s."window" AND w.start = s.start
           AND w.currency <> '' AND w.reserved + w.settled > 0
), shares AS (
    SELECT k.id, max(coalesce(1000::numeric * h.amount
                     / nullif((k.caps #>> ARRAY[h.caps, h.currency])::bigint, 0), 0)) AS share
      FROM standing k JOIN held h ON h.scope_id = k.lineage_id GROUP BY k.id
)
SELECT k.id FROM standing k LEFT JOIN shares s ON s.id = k.id
 ORDER BY trunc(coalesce(s.share, -1)) DESC, k.serves DESC, k.id COLLATE "C" LIMIT %(most)s

-- name: keys_by_id
SELECT k.*, l.frozen_at AS lineage_frozen_at, l.frozen_reason AS lineage_frozen_reason
  FROM keys k JOIN lineages l ON l.id = k.lineage_id
 WHERE k.id = ANY(%(ids)s::text[]) ORDER BY k.created_at, k.id COLLATE "C"

-- name: key_page
-- Ids are sorted, not whole keys: their policies are long. Letters are matched in either case where
-- they are ASCII, as SQLite does it.
WITH page AS MATERIALIZED (
    SELECT k.id FROM keys k JOIN lineages l ON l.id = k.lineage_id
     WHERE (%(after)s::text IS NULL
            OR (k.created_at, k.id COLLATE "C")
               < ((SELECT created_at FROM keys WHERE id = %(after)s::text), %(after)s::text))
       AND (%(text)s::text IS NULL OR k.id = %(text)s::text
            OR strpos(lower(k.label COLLATE "C"), lower(%(text)s::text COLLATE "C")) > 0
            OR strpos(lower(k.agent COLLATE "C"), lower(%(text)s::text COLLATE "C")) > 0
            OR strpos(lower(k.role COLLATE "C"), lower(%(text)s::text COLLATE "C")) > 0)
       AND (%(status)s::text IS NULL
            OR %(status)s::text = CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked'
                                       WHEN k.expires_at <= %(now)s THEN 'expired'
                                       WHEN l.frozen_at IS NOT NULL THEN 'frozen'
                                       ELSE 'active' END)
     ORDER BY k.created_at DESC, k.id COLLATE "C" DESC LIMIT %(most)s
)
SELECT k.*, l.frozen_at AS lineage_frozen_at, l.frozen_reason AS lineage_frozen_reason
  FROM page JOIN keys k ON k.id = page.id JOIN lineages l ON l.id = k.lineage_id
 ORDER BY k.created_at DESC, k.id COLLATE "C" DESC

-- name: spend_of_keys
SELECT k.id, k.lineage_id, k.policy::json #>> '{caps}' AS caps, k.revoked_at, k.expires_at,
       s."window", s.start, w.currency, w.reserved, w.settled
  FROM keys k
       CROSS JOIN (VALUES ('day', %(day)s::text), ('month', %(month)s::text))
       AS s ("window", start)
       LEFT JOIN windows w
    ON w.scope = 'key' AND w.scope_id = k.lineage_id AND w."window" = s."window"
       AND w.start = s.start AND w.currency <> ''
 WHERE k.id = ANY(%(ids)s::text[])

-- name: caps_of_keys
SELECT k.id, k.lineage_id, k.policy::json #>> '{caps}' AS caps, k.rotated_to IS NOT NULL AS rotated
  FROM keys k ORDER BY k.created_at, k.id COLLATE "C"

-- name: held_of_keys
SELECT w.scope_id, w."window", w.currency, w.reserved, w.settled
  FROM (VALUES ('day', %(day)s::text), ('month', %(month)s::text)) AS s ("window", start)
  JOIN windows w
    ON w.start = s.start AND w.scope = 'key' AND w."window" = s."window" AND w.currency <> ''

-- name: stopped_on
SELECT start, why, kind, currency, calls, amount FROM stopped
 WHERE start = ANY(%(ids)s::text[]) AND "window" = 'day' AND key_id = ''

-- name: stopped_most
-- Those of one day or month that were stopped most often, by an index: however many there are.
SELECT key_id, agent_id, why, kind, currency, calls, amount FROM stopped
 WHERE start = %(start)s AND "window" = %(window)s AND key_id <> ''
 ORDER BY calls DESC LIMIT %(most)s

-- name: newest_row
SELECT time || '|' || node || '|' || lpad(seq::text, 12, '0') AS row FROM audit
 ORDER BY time COLLATE "C" DESC, node COLLATE "C" DESC, seq DESC LIMIT 1

-- name: audit_counts
-- The last row that is counted comes by itself, without a kind.
WITH news AS MATERIALIZED (
    SELECT time, node, seq, kind, decision, code FROM audit
     WHERE (time COLLATE "C", node COLLATE "C", seq)
           > (%(time)s::text, %(node)s::text, %(seq)s::bigint)
     ORDER BY time COLLATE "C", node COLLATE "C", seq LIMIT %(most)s
)
SELECT kind, decision, code, count(*) AS count, NULL AS row FROM news GROUP BY 1, 2, 3
 UNION ALL (
SELECT NULL, NULL, NULL, 0, time || '|' || node || '|' || lpad(seq::text, 12, '0') FROM news
 ORDER BY time COLLATE "C" DESC, node COLLATE "C" DESC, seq DESC LIMIT 1)
