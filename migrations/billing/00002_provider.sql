-- +goose Up

-- A charge at a payment provider is 'pending' from before the provider is asked until its answer is written.
-- The rows there passed the narrower check: looking at each again would only hold the table's lock for long.
ALTER TABLE charge
    ADD COLUMN provider_charge text, -- the provider's id of it
    DROP CONSTRAINT charge_status_check,
    ADD CONSTRAINT charge_status_check CHECK (status IN ('pending', 'succeeded', 'declined', 'refunded', 'cancelled')) NOT VALID;
