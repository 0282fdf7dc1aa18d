-- +goose Up

-- The order first. While the table is young and its statistics say nothing, the planner takes an index that begins with the
-- tenant for a look-up by any other column too, and walks all charges of the tenant: for each row of the ledger, since its
-- foreign key is looked up so. The constraint keeps its name, by which ON CONFLICT knows it. Writes wait while the index is
-- built, reads do not.
CREATE UNIQUE INDEX charge_order_first ON charge (order_id, tenant_id);
ALTER TABLE charge
    DROP CONSTRAINT charge_order_id,
    ADD CONSTRAINT charge_order_id UNIQUE USING INDEX charge_order_first;
