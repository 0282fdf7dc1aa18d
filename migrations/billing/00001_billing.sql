-- +goose Up

CREATE TABLE charge (
    tenant_id   text        NOT NULL,
    id          uuid        NOT NULL,
    order_id    uuid        NOT NULL,
    customer_id text        NOT NULL,
    amount      bigint      NOT NULL CHECK (amount > 0), -- minor units
    currency    text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    -- 'cancelled' is a tombstone: the order was cancelled before its charge was asked for, and nothing is charged any more.
    status      text        NOT NULL CHECK (status IN ('succeeded', 'declined', 'refunded', 'cancelled')),
    reason      text        NOT NULL DEFAULT '', -- why it was declined
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    refunded_at timestamptz CHECK ((refunded_at IS NOT NULL) = (status = 'refunded')),
    PRIMARY KEY (tenant_id, id),
    -- The last guard. The inbox stops a redelivery before it comes here; if this one ever fires, look for the reason.
    CONSTRAINT charge_order_id UNIQUE (tenant_id, order_id)
);

-- Double entry, append-only.
CREATE TABLE ledger (
    tenant_id  text        NOT NULL,
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    charge_id  uuid        NOT NULL,
    kind       text        NOT NULL DEFAULT 'charge' CHECK (kind IN ('charge', 'refund')),
    account    text        NOT NULL, -- 'customer:<id>' or 'revenue'
    amount     bigint      NOT NULL CHECK (amount <> 0), -- minor units; what an account receives is positive
    currency   text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    FOREIGN KEY (tenant_id, charge_id) REFERENCES charge (tenant_id, id),
    -- A charge moves money once, and gives it back once. Also the way to what a charge moved.
    CONSTRAINT ledger_once UNIQUE (tenant_id, charge_id, kind, account)
);

-- An account's pages.
CREATE INDEX ledger_account ON ledger (tenant_id, account, id);

-- The ledger's sum is always zero: the rows that one statement adds sum to zero for each charge, and none is ever changed. This
-- looks at the added rows alone, once for each statement.
-- +goose StatementBegin
CREATE FUNCTION ledger_in_balance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM added GROUP BY tenant_id, charge_id, kind, currency HAVING sum(amount) <> 0) THEN
        RAISE EXCEPTION 'rows added to the ledger do not sum to zero'
            USING ERRCODE = 'check_violation', TABLE = 'ledger', CONSTRAINT = 'ledger_in_balance';
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION ledger_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only: % is refused', TG_OP
        USING ERRCODE = 'check_violation', TABLE = 'ledger', CONSTRAINT = 'ledger_append_only';
END
$$;
-- +goose StatementEnd

CREATE TRIGGER ledger_in_balance AFTER INSERT ON ledger
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION ledger_in_balance();
CREATE TRIGGER ledger_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_append_only();
