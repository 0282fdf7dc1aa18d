-- +goose Up

-- One row for each request that was answered, written in the transaction of its effect: there is no row of a request that is
-- being worked on. The primary key is what lets only one of two attempts commit.
CREATE TABLE idempotency_keys (
    tenant_id   text        NOT NULL,
    key_hash    bytea       NOT NULL, -- SHA-256 of the Idempotency-Key
    fingerprint bytea       NOT NULL, -- SHA-256 of the request that came with it
    principal   text        NOT NULL, -- who sent it
    method      text        NOT NULL,
    path        text        NOT NULL,
    status      smallint    NOT NULL,
    headers     bytea       NOT NULL, -- those that are given again, as HTTP/1.1 writes them
    body        bytea       NOT NULL, -- as it was sent: jsonb would write it anew
    dropped     boolean     NOT NULL, -- the body was too large to be kept
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz NOT NULL,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (tenant_id, key_hash)
);

CREATE INDEX idempotency_keys_expires_at ON idempotency_keys (expires_at);
