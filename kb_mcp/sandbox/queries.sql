-- name: put_object
INSERT INTO objects (kind, id, body) VALUES (?, ?, ?)
ON CONFLICT (id) DO UPDATE SET body = excluded.body;
-- name: remove_object
DELETE FROM objects WHERE id = ? AND kind = ?;
-- name: get_object
SELECT body FROM objects WHERE id = ? AND kind = ?;
-- name: get_key
SELECT * FROM keys WHERE key = ?;
-- name: put_key
INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?);
-- name: free_key
UPDATE keys SET busy_until_ms = 0 WHERE key = ? AND request_id = ?;
-- name: expire_keys
DELETE FROM keys WHERE created_ms <= ?;
-- name: put_fault
INSERT INTO faults (match, kind, times, delay_ms) VALUES (?, ?, ?, ?);
-- name: all_faults
SELECT seq, kind, match, times, delay_ms / 1000.0 FROM faults ORDER BY seq;
-- name: spend_fault
UPDATE faults SET times = times - 1 WHERE seq = ? AND times > 1;
-- name: end_fault
DELETE FROM faults WHERE seq = ?;
-- name: get_number
SELECT value FROM numbers WHERE name = ?;
-- name: add_number
UPDATE numbers SET value = value + ? WHERE name = ?;
-- name: put_request
INSERT INTO requests (method, path, idempotency_key, customer, status) VALUES (?, ?, ?, ?, ?);
-- name: trim_requests
DELETE FROM requests WHERE seq <= last_insert_rowid() - ?;
-- name: all_requests
SELECT method, path, idempotency_key, customer, status FROM requests ORDER BY seq;
