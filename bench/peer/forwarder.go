// Package peer is what others do for the same work, set as their documentation recommends.
package peer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
)

// outboxTopic is the forwarder's table.
const outboxTopic = "outbox"

// ForwarderOutbox makes the tables of watermill-sql's outbox.
func ForwarderOutbox(pool *pgxpool.Pool) error {
	sub, err := forwarderSubscriber(pool, ForwarderConfig{})
	if err != nil {
		return err
	}
	return errors.Join(sub.SubscribeInitialize(outboxTopic), sub.Close())
}

// ForwarderPublisher publishes in tx, into watermill-sql's outbox: what Watermill's documentation of the outbox pattern does.
func ForwarderPublisher(tx pgx.Tx) (message.Publisher, error) {
	p, err := sql.NewPublisher(sql.TxFromPgx(tx), sql.PublisherConfig{SchemaAdapter: sql.DefaultPostgreSQLSchema{}}, watermill.NopLogger{})
	if err != nil {
		return nil, fmt.Errorf("watermill-sql publisher: %w", err)
	}
	return forwarder.NewPublisher(p, forwarder.PublisherConfig{ForwarderTopic: outboxTopic}), nil
}

// ForwarderConfig is what a run changes of the defaults.
type ForwarderConfig struct {
	Poll  time.Duration // 0: watermill-sql's default, 1 s
	Batch int           // rows a query; 0: watermill-sql's default, 100
}

func forwarderSubscriber(pool *pgxpool.Pool, cfg ForwarderConfig) (*sql.Subscriber, error) {
	sub, err := sql.NewSubscriber(sql.BeginnerFromPgx(pool), sql.SubscriberConfig{
		SchemaAdapter:    sql.DefaultPostgreSQLSchema{SubscribeBatchSize: cfg.Batch},
		OffsetsAdapter:   sql.DefaultPostgreSQLOffsetsAdapter{},
		InitializeSchema: true,
		PollInterval:     cfg.Poll,
	}, watermill.NopLogger{})
	if err != nil {
		return nil, fmt.Errorf("watermill-sql subscriber: %w", err)
	}
	return sub, nil
}

// Forward runs Watermill's Forwarder, from watermill-sql's outbox to JetStream by watermill-nats, until ctx is done.
func Forward(ctx context.Context, pool *pgxpool.Pool, nc *nats.Conn, cfg ForwarderConfig) error {
	sub, err := forwarderSubscriber(pool, cfg)
	if err != nil {
		return err
	}
	pub, err := NATSPublisher(nc)
	if err != nil {
		return err
	}
	f, err := forwarder.NewForwarder(sub, pub, watermill.NopLogger{}, forwarder.Config{ForwarderTopic: outboxTopic, CloseTimeout: time.Second})
	if err != nil {
		return fmt.Errorf("forwarder: %w", err)
	}
	if err := f.Run(ctx); err != nil {
		return fmt.Errorf("forwarder: %w", err)
	}
	return nil
}

// NATSPublisher is watermill-nats's on JetStream: pkg/nats, which pkg/jetstream's own documentation recommends for production.
// The stream is made by us, as with all contenders; TrackMsgId lets JetStream drop a message that is sent twice.
func NATSPublisher(nc *nats.Conn) (message.Publisher, error) {
	pub, err := wmnats.NewPublisherWithNatsConn(nc, wmnats.PublisherPublishConfig{
		Marshaler:         &wmnats.NATSMarshaler{},
		SubjectCalculator: wmnats.DefaultSubjectCalculator,
		JetStream:         wmnats.JetStreamConfig{TrackMsgId: true},
	}, watermill.NopLogger{})
	if err != nil {
		return nil, fmt.Errorf("watermill-nats publisher: %w", err)
	}
	return pub, nil
}
