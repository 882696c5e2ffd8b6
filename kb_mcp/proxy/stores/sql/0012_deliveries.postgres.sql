-- How often each alert was sent, and each way of it: these were kept among the declines.

CREATE TABLE deliveries (
    key            TEXT PRIMARY KEY,
    tries          BIGINT NOT NULL,
    last_tried_at  BIGINT NOT NULL        -- ms UTC
);
-- What counts declines names the operation that was declined last.
INSERT INTO deliveries SELECT key, declines, last_declined_at FROM tallies
 WHERE key LIKE 'alert|%' AND last_operation IS NULL;
DELETE FROM tallies WHERE key LIKE 'alert|%' AND last_operation IS NULL;
