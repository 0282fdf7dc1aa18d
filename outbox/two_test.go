package outbox_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

// holder waits until somebody leads under a later epoch.
func (r *rig) holder(after int64) (epoch int64) {
	r.t.Helper()
	stacktest.Eventually(r.t, 30*time.Second, "a relay leads", func() (bool, error) {
		epoch = r.leads(r.t)
		return epoch > after, nil
	})
	return epoch
}

func TestAStandbyLeadsWithinTheLeaseAndASecondAfterAKill(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const lease = 2 * time.Second
	long := func(s *relaySpec) { s.Lease = lease }
	var log procLog
	active := r.process(&log, long)
	epoch := r.holder(0)
	r.process(&log, long)
	a, b := event("k", 1), event("k", 2)
	r.commit(a)
	r.eventuallyLogged(a)
	must(t, active.Kill())
	killed := time.Now()
	r.commit(b)
	r.holder(epoch)
	if took := time.Since(killed); took > lease+time.Second {
		t.Errorf("the standby led after %s, with a lease of %s", took, lease)
	}
	r.eventuallyLogged(a, b)
}

func TestARelayThatIsToldToStopIsGoneIn200Milliseconds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	long := func(s *relaySpec) { s.Lease = time.Minute }
	var log procLog
	active := r.process(&log, long)
	epoch := r.holder(0)
	standby := r.process(&log, long)
	a, b := event("k", 1), event("k", 2)
	r.commit(a)
	r.eventuallyLogged(a)
	best := time.Hour // of some, on a machine that does other things too
	for range 5 {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		began := time.Now()
		must(t, active.Stop(ctx))
		best = min(best, time.Since(began))
		cancel()
		epoch = r.holder(epoch) // at once, and not after a minute
		active, standby = standby, r.process(&log, long)
	}
	if best > 200*time.Millisecond {
		t.Errorf("the fastest of five stops took %s", best)
	}
	r.commit(b)
	r.eventuallyLogged(a, b)
}

// A stop sends what is committed by then. Others go on writing, in a rolling release, and that is for the next relay.
// The standby's own next look would be an hour later.
func TestAStandbyThatIsToldOfAReleaseLeadsAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var standby *running
	slow := func(c *outbox.RelayConfig) { c.Lease, c.MaxPoll = 3*time.Hour, time.Hour }
	first := r.relay(slow, func(c *outbox.RelayConfig) { c.Released = func() { standby.Vacant() } })
	stacktest.Eventually(t, 5*time.Second, "the first leads", func() (bool, error) { return first.Leading(), nil })
	standby = r.relay(slow)
	e := event("k", 1)
	r.commit(e)
	first.Wake()
	r.eventuallyLogged(e)
	first.stop()
	stacktest.Eventually(t, 5*time.Second, "the standby leads", func() (bool, error) { return standby.Leading(), nil })
	after := event("k", 2)
	r.commit(after)
	standby.Wake()
	r.eventuallyLogged(e, after)
}

func TestAStopDoesNotWaitForWhatOthersGoOnToWrite(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	relay := r.relay(func(c *outbox.RelayConfig) { c.DrainTimeout = time.Hour })
	writing, end := context.WithCancel(context.Background())
	defer end()
	var committed atomic.Int64
	g, ctx := errgroup.WithContext(writing)
	for range 4 {
		g.Go(func() error {
			for ctx.Err() == nil {
				err := pgx.BeginFunc(context.Background(), r.pool, func(tx pgx.Tx) error {
					return r.writer.Add(context.Background(), tx, event("k", 1))
				})
				if err != nil {
					return err
				}
				committed.Add(1)
			}
			return nil
		})
	}
	stacktest.Eventually(t, 20*time.Second, "events are sent", func() (bool, error) { return r.logged() > 100, nil })
	before := committed.Load()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		relay.stop()
	}()
	select {
	case <-stopped:
	case <-time.After(10 * time.Second):
		t.Error("the relay still sends what came after the stop")
	}
	end()
	must(t, g.Wait())
	<-stopped
	if n := r.logged(); int64(n) < before {
		t.Errorf("of %d events that were committed before the stop %d are sent", before, n)
	}
}

