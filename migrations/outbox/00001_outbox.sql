-- +goose Up

-- The outbox: rows are only ever inserted. A relay reads them by snapshot difference, so nothing is updated or deleted
-- message by message; retention empties a whole slot at a time.
CREATE TABLE outbox (
    seq       bigint GENERATED ALWAYS AS IDENTITY (CACHE 1), -- order within a key needs CACHE 1: the relay checks it at start
    slot      smallint NOT NULL DEFAULT ((extract(epoch FROM clock_timestamp())::bigint / 86400) % 16),
    xid       xid8     NOT NULL DEFAULT pg_current_xact_id(),
    id        uuid     NOT NULL,
    source    text     NOT NULL,
    topic     text     NOT NULL, -- the event's type, and the subject it is published to
    key       text     NOT NULL, -- events of one key keep their order
    version   bigint   NOT NULL, -- of the aggregate that the key names; 0: it has none
    tenant_id text     NOT NULL,
    time      timestamptz NOT NULL DEFAULT clock_timestamp(),
    headers   jsonb    NOT NULL,
    payload   bytea    NOT NULL
) PARTITION BY LIST (slot);

-- The order of a round.
CREATE INDEX outbox_seq ON outbox (seq);
-- The bounds of a round, and the rows of transactions that were still open at the tick before it.
CREATE INDEX outbox_xid_seq ON outbox (xid, seq);

-- A tick is a stored snapshot; a round is what is visible in a tick and was not in the one before (prev).
-- The table is its own fence: the ring's slot is a function of n, so that two relays that write the same n collide on the
-- primary key, whatever their clocks say.
CREATE TABLE outbox_tick (
    cursor     text        NOT NULL,
    n          bigint      NOT NULL,
    epoch      bigint      NOT NULL,
    prev       pg_snapshot,          -- NULL in the first
    snap       pg_snapshot NOT NULL,
    stream_seq bigint      NOT NULL, -- the log's last sequence when the tick was taken
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    slot       smallint    NOT NULL CHECK (slot = (n >> 16) & 15),
    PRIMARY KEY (slot, cursor, n)
) PARTITION BY LIST (slot);

-- How far a relay is: of the rounds before n everything, and of round n everything up to seq, stands in the log at or below
-- stream_seq. Each takeover raises epoch, which guards each write; holder and lease_until say who may publish.
CREATE TABLE outbox_cursor (
    name           text PRIMARY KEY,
    topics         text        NOT NULL DEFAULT '', -- a regular expression; '' is all of them
    cluster        text        NOT NULL DEFAULT '', -- the identity of the cluster whose transaction ids the ticks are of
    epoch          bigint      NOT NULL DEFAULT 0,
    n              bigint      NOT NULL DEFAULT 1,
    seq            bigint      NOT NULL DEFAULT 0,
    stream_seq     bigint      NOT NULL DEFAULT 0,
    stream_created timestamptz,         -- another one means: the stream was lost and made anew
    holder         text        NOT NULL DEFAULT '',
    lease_until    timestamptz NOT NULL DEFAULT '-infinity',
    saved_at       timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

-- Rows that the log can never hold, each a copy: retention does not wait for them. One that was sent again or given up stays
-- until it is as old as retention, so that a relay that goes back passes it by.
CREATE TABLE outbox_parked (
    cursor     text        NOT NULL,
    seq        bigint      NOT NULL,
    id         uuid        NOT NULL,
    source     text        NOT NULL,
    topic      text        NOT NULL,
    key        text        NOT NULL,
    version    bigint      NOT NULL,
    tenant_id  text        NOT NULL,
    time       timestamptz NOT NULL,
    headers    jsonb       NOT NULL,
    payload    bytea       NOT NULL,
    reason     text        NOT NULL,
    parked_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    waits      boolean     NOT NULL DEFAULT false, -- for one of its key before it
    outcome    text        NOT NULL DEFAULT '', -- 'retry' and 'drop' ask the relay, which makes them 'retried' and 'dropped'
    stream_seq bigint      NOT NULL DEFAULT 0, -- the log's last sequence when it was retried
    PRIMARY KEY (cursor, seq)
);

-- Events that are not to be sent before some time. When it has come the relay makes ordinary rows of them.
CREATE TABLE outbox_delayed (
    n          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    not_before timestamptz NOT NULL,
    id         uuid        NOT NULL,
    source     text        NOT NULL,
    topic      text        NOT NULL,
    key        text        NOT NULL,
    version    bigint      NOT NULL,
    tenant_id  text        NOT NULL,
    headers    jsonb       NOT NULL,
    payload    bytea       NOT NULL
);
CREATE INDEX outbox_delayed_not_before ON outbox_delayed (not_before, n);

-- All slots exist from the start: an insert always has a home, whatever maintenance ran or did not.
-- +goose StatementBegin
DO $$
BEGIN
    FOR i IN 0..15 LOOP
        EXECUTE format('CREATE TABLE outbox_%s PARTITION OF outbox FOR VALUES IN (%s)', i, i);
        EXECUTE format('CREATE TABLE outbox_tick_%s PARTITION OF outbox_tick FOR VALUES IN (%s)', i, i);
    END LOOP;
END
$$;
-- +goose StatementEnd
