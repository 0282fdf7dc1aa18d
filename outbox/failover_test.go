package outbox_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

// TestADatabaseThatFailsOverLosesNoEventThatItStillHas promotes a base backup, a standby that lacks the end, under a relay that goes
// on: its epoch is the same there, but the ticks and the cursor are older, and their numbers and xids are given out again. What the
// database lost and the stream holds stays in the stream.
func TestADatabaseThatFailsOverLosesNoEventThatItStillHas(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	first := stacktest.OwnPostgres(t, devstack.PostgresConfig{})
	pool, err := pgxpool.New(ctx, first.URL("postgres"))
	must(t, err)
	t.Cleanup(pool.Close)
	must(t, migrations.Up(ctx, pool, migrations.Outbox))
	r := rigOn(t, pool, stacktest.NATS(t))
	var primary atomic.Pointer[devstack.Postgres]
	primary.Store(first)
	var said procLog
	r.wired(broker.SinkConfig{Timeout: 5 * time.Second}, func(string) string { return address(primary.Load()) }, outbox.RelayConfig{Name: "test",
		Lease: 5 * time.Second, MinPoll: time.Millisecond, MaxPoll: 20 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&said, nil))})
	var version int64
	some := func(r *rig, n int) (events []oncebox.Event) {
		for range n {
			version++
			events = append(events, event("k", version))
			r.commit(events[len(events)-1])
		}
		return events
	}
	saved := func(n int) {
		t.Helper()
		stacktest.Eventually(t, 30*time.Second, "all is sent and saved", func() (ok bool, err error) {
			return ok, r.pool.QueryRow(ctx, "SELECT stream_seq = $1 FROM oncebox.outbox_cursor", n).Scan(&ok)
		})
	}
	want := some(r, 20)
	saved(20)

	second, err := devstack.StartStandby(ctx, first, devstack.PostgresConfig{})
	must(t, err)
	t.Cleanup(func() { must(t, second.Remove()) })
	must(t, second.CutOff(ctx))
	want = append(want, some(r, 10)...)
	saved(30)
	must(t, second.Promote(ctx))
	after := *r
	after.pool, err = pgxpool.New(ctx, second.URL("postgres"))
	must(t, err)
	t.Cleanup(after.pool.Close)
	version = 20 // the other ten are lost
	want = append(want, some(&after, 5)...)
	primary.Store(second) // which the relay finds at its next step
	must(t, first.StopImmediate(ctx))
	want = append(want, some(&after, 25)...) // more rounds than were lost
	r.eventuallyLogged(want...)
	stacktest.Eventually(t, 30*time.Second, "the relay tells what only the stream holds", func() (bool, error) {
		return said.count(`the log holds events that the outbox does not.* events=10`) > 0, nil
	})
}
