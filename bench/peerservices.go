package main

import (
	"context"
	"net/http"
	"os"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/oncebox/oncebox/bench/peer"
	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/orders"
)

// peerPoll is how often the peers' forwarders look for new rows: ten times as often as watermill-sql's default.
const peerPoll = 100 * time.Millisecond

// preparePeer makes what a service of the peers needs beside its own tables.
func preparePeer(line migrations.Line, also string) preparer {
	return func(ctx context.Context, pool *pgxpool.Pool) error {
		if err := migrations.Up(ctx, pool, line); err != nil {
			return err
		}
		if _, err := pool.Exec(ctx, peer.ProcessedTable+"; "+also); err != nil {
			return err
		}
		return peer.ForwarderOutbox(pool)
	}
}

// servePeerOrders is orders as Watermill's parts make it: an order and its event in one transaction by watermill-sql, the Forwarder,
// and a Router that settles billing's answers, one transaction for each.
func servePeerOrders(ctx context.Context) error {
	return serve(ctx, func(mux *http.ServeMux, pool *pgxpool.Pool) error {
		mux.HandleFunc("POST /v1/orders", ordersRoute(pool, func(ctx context.Context, tx pgx.Tx, o plainOrder) error {
			e, err := o.requested()
			if err != nil {
				return err
			}
			return peer.Publish(ctx, tx, e)
		}))
		return nil
	}, forward, func(ctx context.Context, pool *pgxpool.Pool) error {
		return peer.Route(ctx, os.Getenv(envNATS), events.TypeChargeSucceeded, orders.Name, func(m *message.Message) error {
			return peer.SettleOne(m, pool)
		})
	})
}

// servePeerBilling is billing in the same way.
func servePeerBilling(ctx context.Context) error {
	return serve(ctx, func(*http.ServeMux, *pgxpool.Pool) error { return nil }, forward,
		func(ctx context.Context, pool *pgxpool.Pool) error {
			return peer.Route(ctx, os.Getenv(envNATS), events.TypeChargeRequested, billing.Name, peer.ChargeOne(pool))
		})
}

func forward(ctx context.Context, pool *pgxpool.Pool) error {
	nc, err := nats.Connect(os.Getenv(envNATS))
	if err != nil {
		return err
	}
	defer nc.Close()
	return peer.Forward(ctx, pool, nc, peer.ForwarderConfig{Poll: peerPoll})
}
