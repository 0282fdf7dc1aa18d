package outbox_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

// failing is a rig on a database server of its own, which is to fail.
func failing(t *testing.T) (*rig, *devstack.Postgres) {
	t.Helper()
	first := stacktest.OwnPostgres(t, devstack.PostgresConfig{})
	pool, err := pgxpool.New(context.Background(), first.URL("postgres"))
	must(t, err)
	t.Cleanup(pool.Close)
	must(t, migrations.Up(context.Background(), pool, migrations.Outbox))
	return rigOn(t, pool, stacktest.NATS(t)), first
}

// cutOffStandby is a standby that lacks what is committed from now on.
func cutOffStandby(t *testing.T, first *devstack.Postgres) *devstack.Postgres {
	t.Helper()
	second, err := devstack.StartStandby(context.Background(), first, devstack.PostgresConfig{})
	must(t, err)
	t.Cleanup(func() { must(t, second.Remove()) })
	must(t, second.CutOff(context.Background()))
	return second
}

// on is the rig with the standby, promoted, for a database.
func (r *rig) on(second *devstack.Postgres) *rig {
	r.t.Helper()
	must(r.t, second.Promote(context.Background()))
	after := *r
	var err error
	after.pool, err = pgxpool.New(context.Background(), second.URL("postgres"))
	must(r.t, err)
	r.t.Cleanup(after.pool.Close)
	return &after
}

// some commits n events of versions behind that of before, in one transaction.
func (r *rig) some(before int64, n int) (events []oncebox.Event) {
	r.t.Helper()
	for range n {
		before++
		events = append(events, event("k", before))
	}
	r.commit(events...)
	return events
}

// eventuallySaved waits until the cursor stands at the stream's message n.
func (r *rig) eventuallySaved(n int) {
	r.t.Helper()
	stacktest.Eventually(r.t, 30*time.Second, "all is sent and saved", func() (ok bool, err error) {
		return ok, r.pool.QueryRow(context.Background(), "SELECT stream_seq = $1 FROM oncebox.outbox_cursor", n).Scan(&ok)
	})
}

// TestADatabaseThatFailsOverLosesNoEventThatItStillHas promotes a base backup, a standby that lacks the end, under a relay that goes
// on: its epoch is the same there, but the ticks and the cursor are older, and their numbers and xids are given out again. What the
// database lost and the stream holds stays in the stream.
func TestADatabaseThatFailsOverLosesNoEventThatItStillHas(t *testing.T) {
	t.Parallel()
	r, first := failing(t)
	var primary atomic.Pointer[devstack.Postgres]
	primary.Store(first)
	var said procLog
	r.wired(broker.SinkConfig{Timeout: 5 * time.Second}, func(string) string { return address(primary.Load()) }, outbox.RelayConfig{Name: "test",
		Lease: 5 * time.Second, MinPoll: time.Millisecond, MaxPoll: 20 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&said, nil))})
	oneByOne := func(r *rig, before int64, n int) (events []oncebox.Event) {
		for i := range int64(n) {
			events = append(events, r.some(before+i, 1)...)
		}
		return events
	}
	want := oneByOne(r, 0, 20)
	r.eventuallySaved(20)

	second := cutOffStandby(t, first)
	want = append(want, oneByOne(r, 20, 10)...)
	r.eventuallySaved(30)
	after := r.on(second)
	want = append(want, oneByOne(after, 20, 5)...) // the other ten are lost
	primary.Store(second)                          // which the relay finds at its next step
	must(t, first.StopImmediate(context.Background()))
	want = append(want, oneByOne(after, 25, 25)...) // more rounds than were lost
	r.eventuallyLogged(want...)
	stacktest.Eventually(t, 30*time.Second, "the relay tells what only the stream holds", func() (bool, error) {
		return said.count(`the log holds events that the outbox does not.* events=10`) > 0, nil
	})
}

