-- +goose Up

CREATE TABLE orders (
    tenant_id       text        NOT NULL,
    id              uuid        NOT NULL, -- version 7: by time
    customer_id     text        NOT NULL,
    amount          bigint      NOT NULL CHECK (amount > 0), -- minor units: cents, yen
    currency        text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    description     text        NOT NULL,
    status          text        NOT NULL CHECK (status IN ('pending', 'paid', 'declined', 'cancelled', 'refunded')),
    version         bigint      NOT NULL CHECK (version > 0), -- raised by each change, under the row's lock
    -- The version up to which billing has had its say: its answers to this one, or to an earlier one, change nothing.
    settled_version bigint      NOT NULL DEFAULT 0 CHECK (settled_version <= version),
    charge_id       uuid,
    decline_reason  text,
    idem_key        bytea,      -- SHA-256 of the Idempotency-Key
    idem_fingerprint bytea,     -- SHA-256 of the request that came with it
    -- What the order was made with, once that was changed: a retry under the key is answered as the first time.
    made_customer_id text,
    made_description text,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    deleted_at      timestamptz,
    purge_at        timestamptz,
    -- What the deletion was answered with; a refund comes later.
    deleted_status  text,
    deleted_version bigint,
    PRIMARY KEY (tenant_id, id),
    CONSTRAINT orders_idem_key UNIQUE (tenant_id, idem_key),
    CHECK ((idem_key IS NULL) = (idem_fingerprint IS NULL)),
    CHECK (num_nulls(deleted_at, purge_at, deleted_status, deleted_version) IN (0, 4)),
    CHECK (status <> 'pending' OR deleted_at IS NULL)
);

-- A page of one status. The pages of all are in the primary key's order.
CREATE INDEX orders_status ON orders (tenant_id, status, id);
CREATE INDEX orders_purge ON orders (purge_at) WHERE purge_at IS NOT NULL;
