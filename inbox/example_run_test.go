package inbox_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// The package's example is a program: it runs here as a process, on a stream in which each event stands twice.
func TestTheExampleChargesOnce(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := stacktest.Postgres(t)
	_, err := pool.Exec(ctx, "CREATE TABLE charge (order_id text, amount bigint)")
	must(t, err)
	l := &line{rig: &rig{t: t, pool: pool}, server: stacktest.NATS(t)}
	l.nc = stacktest.Connect(t, l.server)
	l.js, err = jetstream.New(l.nc)
	must(t, err)
	_, err = l.js.CreateStream(ctx, broker.Stream("ORDERS", "orders.>"))
	must(t, err)
	p, err := broker.NewPublisher(l.nc, 10*time.Second)
	must(t, err)
	for range 5 {
		e := event(`{"amount": 100}`)
		must(t, p.Publish("orders.placed.v1", e.Message()))
		m := e.Message()
		m.UUID += " again" // past the broker's own memory
		must(t, p.Publish("orders.placed.v1", m))
	}
	must(t, p.Publish("orders.placed.v1", event(`{"amount": -1}`).Message()))
	l.process("example")
	stacktest.Eventually(t, time.Minute, "everything is acknowledged", func() (bool, error) {
		c, err := l.js.Consumer(ctx, "ORDERS", "billing")
		if err != nil {
			return false, err
		}
		stream, err := l.js.Stream(ctx, "ORDERS")
		if err != nil {
			return false, err
		}
		return c.CachedInfo().AckFloor.Stream == stream.CachedInfo().State.LastSeq, nil
	})
	if n := l.count("charge"); n != 5 {
		t.Errorf("%d charges for 5 orders", n)
	}
	l.wantLetters("amount")
}
