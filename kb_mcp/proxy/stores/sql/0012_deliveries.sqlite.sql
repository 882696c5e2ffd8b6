-- How often each alert was sent, and each way of it: these were kept among the declines.

CREATE TABLE deliveries (
    key            TEXT PRIMARY KEY,
    tries          INTEGER NOT NULL,
    last_tried_at  INTEGER NOT NULL       -- ms UTC
) STRICT, WITHOUT ROWID;
-- What counts declines names the operation that was declined last.
INSERT INTO deliveries SELECT key, declines, last_declined_at FROM tallies
 WHERE key LIKE 'alert|%' AND last_operation IS NULL;
DELETE FROM tallies WHERE key LIKE 'alert|%' AND last_operation IS NULL;
