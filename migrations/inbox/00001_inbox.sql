-- +goose Up

-- One row for each message that a consumer has met, written in the transaction of its effect. The primary key is what makes a
-- redelivery a no-op.
CREATE TABLE inbox (
    consumer    text     NOT NULL,
    source      text     NOT NULL,
    id          uuid     NOT NULL, -- the message's id; of one that is no UUID, a UUID made from it
    tenant_id   text     NOT NULL,
    seq         bigint   NOT NULL, -- the producer's outbox row, 0 when unknown: what producer and consumer compare by
    digest      bigint   NOT NULL, -- of type and payload: the same id with other content is a conflict, not a redelivery
    -- 'started': tried or held, not done. 'intent': the outside world may have been called.
    state       text     NOT NULL CHECK (state IN ('started', 'intent', 'done', 'dead')),
    crashes     integer  NOT NULL DEFAULT 0, -- attempts that began and never ended
    owner       uuid,              -- who is at it: in state 'started' an attempt, in 'intent' a call of the outside world
    lease_until timestamptz,       -- in state 'intent': until when owner may be calling
    held_since  timestamptz,       -- since when it waits for its predecessor
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, source, id)
);

-- How far a consumer that handles in order has come with each key.
CREATE TABLE inbox_position (
    consumer text   NOT NULL,
    source   text   NOT NULL,
    key      text   NOT NULL,
    version  bigint NOT NULL,
    PRIMARY KEY (consumer, source, key)
);

-- Since when a consumer's inbox has a row for everything that it handled. Moved forward before anything is pruned.
CREATE TABLE inbox_retention (
    consumer       text        PRIMARY KEY,
    complete_since timestamptz NOT NULL
);

-- Messages that can never be handled, as they came. Written in one transaction with their inbox row. A row that is 'dead' is
-- the lock and the state of its retry.
CREATE TABLE dead_letter (
    n          bigint GENERATED ALWAYS AS IDENTITY UNIQUE, -- the order in which they died, and their name for an operator
    consumer   text   NOT NULL,
    source     text   NOT NULL,
    id         uuid   NOT NULL,
    tenant_id  text   NOT NULL,
    message_id text   NOT NULL, -- the id as it was sent
    topic      text   NOT NULL,
    key        text   NOT NULL,
    version    bigint NOT NULL,
    seq        bigint NOT NULL,
    class      text   NOT NULL, -- one of the inbox's own, such as 'undecodable', or the handler's word
    reason     text   NOT NULL,
    attempts   integer NOT NULL, -- deliveries before it died, and retries since
    state      text   NOT NULL DEFAULT 'dead' CHECK (state IN ('dead', 'retried', 'dropped')),
    holds_key  boolean NOT NULL DEFAULT false, -- while it is dead, later messages of its key go behind it
    headers    jsonb  NOT NULL,
    payload    bytea  NOT NULL,
    first_seen timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, source, id)
);

-- The keys that wait.
CREATE INDEX dead_letter_holds ON dead_letter (consumer, key, source) WHERE holds_key AND state = 'dead';
