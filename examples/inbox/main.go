// Command inbox is the smallest consumer with an inbox: it reads the stream SHOP and counts what was sold, each sale once, however
// often it is delivered.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/migrations"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	pool := must(pgxpool.New(ctx, os.Getenv("DATABASE_URL")))
	must(0, migrations.Up(ctx, pool, migrations.Inbox))
	must(pool.Exec(ctx, "CREATE TABLE IF NOT EXISTS sold (item text PRIMARY KEY, times bigint NOT NULL)"))
	nc := must(broker.Connect(os.Getenv("NATS_URL"), "stock", slog.Default()))
	sub := must(broker.NewSubscriber(nc, broker.SubscriberConfig{Stream: "SHOP", Group: "stock"}))
	in := must(inbox.New(pool, inbox.Config{Consumer: "stock"}))

	router := must(message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(slog.Default())))
	router.AddConsumerHandler("stock", "shop.>", sub, in.One(inbox.Typed(count)))
	must(0, router.Run(ctx))
}

// count runs in the transaction that remembers the event.
func count(ctx context.Context, tx pgx.Tx, _ oncebox.Event, item string) error {
	_, err := tx.Exec(ctx, "INSERT INTO sold VALUES ($1, 1) ON CONFLICT (item) DO UPDATE SET times = sold.times + 1", item)
	return err
}

func must[T any](v T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, "inbox:", err)
		os.Exit(1)
	}
	return v
}
