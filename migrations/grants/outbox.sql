-- Events come from the service, in its transactions; what a row's seq, slot, xid and time are is the database's to say. A
-- foreign xid would be a row that no relay ever sees. Nobody changes or reads one but the relay.
GRANT INSERT (id, source, topic, key, version, tenant_id, headers, payload) ON outbox TO :"app";
GRANT INSERT (not_before, id, source, topic, key, version, tenant_id, headers, payload) ON outbox_delayed TO :"app";

GRANT SELECT ON outbox, outbox_tick, outbox_cursor TO :"relay";
-- How far seq has come, for what compares the outbox with inboxes.
GRANT SELECT ON SEQUENCE outbox_seq_seq TO :"relay";
-- What is due, and what is sent once more, become new rows: of its own xid, like any other.
GRANT INSERT (id, source, topic, key, version, tenant_id, time, headers, payload) ON outbox TO :"relay";
GRANT SELECT, UPDATE, DELETE ON outbox_delayed TO :"relay";
GRANT INSERT ON outbox_tick TO :"relay";
GRANT INSERT, UPDATE ON outbox_cursor TO :"relay";
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_parked TO :"relay";

-- Retention empties a slot at a time.
GRANT SELECT, TRUNCATE ON
    outbox_0, outbox_1, outbox_2, outbox_3, outbox_4, outbox_5, outbox_6, outbox_7,
    outbox_8, outbox_9, outbox_10, outbox_11, outbox_12, outbox_13, outbox_14, outbox_15,
    outbox_tick_0, outbox_tick_1, outbox_tick_2, outbox_tick_3, outbox_tick_4, outbox_tick_5, outbox_tick_6, outbox_tick_7,
    outbox_tick_8, outbox_tick_9, outbox_tick_10, outbox_tick_11, outbox_tick_12, outbox_tick_13, outbox_tick_14, outbox_tick_15
    TO :"relay";
