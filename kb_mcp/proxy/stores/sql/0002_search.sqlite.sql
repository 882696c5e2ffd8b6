-- What operators search by, over millions of rows. A charge pays for an index only where it has the
-- value: most rows have no session, and an operation leaves operations_unfinished as it succeeds.

CREATE INDEX audit_by_agent ON audit (agent_id, time) WHERE agent_id IS NOT NULL;
CREATE INDEX audit_by_session ON audit (session_id, time) WHERE session_id IS NOT NULL;
CREATE INDEX operations_by_period_alone ON operations (period, created_at)
    WHERE period IS NOT NULL;
CREATE INDEX operations_unfinished ON operations (state, created_at) WHERE state <> 'succeeded';
CREATE INDEX windows_by_start ON windows (start, scope);