// A relay of the database that failed is late: its batch comes when another leads on the one that took its place, and is as long as
// each of its batches.
func TestALateBatchFromBeforeAFailoverTakesNoEventsPlace(t *testing.T) {
	t.Parallel()
	r, first := failing(t)
	const batch = 10
	var said procLog
	// With leases so long that none has anything else to say to the broker.
	options := outbox.RelayConfig{Name: "test", Lease: time.Minute, MinPoll: time.Millisecond, MaxPoll: 20 * time.Millisecond, Page: batch,
		Logger: slog.New(slog.NewTextHandler(&said, nil))}
	old := r.wired(broker.SinkConfig{Sync: broker.SyncAlways, Timeout: 30 * time.Second}, func(address string) string { return address }, options)
	want := r.some(0, 20)
	r.eventuallySaved(20)

	second := cutOffStandby(t, first)
	old.holdBehind(0)
	want = append(want, r.some(20, batch)...)
	stacktest.Eventually(t, 30*time.Second, "its batch is under way", func() (bool, error) { return old.holds(), nil })
	after := r.on(second)
	must(t, first.StopImmediate(context.Background()))
	_, err := after.pool.Exec(context.Background(), "UPDATE oncebox.outbox_cursor SET lease_until = '-infinity'")
	must(t, err)
	next := after.relayOn(broker.SinkConfig{Sync: broker.SyncAlways, Timeout: time.Minute},
		func(c *outbox.RelayConfig) { c.Page, c.Lease, c.Logger = batch, options.Lease, options.Logger })
	stacktest.Eventually(t, 30*time.Second, "the next one leads", func() (bool, error) { return said.count("relay: leading") > 1, nil })
	old.open()
	stacktest.Eventually(t, 30*time.Second, "the late batch is stored", func() (bool, error) { return reached(r.logged(), 20+batch) })

	must(t, r.server.Pause()) // so that the next one has sent its batches when it hears that the first of them is refused
	want = append(want, after.some(20, 3*batch)...)
	stacktest.Eventually(t, 30*time.Second, "batches are under way", func() (bool, error) { return next.metric(t, "batch_rows") >= 2, nil })
	must(t, r.server.Continue())
	r.eventuallyLogged(want...)
}

// A park row that the standby lacks is of a row that it has: the relay goes back for it, although the round's tick is there.
func TestAParkedRowThatAFailoverForgetsIsParkedAgain(t *testing.T) {
	t.Parallel()
	r, first := failing(t)
	ctx := context.Background()
	var primary atomic.Pointer[devstack.Postgres]
	primary.Store(first)
	r.wired(broker.SinkConfig{Timeout: time.Minute}, func(string) string { return address(primary.Load()) }, outbox.RelayConfig{Name: "test",
		Lease: time.Minute, MinPoll: time.Millisecond, MaxPoll: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	want := r.some(0, 20)
	r.eventuallySaved(20)
	second, err := devstack.StartStandby(ctx, first, devstack.PostgresConfig{})
	must(t, err)
	t.Cleanup(func() { must(t, second.Remove()) })

	must(t, r.server.Pause()) // the round is made, and does not come to its second row
	fine, wild := event("k", 21), elsewhere("k", 22)
	must(t, pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error { return r.writer.Add(ctx, tx, fine, wild) }))
	want = append(want, fine)
	copied, err := pgxpool.New(ctx, second.URL("postgres"))
	must(t, err)
	t.Cleanup(copied.Close)
	stacktest.Eventually(t, 30*time.Second, "the standby has the round", func() (ok bool, err error) {
		return ok, copied.QueryRow(ctx, "SELECT count(*) > 0 FROM oncebox.outbox_tick, oncebox.outbox WHERE seq = 22 AND pg_visible_in_snapshot(xid, snap)").Scan(&ok)
	})
	must(t, second.CutOff(ctx))
	isParked := func(pool *pgxpool.Pool) func() (bool, error) {
		return func() (ok bool, err error) {
			return ok, pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM oncebox.outbox_parked WHERE id = $1)", wild.ID).Scan(&ok)
		}
	}
	must(t, r.server.Continue())
	stacktest.Eventually(t, 30*time.Second, "the row is parked", isParked(r.pool))
	after := r.on(second)
	primary.Store(second)
	must(t, first.StopImmediate(ctx))
	want = append(want, after.some(22, 5)...)
	r.eventuallyLogged(want...)
	stacktest.Eventually(t, 30*time.Second, "the row is parked again", isParked(after.pool))
}
