-- +goose Up

-- Answers are kept in oncebox.idempotency_keys now. What stays here is the guard for a store of keys that may forget:
-- orders_idem_key, and by idem_request whether it is the same request that comes again. The release before compares
-- idem_fingerprint, SHA-256 of the body alone: it is still written, so that a retry may come to either.
ALTER TABLE orders ADD COLUMN idem_request bytea; -- SHA-256 of the request and its sender
