package inbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// settle waits until everything is acknowledged, and returns how many deliveries that took.
func (l *line) settle() (deliveries uint64) {
	l.t.Helper()
	stacktest.Eventually(l.t, 2*time.Minute, "everything is acknowledged", func() (ok bool, err error) {
		deliveries, ok, err = l.settled()
		return ok, err
	})
	return deliveries
}

// size is a number for make soak, and a lesser one for each day.
func size(soak, daily int) int {
	if os.Getenv("ONCEBOX_SOAK") != "" {
		return soak
	}
	return daily
}

func many(n int) []oncebox.Event {
	es := make([]oncebox.Event, n)
	for i := range es {
		es[i] = event("good")
	}
	return es
}

func (l *line) group(cfg inbox.GroupConfig) message.NoPublishHandlerFunc {
	l.t.Helper()
	h, err := l.inboxWith(inbox.Config{Consumer: "consumer"}).Group(playAll, cfg)
	must(l.t, err)
	return h
}

func TestTheSameMessageADayLaterHasNoSecondEffect(t *testing.T) {
	eachWay(t, func(r *rig, handle message.NoPublishHandlerFunc) {
		e := event("good")
		must(r.t, handle(e.Message()))
		_, err := r.pool.Exec(context.Background(), "UPDATE oncebox.inbox SET at = at - interval '1 day'")
		must(r.t, err)
		since, err := r.in.Prune(context.Background())
		must(r.t, err)
		if since.After(time.Now().Add(-24 * time.Hour)) {
			r.t.Errorf("ids are remembered since %s only", since)
		}
		must(r.t, handle(e.Message()))
		must(r.t, handle(again(e, 2)))
		r.wantEffects(1)
		r.wantLetters()
	})
}

// A handler takes three times as long as the broker waits for a sign of life.
func TestAHandlerSlowerThanAckWaitRunsOnce(t *testing.T) {
	t.Parallel()
	l := newLine(t, database(t))
	var runs, running atomic.Int32
	l.start(l.inboxWith(inbox.Config{Consumer: "consumer"}).One(func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
		if runs.Add(1); running.Add(1) > 1 {
			t.Error("two runs at once")
		}
		defer running.Add(-1)
		select { // three times AckWait, as route has it
		case <-time.After(3 * time.Second):
		case <-ctx.Done():
		}
		return effect(ctx, tx, e)
	}))
	l.publish(event("a"))
	if n := l.settle(); n != 1 || runs.Load() != 1 {
		t.Errorf("%d deliveries and %d runs, want one of each", n, runs.Load())
	}
	l.wantEffects(1)
}

// The durable is deleted while it is read, and then the stream: nothing is lost, and nothing has a second effect.
func TestADurableAndAStreamThatAreDeletedCostNothing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := newLine(t, database(t))
	const n = 300
	l.publish(many(n)...)
	l.start(l.group(inbox.GroupConfig{Max: 10}))
	stacktest.Eventually(t, time.Minute, "the first are handled", func() (bool, error) { return l.count("effect") > 0, nil })
	must(t, l.js.DeleteConsumer(ctx, "TEST", "consumer"))
	l.publish(many(n)...)
	stacktest.Eventually(t, time.Minute, "all are handled", func() (bool, error) { return l.count("effect") >= 2*n, nil })
	l.settle()
	must(t, l.js.DeleteStream(ctx, "TEST"))
	_, err := l.js.CreateStream(ctx, broker.Stream("TEST", "test.>"))
	must(t, err)
	l.publish(many(n)...)
	stacktest.Eventually(t, time.Minute, "those of the new stream are handled", func() (bool, error) { return l.count("effect") >= 3*n, nil })
	l.settle()
	l.wantEffects(3 * n)
	l.wantLetters()
}

