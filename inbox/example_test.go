package inbox_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/migrations"
)

// The whole of a consumer: from an empty main to a charge that happens once.
func Example() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	check(err)
	check(migrations.Up(ctx, pool, migrations.Inbox))
	nc, err := nats.Connect(os.Getenv("NATS_URL"))
	check(err)
	in, err := inbox.New(pool, inbox.Config{Consumer: "billing"})
	check(err)
	charge := in.One(inbox.Typed(func(ctx context.Context, tx pgx.Tx, e oncebox.Event, order struct{ Amount int64 }) error {
		if order.Amount < 1 {
			return inbox.Permanent("amount", fmt.Errorf("the amount is %d", order.Amount))
		}
		_, err := tx.Exec(ctx, "INSERT INTO charge (order_id, amount) VALUES ($1, $2)", e.Key, order.Amount)
		return err
	}))
	sub, err := broker.NewSubscriber(nc, broker.SubscriberConfig{Stream: "ORDERS", Group: "billing"})
	check(err)
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	check(err)
	router.AddConsumerHandler("charge", "orders.>", sub, charge)
	check(router.Run(ctx))
}

func check(err error) {
	if err != nil {
		log.Panic(err)
	}
}
