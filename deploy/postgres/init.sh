#!/bin/sh
# Runs once, when the volume is empty: for each service a database and three roles. The owner migrates and does nothing else; the
# app serves and the relay relays, with the rights that the migration gives them (migrations/grants). No role can connect to
# another service's database (the profile demo adds one that reads both). The passwords are in files, one for each role.
set -eu
export SECRETS="${SECRETS:-/run/secrets}"
psql --no-psqlrc --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
\set orders_owner `cat "$SECRETS/orders-owner"`
\set orders_app `cat "$SECRETS/orders-app"`
\set orders_relay `cat "$SECRETS/orders-relay"`
\set billing_owner `cat "$SECRETS/billing-owner"`
\set billing_app `cat "$SECRETS/billing-app"`
\set billing_relay `cat "$SECRETS/billing-relay"`
CREATE ROLE orders_owner LOGIN PASSWORD :'orders_owner';
CREATE ROLE orders_app LOGIN PASSWORD :'orders_app';
CREATE ROLE orders_relay LOGIN PASSWORD :'orders_relay';
CREATE ROLE billing_owner LOGIN PASSWORD :'billing_owner';
CREATE ROLE billing_app LOGIN PASSWORD :'billing_app';
CREATE ROLE billing_relay LOGIN PASSWORD :'billing_relay';
CREATE DATABASE orders OWNER orders_owner;
CREATE DATABASE billing OWNER billing_owner;
REVOKE CONNECT, TEMPORARY ON DATABASE postgres, template1, orders, billing FROM PUBLIC;
GRANT CONNECT ON DATABASE orders TO orders_app, orders_relay;
GRANT CONNECT ON DATABASE billing TO billing_app, billing_relay;
SQL
