-- Named queries that PostgreSQL needs in words of its own: locks, the fence, and how a batch is
-- loaded. What both stores share is in ../queries.sql.

-- name: fence
-- Locks this process's own row: nobody else wants it but a later self that asks what committed.
SELECT token FROM flushes WHERE node = :node FOR UPDATE

-- name: make_guards
INSERT INTO guards (kind, value)
SELECT kind, value FROM unnest(:kinds::smallint[], :values::text[]) AS wanted (kind, value)
 ORDER BY kind, value COLLATE "C"
    ON CONFLICT DO NOTHING

-- name: lock_guards
-- Locked in the order in which they are sorted: one order for every process on the store.
SELECT guards.kind
  FROM guards JOIN unnest(:kinds::smallint[], :values::text[]) AS wanted (kind, value)
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

-- name: wanted
-- The operations that a batch needs: by name, by id, by guard, and the last decline of each tally.
WITH wanted AS (
    SELECT DISTINCT ON (name) id FROM (
        SELECT id, name, generation FROM operations WHERE name = ANY(:names::text[])) AS named
     ORDER BY name, generation DESC
), chosen AS (
    SELECT id FROM wanted
    UNION SELECT o.id FROM wanted JOIN operations o ON o.successor = wanted.id
    UNION SELECT unnest(:ids::text[])
    UNION SELECT operation_id FROM caller_keys WHERE key = ANY(:caller_keys::text[])
    UNION SELECT last_operation FROM tallies WHERE key = ANY(:tallies::text[])
    UNION SELECT o.id
      FROM unnest(:period_customers::text[], :references::text[], :first_labels::text[],
                  :after_labels::text[], :starts::text[], :ends::text[])
           AS p (customer, reference, first_label, after_label, first_day, last_day)
      JOIN operations o ON o.customer = p.customer AND o.period >= p.first_label
           AND o.period < p.after_label AND coalesce(o.reference, '') = p.reference
     WHERE o.state IN ('reserved', 'unknown', 'succeeded', 'voided')
       AND o.period_start <= p.last_day AND o.period_end >= p.first_day
    UNION SELECT o.id
      FROM unnest(:customers::text[], :amounts::bigint[], :currencies::text[],
                  :sinces::bigint[])
           AS b (customer, amount, currency, since)
      JOIN operations o ON o.customer = b.customer AND o.amount = b.amount
           AND o.currency = b.currency
     WHERE o.state IN ('reserved', 'unknown', 'succeeded', 'voided')
       AND (o.first_arrival_at > b.since OR o.state <> 'succeeded'
            -- adopted without a period: it may be a bill of any of those days
            OR (o.period IS NULL AND o.period_start IS NOT NULL))
    UNION SELECT o.id FROM operations o WHERE o.gives_back = ANY(:charges::text[])
)

-- name: operations
-- Follows `wanted`.
SELECT o.* FROM operations o JOIN chosen ON o.id = chosen.id

-- name: attempts
-- Follows `wanted`.
SELECT a.* FROM attempts a JOIN chosen ON a.operation_id = chosen.id

-- name: windows
SELECT w.*
  FROM windows w JOIN unnest(:scopes::text[], :scope_ids::text[], :kinds::text[], :starts::text[],
               :currencies::text[])
       AS k (scope, scope_id, "window", start, currency)
    ON w.scope = k.scope AND w.scope_id = k.scope_id AND w."window" = k."window"
       AND w.start = k.start AND w.currency = k.currency

-- name: raise_high_water
-- Another process may be ahead of us: time never runs back.
INSERT INTO facts (name, value) VALUES ('high_water_ms', :value)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value
 WHERE facts.value::bigint < excluded.value::bigint

-- name: set_token
UPDATE flushes SET token = :token WHERE node = :node

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

-- name: fullest_keys
-- By thousandths of a cap that are held, the fuller of day and month. Without a cap that is nothing,
-- and a key that holds nothing at all comes after those. Materialized, so that each policy is read
-- once, and the windows of both days in one go.
WITH standing AS MATERIALIZED (
    SELECT id, lineage_id, policy::json -> 'caps' AS caps,
           revoked_at IS NULL AND coalesce(expires_at > :now, true) AS serves
      FROM keys WHERE rotated_to IS NULL
), held AS MATERIALIZED (
    SELECT w.scope_id, w.currency, s.caps, w.reserved + w.settled AS amount
      FROM (VALUES ('day', :day::text, 'daily'), ('month', :month::text, 'monthly'))
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
 ORDER BY trunc(coalesce(s.share, -1)) DESC, k.serves DESC, k.id COLLATE "C" LIMIT :most

-- name: newest_row
SELECT time || '|' || node || '|' || lpad(seq::text, 12, '0') AS row FROM audit
 ORDER BY time COLLATE "C" DESC, node COLLATE "C" DESC, seq DESC LIMIT 1

-- name: audit_counts
-- The last row that is counted comes by itself, without a kind.
WITH news AS MATERIALIZED (
    SELECT time, node, seq, kind, decision, code FROM audit
     WHERE (time COLLATE "C", node COLLATE "C", seq)
           > (:time::text, :node::text, :seq::bigint)
     ORDER BY time COLLATE "C", node COLLATE "C", seq LIMIT :most
)
SELECT kind, decision, code, count(*) AS count, NULL AS row FROM news GROUP BY 1, 2, 3
 UNION ALL (
SELECT NULL, NULL, NULL, 0, time || '|' || node || '|' || lpad(seq::text, 12, '0') FROM news
 ORDER BY time COLLATE "C" DESC, node COLLATE "C" DESC, seq DESC LIMIT 1)
