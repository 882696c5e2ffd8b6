#!/bin/sh
# Run once by the postgres image on an empty volume: the database and both roles.
set -eu
KEYBRAKE_OWNER_PASSWORD=$(cat /secrets/owner_password)
KEYBRAKE_PROXY_PASSWORD=$(cat /secrets/proxy_password)
export KEYBRAKE_OWNER_PASSWORD KEYBRAKE_PROXY_PASSWORD
psql -v ON_ERROR_STOP=1 -U postgres -d postgres -f /keybrake/roles.sql
