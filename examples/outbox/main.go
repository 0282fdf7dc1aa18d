// Command outbox is the smallest service with an outbox: POST /sales/{item} writes a row and its event in one transaction, and the
// relay publishes the event to the stream SHOP.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

func main() {
	ctx := context.Background()
	pool := must(pgxpool.New(ctx, os.Getenv("DATABASE_URL")))
	must(0, migrations.Up(ctx, pool, migrations.Outbox))
	must(pool.Exec(ctx, "CREATE TABLE IF NOT EXISTS sale (id uuid PRIMARY KEY, item text NOT NULL)"))
	nc := must(broker.Connect(os.Getenv("NATS_URL"), "shop", slog.Default()))
	sink := must(broker.NewSink(nc, broker.Stream("SHOP", "shop.>"), broker.SinkConfig{}))
	relay := must(outbox.NewRelay(pool, sink, outbox.RelayConfig{Name: "shop"}))
	writer := must(outbox.NewWriter(outbox.WriterConfig{Source: "shop"}))

	http.HandleFunc("POST /sales/{item}", func(w http.ResponseWriter, r *http.Request) {
		id, item := uuid.New(), r.PathValue("item")
		err := pgx.BeginFunc(r.Context(), pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(r.Context(), "INSERT INTO sale VALUES ($1, $2)", id, item); err != nil {
				return err
			}
			return writer.Add(r.Context(), tx, oncebox.Event{Type: "shop.sold.v1", Key: id.String(), Data: fmt.Appendf(nil, "%q", item)})
		})
		if err != nil {
			http.Error(w, "not sold", http.StatusServiceUnavailable)
			return
		}
		relay.Wake()
		w.WriteHeader(http.StatusCreated)
	})
	go func() { must(0, http.ListenAndServe(os.Getenv("LISTEN"), nil)) }()
	must(0, relay.Run(ctx))
}

func must[T any](v T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, "outbox:", err)
		os.Exit(1)
	}
	return v
}
