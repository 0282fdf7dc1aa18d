package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/events"
)

// ProcessedTable is the inbox of many tutorials: the ids of the messages that were handled.
const ProcessedTable = `CREATE TABLE processed (consumer text, id uuid, at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (consumer, id))`

// First says whether a message is handled for the first time, and remembers it in tx.
func First(ctx context.Context, tx pgx.Tx, consumer, id string) (bool, error) {
	tag, err := tx.Exec(ctx, `INSERT INTO processed (consumer, id) VALUES ($1, $2) ON CONFLICT DO NOTHING`, consumer, id)
	return tag.RowsAffected() == 1, err
}

// Charge makes the effect of a request, which is Oncebox's own: a charge and its two rows in the ledger, by one statement into the
// same tables. It returns the answer that is to be sent.
func Charge(ctx context.Context, tx pgx.Tx, data []byte) (oncebox.Event, error) {
	var req events.ChargeRequested
	if err := json.Unmarshal(data, &req); err != nil {
		return oncebox.Event{}, err
	}
	id := uuid.Must(uuid.NewV7())
	_, err := tx.Exec(ctx, `
		WITH c AS (
			INSERT INTO charge (tenant_id, id, order_id, customer_id, amount, currency, status)
			VALUES ('default', $1, $2, $3, $4, $5, 'succeeded') RETURNING *)
		INSERT INTO ledger (tenant_id, charge_id, kind, account, amount, currency)
		SELECT c.tenant_id, c.id, 'charge', a.account, a.sign * c.amount, c.currency
		FROM c, LATERAL (VALUES ('customer:' || c.customer_id, -1), ('revenue', 1)) AS a (account, sign)`,
		id, req.OrderID, req.CustomerID, req.Amount, req.Currency)
	if err != nil {
		return oncebox.Event{}, fmt.Errorf("charge: %w", err)
	}
	answer, err := events.New("default", 1, events.ChargeSucceeded{OrderID: req.OrderID, ChargeID: id.String(), Amount: req.Amount, Currency: req.Currency})
	answer.ID = uuid.Must(uuid.NewV7()).String()
	return answer, err
}

// ChargeOne handles a message as a Watermill handler with an inbox and an outbox does: one transaction for each, in which the
// answer is published by watermill-sql.
func ChargeOne(pool *pgxpool.Pool) message.NoPublishHandlerFunc {
	return func(m *message.Message) error {
		return pgx.BeginFunc(m.Context(), pool, func(tx pgx.Tx) error {
			first, err := First(m.Context(), tx, "billing", m.UUID)
			if err != nil || !first {
				return err
			}
			answer, err := Charge(m.Context(), tx, m.Payload)
			if err != nil {
				return err
			}
			return Publish(m.Context(), tx, answer)
		})
	}
}

// Publish publishes events of one type in tx, by watermill-sql.
func Publish(ctx context.Context, tx pgx.Tx, es ...oncebox.Event) error {
	p, err := ForwarderPublisher(tx)
	if err != nil {
		return err
	}
	msgs := make([]*message.Message, len(es))
	for i, e := range es {
		msgs[i] = message.NewMessageWithContext(ctx, e.ID, e.Data)
		msgs[i].Metadata.Set("key", e.Key)
	}
	return p.Publish(es[0].Type, msgs...)
}

// Parallel is how many messages a Router of the peers handles at once.
const Parallel = 16

// Route runs Watermill's Router on watermill-nats's durable subscriber until ctx is done. Acknowledgements are sent without waiting
// for an answer (AckAsync), as ours are.
func Route(ctx context.Context, url, topic, group string, handle message.NoPublishHandlerFunc) error {
	sub, err := wmnats.NewSubscriber(wmnats.SubscriberConfig{
		URL:              url,
		Unmarshaler:      &wmnats.NATSMarshaler{},
		QueueGroupPrefix: group,
		SubscribersCount: Parallel,
		AckWaitTimeout:   30 * time.Second,
		CloseTimeout:     time.Second,
		JetStream: wmnats.JetStreamConfig{
			SubscribeOptions: []nats.SubOpt{nats.DeliverAll(), nats.AckExplicit()},
			DurablePrefix:    group,
			AckAsync:         true,
		},
	}, watermill.NopLogger{})
	if err != nil {
		return fmt.Errorf("watermill-nats subscriber: %w", err)
	}
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: time.Second}, watermill.NopLogger{})
	if err != nil {
		return fmt.Errorf("router: %w", err)
	}
	router.AddConsumerHandler(group, topic, sub, handle)
	if err := router.Run(ctx); err != nil {
		return fmt.Errorf("router: %w", errors.Join(err, sub.Close()))
	}
	return nil
}

// OnTheWire is a message as watermill-nats publishes it.
func OnTheWire(e oncebox.Event) (*nats.Msg, error) {
	return (&wmnats.NATSMarshaler{}).Marshal(e.Type, message.NewMessage(e.ID, e.Data))
}

// SettleOne handles billing's answer in orders, one transaction for each.
func SettleOne(m *message.Message, pool *pgxpool.Pool) error {
	ctx := m.Context()
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		first, err := First(ctx, tx, "orders", m.UUID)
		if err != nil || !first {
			return err
		}
		var c events.ChargeSucceeded
		if err := json.Unmarshal(m.Payload, &c); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE orders SET status = 'paid', charge_id = $2, version = version + 1, updated_at = clock_timestamp()
			WHERE tenant_id = 'default' AND id = $1`, c.OrderID, c.ChargeID)
		return err
	})
}
