#!/bin/sh
# For docker compose --profile demo, as often as it comes up: the role of the demo's page, with a database for its naive ledger. The role
# reads what the services hold and can put an event into the outbox of orders; it changes nothing else of theirs.
set -eu
export SECRETS="${SECRETS:-/run/secrets}" PGHOST="${PGHOST:-postgres}" PGUSER=postgres
(umask 077 && printf '*:*:*:postgres:%s\n' "$(cat "$SECRETS/postgres")" >"$PGPASSFILE")
query() { psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname "$1"; }
query postgres <<'SQL'
\set password `cat "$SECRETS/demo"`
SELECT 'CREATE ROLE demo LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'demo') \gexec
ALTER ROLE demo PASSWORD :'password';
SELECT 'CREATE DATABASE demo OWNER demo' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'demo') \gexec
REVOKE CONNECT, TEMPORARY ON DATABASE demo FROM PUBLIC;
GRANT CONNECT ON DATABASE orders, billing TO demo;
SQL
for service in orders billing; do
  query "$service" <<'SQL'
GRANT USAGE ON SCHEMA public, oncebox TO demo;
GRANT SELECT ON ALL TABLES IN SCHEMA public, oncebox TO demo;
SQL
done
query orders <<'SQL'
GRANT INSERT (id, source, topic, key, version, tenant_id, headers, payload) ON oncebox.outbox TO demo;
SQL
