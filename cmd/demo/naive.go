package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/cmd/demo/page"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/trial"
)

// The naive consumer is a process of its own, so that it can be killed: this program, run with naiveCommand.
const (
	naiveCommand  = "naive-consumer"
	naiveDatabase = "NAIVE_DATABASE_URL"
	naiveGroup    = "naive"
	// naiveBatch messages are charged before they are acknowledged together.
	naiveBatch = 20
)

// naiveTable has nothing that makes a second charge of an order fail, and nothing that remembers messages.
const naiveTable = `CREATE TABLE naive_charge (
	id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	order_id    uuid NOT NULL,
	customer_id text NOT NULL,
	amount      bigint NOT NULL,
	created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
)`

// naiveMain runs one of the naive processes until SIGTERM.
func naiveMain(run func(context.Context) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, os.Args[1]+":", err)
		return 1
	}
	return 0
}

// consumeNaively charges what the naive client and the page order, as consumers are often written: fetch, charge each, acknowledge. What it
// has charged and not acknowledged when it is killed comes again, and is charged again.
func consumeNaively(ctx context.Context) error {
	db, err := pgxpool.New(ctx, os.Getenv(naiveDatabase))
	if err != nil {
		return err
	}
	defer db.Close()
	nc, err := nats.Connect(os.Getenv("NATS_URL"), nats.Name("naive consumer"), nats.MaxReconnects(-1))
	if err != nil {
		return fmt.Errorf("connect to NATS: %w", err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	return chargeStream(ctx, db, js)
}

// chargeStream is the naive consumer's work, until ctx is done.
func chargeStream(ctx context.Context, db *pgxpool.Pool, js jetstream.JetStream) error {
	consumer, err := naiveConsumer(ctx, js)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		batch, err := consumer.Fetch(naiveBatch, jetstream.FetchMaxWait(time.Second))
		if err != nil {
			return fmt.Errorf("fetch: %w", err)
		}
		var charged []jetstream.Msg
		for m := range batch.Messages() {
			if err := chargeNaively(ctx, db, m); err != nil {
				return err
			}
			charged = append(charged, m)
		}
		for _, m := range charged {
			if err := m.Ack(); err != nil {
				return fmt.Errorf("acknowledge: %w", err)
			}
		}
	}
	return nil
}

// naiveConsumer waits for the stream, which orders makes.
func naiveConsumer(ctx context.Context, js jetstream.JetStream) (jetstream.Consumer, error) {
	var consumer jetstream.Consumer
	err := trial.Until(ctx, pollPause, readyLimit, "the stream is there", func() (bool, error) {
		var err error
		consumer, err = js.CreateOrUpdateConsumer(ctx, events.OrdersStream, jetstream.ConsumerConfig{
			Durable: naiveGroup, FilterSubject: events.OrdersSubjects, AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait})
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return nil, fmt.Errorf("make the consumer: %w", err)
	}
	return consumer, nil
}

// chargeNaively leaves the orders of the client with keys to the real billing.
func chargeNaively(ctx context.Context, db *pgxpool.Pool, m jetstream.Msg) error {
	var req events.ChargeRequested
	if err := json.Unmarshal(m.Data(), &req); err != nil {
		return fmt.Errorf("read %s: %w", m.Subject(), err)
	}
	if !strings.HasPrefix(req.CustomerID, naivePrefix) && !strings.HasPrefix(req.CustomerID, page.Customers) {
		return nil
	}
	_, err := db.Exec(ctx, "INSERT INTO naive_charge (order_id, customer_id, amount) VALUES ($1, $2, $3)", req.OrderID, req.CustomerID, req.Amount)
	if err != nil {
		return fmt.Errorf("charge: %w", err)
	}
	return nil
}