// The broker comes back with an older state of its disk, so that the durable is ahead of its stream. What it lost is sent again,
// and what is new comes behind: the first has no second effect, the other is not skipped.
func TestAStreamThatIsRolledBackCostsNothing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := newLine(t, database(t))
	l.start(l.group(inbox.GroupConfig{Max: 10}))
	const n = 100
	disk, saved := stacktest.StreamFolder(t, l.server, "TEST"), filepath.Join(t.TempDir(), "saved")
	restart := func(while func()) {
		t.Helper()
		must(t, l.server.Stop(ctx))
		while()
		must(t, l.server.Restart(ctx))
		stacktest.Eventually(t, time.Minute, "connected again", func() (bool, error) { return l.nc.IsConnected(), nil })
	}
	l.publish(many(n)...)
	l.settle()
	restart(func() { stacktest.CopyFolder(t, disk, saved) })
	lost := many(n)
	l.publish(lost...)
	l.settle()
	restart(func() {
		must(t, os.RemoveAll(disk))
		stacktest.CopyFolder(t, saved, disk)
	})
	s, err := l.js.Stream(ctx, "TEST")
	must(t, err)
	if last := s.CachedInfo().State.LastSeq; last != n {
		t.Fatalf("the stream ends at %d: it was not rolled back", last)
	}
	l.publish(many(n / 2)...) // in the lost ones' places
	l.publish(lost...)
	l.publish(many(n / 2)...)
	stacktest.Eventually(t, time.Minute, "the new ones are handled", func() (bool, error) { return l.count("effect") >= 3*n, nil })
	l.settle()
	l.wantEffects(3 * n)
	l.wantLetters()
}

func TestABrokerThatIsKilledUnderLoadCostsNothing(t *testing.T) {
	t.Parallel()
	l := newLine(t, database(t))
	const n = 600
	l.publish(many(n)...)
	l.start(l.group(inbox.GroupConfig{Max: 10}))
	for i := range 2 {
		stacktest.Eventually(t, time.Minute, "some are handled", func() (bool, error) { return l.count("effect") > i*n/3, nil })
		must(t, l.server.Kill())
		must(t, l.server.Restart(context.Background()))
	}
	stacktest.Eventually(t, time.Minute, "connected again", func() (bool, error) { return l.nc.IsConnected(), nil })
	l.publish(many(n)...)
	l.settle()
	l.wantEffects(2 * n)
	l.wantLetters()
}

// A stop in midstream, with messages in hand, acknowledges them, each time.
func TestAProcessThatIsStoppedUnderLoadLeavesNothingToRedeliver(t *testing.T) {
	t.Parallel()
	l := newLine(t, database(t))
	const stops = 20
	each := size(5000, 500)
	look := func() *jetstream.ConsumerInfo {
		t.Helper()
		c, err := l.js.Consumer(context.Background(), "TEST", "consumer")
		must(t, err)
		return c.CachedInfo()
	}
	for i := range stops {
		before := l.count("effect")
		l.publishAtOnce(many(each))
		p := l.command("stops in order")
		stacktest.Eventually(t, time.Minute, "it has handled some and has more in hand", func() (bool, error) {
			return l.count("effect") > before && look().NumAckPending > 0, nil
		})
		must(t, p.cmd.Process.Signal(syscall.SIGTERM))
		if err := <-p.dead; err != nil {
			t.Fatalf("stop %d: %v", i, err)
		}
		if c := look(); c.NumAckPending != 0 || c.Delivered.Consumer != c.Delivered.Stream {
			t.Fatalf("stop %d: %d deliveries of %d messages, %d are not acknowledged", i, c.Delivered.Consumer, c.Delivered.Stream, c.NumAckPending)
		}
	}
	l.start(l.group(inbox.GroupConfig{}))
	if n := l.settle(); n != uint64(each*stops) {
		t.Errorf("%d deliveries of %d messages", n, each*stops)
	}
	l.wantEffects(each * stops)
}

