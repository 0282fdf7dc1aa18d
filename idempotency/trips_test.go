package idempotency_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/idempotency"
)

// A counter counts the round trips of a connection: the times at which the client, having written, reads.
type counter struct {
	net.Conn
	trips *atomic.Int64
	wrote atomic.Bool
}

func (c *counter) Write(b []byte) (int, error) {
	if !c.wrote.Swap(true) {
		c.trips.Add(1)
	}
	return c.Conn.Write(b)
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.wrote.Store(false)
	return n, err
}

func TestAFirstRequestCostsNoRoundTripMoreAndAReplayOneOrTwo(t *testing.T) {
	t.Parallel()
	var trips atomic.Int64
	pool := poolWith(t, nil, func(cfg *pgxpool.Config) {
		cfg.MaxConns = 1
		dial := cfg.ConnConfig.DialFunc
		cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			return &counter{Conn: conn, trips: &trips}, err
		}
	})
	effects(t, pool)
	url := here(t, pool, postgres(t, pool, idempotency.PostgresConfig{}), idempotency.Policy{})
	trip := func(do func()) int64 {
		before := trips.Load()
		do()
		return trips.Load() - before
	}
	plain := func() {
		must(t, pgx.BeginFunc(context.Background(), pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(context.Background(), "INSERT INTO effect VALUES ($1)", uuid.NewString())
			return err
		}))
	}
	plain()
	wantFirst(t, mustPost(t, url, "warm")) // statements are prepared once
	without := trip(plain)
	first := trip(func() { wantFirst(t, mustPost(t, url, "k")) })
	replayed := func() int64 { return trip(func() { wantReplay(t, mustPost(t, url, "k"), reply{}) }) }
	replay := replayed()
	replayed() // which prepares the statement
	again := replayed()
	after := trip(func() { wantFirst(t, mustPost(t, url, "l")) })
	t.Logf("round trips: %d without a key, %d first, %d replayed, %d again, %d first after those", without, first, replay, again, after)
	if first > without || after > without+1 {
		t.Errorf("a first request costs %d round trips, %d after a replay; the same transaction %d, want no more, and one more", first, after, without)
	}
	if replay > 2 || again > 1 {
		t.Errorf("a replay costs %d round trips, and %d after another, want 2 and 1", replay, again)
	}
}
