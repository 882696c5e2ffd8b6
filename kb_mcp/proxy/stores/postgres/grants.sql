-- What the role of a serving process may do, given by the owner of the tables (`kb-mcp migrate
-- --grant-to ROLE`). {role} and {schema} are quoted names. The audit takes new rows, and gives none
-- back: it cannot be altered, emptied or cut by whoever holds this role.

GRANT USAGE ON SCHEMA {schema} TO {role};
GRANT SELECT, INSERT, UPDATE ON lineages, keys, operations, attempts, windows, tallies, approvals,
    caller_keys, grants, stopped, deliveries, facts, guards, flushes TO {role};
GRANT SELECT, INSERT ON audit, nodes TO {role};
GRANT SELECT, INSERT, DELETE ON operators TO {role};
GRANT SELECT ON schema_versions TO {role};
