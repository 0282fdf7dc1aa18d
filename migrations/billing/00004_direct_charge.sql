-- +goose Up

-- A direct charge is asked for over HTTP and is of no order. Its key is the guard for a store of keys that may forget. The index
-- has no entry for the charges of orders.
ALTER TABLE charge
    ALTER COLUMN order_id DROP NOT NULL,
    ADD COLUMN description  text NOT NULL DEFAULT '',
    ADD COLUMN ref_id       text,  -- what the client calls it: the same as its key, and kept for good
    ADD COLUMN idem_key     bytea, -- SHA-256 of the Idempotency-Key
    ADD COLUMN idem_request bytea; -- SHA-256 of the request that came with it, and its sender
CREATE UNIQUE INDEX charge_idem_key ON charge (tenant_id, idem_key) WHERE idem_key IS NOT NULL;
