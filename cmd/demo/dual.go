package main

import (
	"context"
	"fmt"
	"os"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/cmd/demo/page"
)

// The naive writer is a process of its own too: it is there to be killed.
const writerCommand = "naive-writer"

// writeNaively commits an order and then publishes its event, as services without an outbox do, one after the other.
func writeNaively(ctx context.Context) error {
	db, err := pgxpool.New(ctx, os.Getenv(naiveDatabase))
	if err != nil {
		return err
	}
	defer db.Close()
	nc, err := nats.Connect(os.Getenv("NATS_URL"), nats.Name("naive writer"))
	if err != nil {
		return fmt.Errorf("connect to NATS: %w", err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		var id int
		if err := db.QueryRow(ctx, "INSERT INTO "+page.NaiveOrders+" DEFAULT VALUES RETURNING id").Scan(&id); err != nil {
			return fmt.Errorf("write an order: %w", err)
		}
		if _, err := js.Publish(ctx, page.NaiveSubject, fmt.Append(nil, id)); err != nil {
			return fmt.Errorf("publish its event: %w", err)
		}
	}
	return nil
}