// The bytes of a relay that has lost its lease come late, singles as well as a batch: the broker itself refuses them.
func TestLateBytesAreRefusedByTheBroker(t *testing.T) {
	t.Parallel()
	for name, sync := range map[string]broker.Sync{"singles": broker.SyncInterval, "batches": broker.SyncAlways} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			answers := spyOn(t, r.nc)
			const n = 3000
			r.fill(n)
			late := r.gated(sync)
			stacktest.Eventually(t, 20*time.Second, "bytes are held up", func() (bool, error) { return late.holds(), nil })
			_, err := r.pool.Exec(context.Background(), "UPDATE oncebox.outbox_cursor SET lease_until = '-infinity'")
			must(t, err)
			var log procLog
			r.process(&log, func(s *relaySpec) { s.Sync = sync })
			stacktest.Eventually(t, 30*time.Second, "all is sent", func() (bool, error) { return reached(r.logged(), n) })
			late.open()
			stacktest.Eventually(t, 20*time.Second, "the broker refuses", func() (bool, error) {
				_, codes := answers.of(r.declared.Name)
				return codes[10071]+codes[10201] > 0, nil
			})
			end, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			must(t, late.Stop(end))
			if got := r.logged(); got != n {
				t.Errorf("%d in the stream, want %d", got, n)
			}
		})
	}
}

func TestPostgresIsRestartedAtOnceWhileEventsAreSent(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := stacktest.OwnPostgres(t, devstack.PostgresConfig{})
	pool, err := pgxpool.New(ctx, server.URL("postgres"))
	must(t, err)
	t.Cleanup(pool.Close)
	must(t, migrations.Up(ctx, pool, migrations.Outbox))
	r := rigOn(t, pool, stacktest.NATS(t))
	const n = 5000
	r.fill(n)
	relay := r.relay(func(c *outbox.RelayConfig) { c.Page = 20 })
	stacktest.Eventually(t, 20*time.Second, "it sends", func() (bool, error) { return relay.metric(t, "stored_total") > 100, nil })
	must(t, server.StopImmediate(ctx))
	stacktest.Eventually(t, 20*time.Second, "the relay notices", func() (bool, error) { return relay.metric(t, "failures_total") > 0, nil })
	must(t, server.Restart(ctx))
	stacktest.Eventually(t, time.Minute, "all is sent", func() (bool, error) { return reached(r.logged(), n) })
	var want []string
	rows, err := pool.Query(ctx, "SELECT id::text FROM oncebox.outbox ORDER BY seq")
	must(t, err)
	for rows.Next() {
		var id string
		must(t, rows.Scan(&id))
		want = append(want, id)
	}
	must(t, rows.Err())
	if got := ids(r.log()); !slices.Equal(got, want) {
		t.Errorf("%d events are in the stream, of %d, or not in order", len(got), len(want))
	}
}

// One full or missing stream does not hold up the others: each cursor has its own topics, ticks, lease and log.
func TestCursorsOfOneOutboxGoTheirOwnWays(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	other := *r
	other.declared = broker.Stream("OTHER", "elsewhere.>")
	other.declared.MaxMsgs = 1 // and new ones are refused
	only := func(name string, topics ...string) func(*outbox.RelayConfig) {
		return func(c *outbox.RelayConfig) { c.Name, c.Topics = name, topics }
	}
	r.relay(only("one", "test.>"))
	stuck := other.relay(only("two", "elsewhere.*.v1", "never.happened"))
	var want []oncebox.Event
	for i := range int64(20) {
		e := event("k", i+1)
		want = append(want, e)
		r.commit(e, elsewhere("k", i+1))
	}
	r.eventuallyLogged(want...)
	stacktest.Eventually(t, 10*time.Second, "the other is stuck", func() (bool, error) { return stuck.metric(t, "failures_total") > 2, nil })
	s, err := stuck.Status(context.Background())
	must(t, err)
	if s.Backlog != 19 && s.Backlog != 20 {
		t.Errorf("its backlog is %d", s.Backlog)
	}
	stream, err := r.js.Stream(context.Background(), "OTHER")
	must(t, err)
	if n := stream.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("%d events are in the other stream, want 1", n)
	}
}
