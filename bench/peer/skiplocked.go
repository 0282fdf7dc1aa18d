package peer

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox"
)

// StatusTable is the outbox of many tutorials: a row has a status, and a partial index finds those that are pending.
const StatusTable = `
	CREATE TABLE outbox_status (
		id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
		message_id uuid NOT NULL,
		topic      text NOT NULL,
		key        text NOT NULL,
		headers    jsonb NOT NULL DEFAULT '{}',
		payload    bytea NOT NULL,
		status     text NOT NULL DEFAULT 'pending',
		created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
		sent_at    timestamptz
	);
	CREATE INDEX outbox_status_pending ON outbox_status (id) WHERE status = 'pending'`

// AddStatus inserts events in one statement.
func AddStatus(ctx context.Context, tx pgx.Tx, events []oncebox.Event) error {
	ids, topics, keys, payloads := make([]string, len(events)), make([]string, len(events)), make([]string, len(events)), make([][]byte, len(events))
	for i, e := range events {
		ids[i], topics[i], keys[i], payloads[i] = e.ID, e.Type, e.Key, e.Data
	}
	_, err := tx.Exec(ctx, `INSERT INTO outbox_status (message_id, topic, key, payload)
		SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[])`, ids, topics, keys, payloads)
	return err
}

const (
	// statusBatch is how many rows are locked at once.
	statusBatch = 100
	statusPoll  = 100 * time.Millisecond
)

// RelayStatus publishes pending rows one at a time and marks them sent, a hundred in a transaction, until ctx is done.
func RelayStatus(ctx context.Context, pool *pgxpool.Pool, nc *nats.Conn) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	for {
		n := 0
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) (err error) {
			n, err = relayStatus(ctx, tx, js)
			return err
		})
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // it is to end
		case err != nil:
			return fmt.Errorf("relay by status: %w", err)
		case n > 0:
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(statusPoll):
		}
	}
}

type statusRow struct {
	ID        int64
	MessageID string
	Topic     string
	Payload   []byte
}

func relayStatus(ctx context.Context, tx pgx.Tx, js jetstream.JetStream) (int, error) {
	rows, err := tx.Query(ctx, `SELECT id, message_id::text, topic, payload FROM outbox_status
		WHERE status = 'pending' ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED`, statusBatch)
	if err != nil {
		return 0, err
	}
	batch, err := pgx.CollectRows(rows, pgx.RowToStructByPos[statusRow])
	if err != nil || len(batch) == 0 {
		return 0, err
	}
	ids := make([]int64, len(batch))
	for i, row := range batch {
		ids[i] = row.ID
		msg := &nats.Msg{Subject: row.Topic, Data: row.Payload, Header: nats.Header{}}
		if _, err := js.PublishMsg(ctx, msg, jetstream.WithMsgID(row.MessageID)); err != nil {
			return 0, err
		}
	}
	_, err = tx.Exec(ctx, "UPDATE outbox_status SET status = 'sent', sent_at = clock_timestamp() WHERE id = ANY($1)", ids)
	return len(ids), err
}
