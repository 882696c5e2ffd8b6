-- The database and both of its roles, made once by an administrator:
--
--   export KEYBRAKE_OWNER_PASSWORD=… KEYBRAKE_PROXY_PASSWORD=…
--   psql -v ON_ERROR_STOP=1 -f deploy/postgres/roles.sql "host=… user=postgres dbname=postgres"
--   KEYBRAKE_DATABASE_URL=postgresql://keybrake_owner:…@…/keybrake kb-mcp migrate --grant-to keybrake_proxy
--
-- The owner migrates and archives, and is used for nothing else. The proxy's role is what serving
-- processes and commands use: it adds to the audit and can neither alter nor delete what is there.
-- What it may do exactly stands in kb_mcp/proxy/stores/postgres/grants.sql.

\getenv owner_password KEYBRAKE_OWNER_PASSWORD
\getenv proxy_password KEYBRAKE_PROXY_PASSWORD

CREATE ROLE keybrake_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE keybrake_proxy LOGIN PASSWORD :'proxy_password' CONNECTION LIMIT 200;
CREATE DATABASE keybrake;
REVOKE ALL ON DATABASE keybrake FROM PUBLIC;
GRANT CONNECT ON DATABASE keybrake TO keybrake_owner, keybrake_proxy;

\connect keybrake
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO keybrake_owner WITH GRANT OPTION;