// One process stands still in the middle of a transaction, its locks held. Another one handles what is its own, and what the
// first one held when it goes on or dies.
func TestAProcessThatStandsStillWithItsLocks(t *testing.T) {
	t.Parallel()
	l := newLine(t, database(t))
	l.publish(event("stand still"))
	p := l.command("stands still")
	t.Cleanup(func() { _ = p.cmd.Process.Signal(syscall.SIGCONT) })
	stacktest.Eventually(t, time.Minute, "it stands still in its transaction", func() (bool, error) {
		state, err := os.ReadFile("/proc/" + p.pid() + "/stat")
		if err != nil || !bytes.Contains(state, []byte(") T ")) {
			return false, errors.Join(fmt.Errorf("it is not stopped: %.40s", state), err)
		}
		if n := l.count("pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"); n != 1 {
			return false, fmt.Errorf("it is stopped with %d transactions open", n)
		}
		return true, nil
	})
	const n = 200
	l.publish(many(n)...)
	l.start(l.group(inbox.GroupConfig{}))
	stacktest.Eventually(t, time.Minute, "the others are handled", func() (bool, error) { return l.count("effect") == n, nil })
	stacktest.Eventually(t, time.Minute, "its message has come to another process too", func() (bool, error) {
		c, err := l.js.Consumer(context.Background(), "TEST", "consumer")
		return err == nil && c.CachedInfo().NumRedelivered > 0, err
	})
	must(t, p.cmd.Process.Signal(syscall.SIGCONT))
	l.settle()
	l.wantEffects(n + 1)
	l.wantLetters()
}

// All events are of one key: they run in groups, in their order.
func TestAHotKeyRunsInGroupsAndInOrder(t *testing.T) {
	t.Parallel()
	l := newLine(t, database(t))
	n := size(100_000, 10_000)
	var groups atomic.Int32
	es := make([]oncebox.Event, n)
	for i := range es {
		es[i] = event("good")
		es[i].Key, es[i].Version = "hot", int64(i+1)
	}
	l.publishAtOnce(es)
	var last int64
	h, err := l.inboxWith(inbox.Config{Consumer: "consumer"}).Group(func(ctx context.Context, tx pgx.Tx, es []oncebox.Event) []error {
		groups.Add(1)
		if !slices.IsSortedFunc(es, func(a, b oncebox.Event) int { return int(a.Version - b.Version) }) || es[0].Version <= last {
			t.Errorf("%d to %d ran behind %d", es[0].Version, es[len(es)-1].Version, last)
		}
		last = es[len(es)-1].Version
		return playAll(ctx, tx, es)
	}, inbox.GroupConfig{})
	must(t, err)
	l.start(h)
	l.settle()
	l.wantEffects(n)
	if int(groups.Load()) > n/10 {
		t.Errorf("%d groups for %d events of one key: they did not gather", groups.Load(), n)
	}
}

// A poisonous message that its handler refuses costs its group no more round trips than a good one, and is one dead letter.
func TestPoisonCostsTheGoodOnesNoRoundTrips(t *testing.T) {
	t.Parallel()
	const n, most = 1000, 100
	trips := map[int]int64{}
	for _, bad := range []int{0, 1, 10} { // of a hundred
		r := newRig(t)
		counted := &roundTrips{}
		cfg := r.pool.Config()
		cfg.ConnConfig.Tracer = counted
		pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
		must(t, err)
		t.Cleanup(pool.Close)
		h, err := (&rig{t: t, pool: pool}).inbox("consumer").Group(playAll, inbox.GroupConfig{Max: most, Linger: time.Minute, Lanes: 1})
		must(t, err)
		es := many(n)
		for i := range es {
			if i%100 < bad {
				es[i].Data = []byte("refused")
			}
		}
		for _, err := range inOrder(h, es...) {
			must(t, err)
		}
		r.wantEffects(n - n/100*bad)
		r.wantLetters(slices.Repeat([]string{"refused"}, n/100*bad)...)
		trips[bad] = counted.n.Load()
	}
	// The dead letters of a group are written in one more.
	if groups := int64(n / most); trips[1] > trips[0]+groups || trips[10] > trips[0]+groups {
		t.Errorf("round trips by how many of a hundred are bad: %v", trips)
	}
}

// roundTrips counts what is sent to Postgres and waited for.
type roundTrips struct{ n atomic.Int64 }

func (r *roundTrips) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	r.n.Add(1)
	return ctx
}
func (*roundTrips) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (r *roundTrips) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	r.n.Add(1)
	return ctx
}
func (*roundTrips) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (*roundTrips) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}
