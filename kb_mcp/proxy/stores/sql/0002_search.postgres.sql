-- What operators search by, over millions of rows. A charge pays for an index only where it has the
-- value: most rows have no session, and an operation leaves operations_unfinished as it succeeds.
-- The audit is read in the order of its times as bytes, whatever the collation of the database is:
-- only an index of that order gives the newest rows without sorting all of them.

DROP INDEX audit_by_time;
DROP INDEX audit_by_key;
DROP INDEX audit_by_customer;
DROP INDEX audit_by_code;
CREATE INDEX audit_by_time ON audit (time COLLATE "C", node COLLATE "C", seq);
CREATE INDEX audit_by_key ON audit (key_id, time COLLATE "C");
CREATE INDEX audit_by_customer ON audit (customer_id, time COLLATE "C")
    WHERE customer_id IS NOT NULL;
CREATE INDEX audit_by_code ON audit (code, time COLLATE "C") WHERE code IS NOT NULL;
CREATE INDEX audit_by_agent ON audit (agent_id, time COLLATE "C") WHERE agent_id IS NOT NULL;
CREATE INDEX audit_by_session ON audit (session_id, time COLLATE "C") WHERE session_id IS NOT NULL;
CREATE INDEX operations_by_period_alone ON operations (period, created_at)
    WHERE period IS NOT NULL;
CREATE INDEX operations_unfinished ON operations (state, created_at) WHERE state <> 'succeeded';
CREATE INDEX windows_by_start ON windows (start, scope);
