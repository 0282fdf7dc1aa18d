package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

func TestRelaySendsWhatIsCommittedAndNothingElse(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.relay()
	a, b := event("k", 1), event("k", 2)
	r.commit(a)
	undone := r.begin()
	r.add(undone, event("k", 9))
	must(t, undone.Rollback(context.Background()))
	r.commit(b)
	r.eventuallyLogged(a, b)
}

// A row whose transaction commits after rows with a higher seq were sent: a cursor at the greatest seq would never look at it
// again.
func TestARowThatCommitsLateIsSent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.relay()
	late, early := event("late", 1), event("early", 1)
	tx := r.begin()
	r.add(tx, late)
	r.commit(early)
	r.eventuallyLogged(early)
	must(t, tx.Commit(context.Background()))
	r.eventuallyLogged(early, late)
}

// An old transaction, with an xid below the others', gets the key's lock last: its event is the last, too. Order by xid would
// turn them round.
func TestAnOldTransactionThatGetsTheKeyLastIsSentLast(t *testing.T) {
	t.Parallel()
	for name, relayFirst := range map[string]bool{"in one round": false, "across rounds": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			opening := event("other", 1)
			want := []oncebox.Event{opening}
			r.commit(opening)
			if relayFirst {
				r.relay()
				r.eventuallyLogged(opening)
			}
			old := r.begin()
			_, err := old.Exec(context.Background(), "SELECT pg_current_xact_id()")
			must(t, err)
			if relayFirst { // a tick that sees the old transaction open
				between := event("other", 2)
				r.commit(between)
				want = append(want, between)
				r.eventuallyLogged(want...)
			}
			first, second := event("k", 1), event("k", 2)
			blocked := r.begin() // holds the round that first would be in open, so that both are in one
			r.add(blocked, event("k", 99))
			r.commit(first)
			r.add(old, second)
			must(t, old.Commit(context.Background()))
			must(t, blocked.Rollback(context.Background()))
			if !relayFirst {
				r.relay()
			}
			r.eventuallyLogged(append(want, first, second)...)
		})
	}
}

func TestAnOpenTransactionDelaysNobody(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.relay()
	tx := r.begin()
	r.add(tx, event("open", 1))
	var want []oncebox.Event
	for i := range int64(300) {
		want = append(want, event("k", i+1))
	}
	for page := range slices.Chunk(want, 30) {
		r.commit(page...)
	}
	r.eventuallyLogged(want...)
}

// A row whose transaction id is of another cluster, as a restore of data alone brings it, is an outage, and not a tick for each look.
func TestARowThatNoSnapshotShowsIsAnError(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	relay := r.relay()
	first := event("k", 1)
	r.commit(first)
	r.eventuallyLogged(first)
	_, err := r.pool.Exec(context.Background(), `INSERT INTO oncebox.outbox (xid, id, source, topic, key, version, tenant_id, headers, payload)
		VALUES ('999999999', gen_random_uuid(), 'test', 'test.happened.v1', 'foreign', 1, '', '{}', '{}')`)
	must(t, err)
	relay.Wake()
	stacktest.Eventually(t, 5*time.Second, "it is an error", func() (bool, error) { return relay.metric(t, "failures_total") > 1, nil })
	second := event("k", 2)
	r.commit(second)
	r.eventuallyLogged(first, second)
}

// The relay stored events and died before it saved its cursor: the next one reads them back and skips them.
func TestWhatTheStreamHoldsIsNotSentAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.relay()
	var want []oncebox.Event
	for i := range int64(120) {
		want = append(want, event("k", i+1))
	}
	r.commit(want[:60]...)
	r.eventuallyLogged(want[:60]...)
	r.commit(want[60:]...)
	r.eventuallyLogged(want...)
	first.stop()
	// The cursor as a crash in the middle would have left it.
	_, err := r.pool.Exec(context.Background(), "UPDATE oncebox.outbox_cursor SET n = 1, seq = 20, stream_seq = 20")
	must(t, err)
	second := r.relay()
	more := event("k", 1000)
	r.commit(more)
	r.eventuallyLogged(append(want, more)...)
	if skipped := second.metric(t, "skipped_total"); skipped != 100 {
		t.Errorf("%v events were skipped as read back, want 100", skipped)
	}
}

func TestAStandbyTakesOverAndTheOldRelayIsFenced(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.relay()
	a, b := event("k", 1), event("k", 2)
	r.commit(a)
	r.eventuallyLogged(a)
	standby := r.relay()
	if standby.metric(t, "leading") != 0 {
		t.Error("two relays lead at once")
	}
	// The first one's lease is stolen, as if it had been paused for longer than that.
	_, err := r.pool.Exec(context.Background(), "UPDATE oncebox.outbox_cursor SET lease_until = '-infinity', epoch = epoch + 1")
	must(t, err)
	stacktest.Eventually(t, 5*time.Second, "the first relay sees that its epoch is over", func() (bool, error) {
		return first.metric(t, "failures_total") > 0, nil
	})
	first.stop()
	stacktest.Eventually(t, 5*time.Second, "the standby leads", func() (bool, error) { return standby.metric(t, "leading") == 1, nil })
	r.commit(b)
	r.eventuallyLogged(a, b)
}

func TestAStoppedRelayHasSentWhatWasCommittedAndGivesItsLeaseUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.relay(func(c *outbox.RelayConfig) { c.Lease = time.Hour; c.MinPoll, c.MaxPoll = time.Minute, time.Minute })
	stacktest.Eventually(t, 5*time.Second, "it leads", func() (bool, error) { return first.metric(t, "leading") == 1, nil })
	var want []oncebox.Event
	for i := range int64(500) {
		want = append(want, event("k", i+1))
	}
	r.commit(want...) // nobody wakes it
	first.stop()
	if got := r.log(); !slices.Equal(ids(got), ids(want)) {
		t.Errorf("%d events in the stream when Run returned, want %d", len(got), len(want))
	}
	second := r.relay()
	stacktest.Eventually(t, 5*time.Second, "the next relay leads at once", func() (bool, error) { return second.metric(t, "leading") == 1, nil })
}

// A backlog is no reason to outstay the stop: what is not sent in time is the next relay's.
func TestAStopDoesNotWaitForABacklog(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const n = 20_000
	_, err := r.pool.Exec(context.Background(), `INSERT INTO oncebox.outbox (id, source, topic, key, version, tenant_id, headers, payload)
		SELECT gen_random_uuid(), 'test', 'test.happened.v1', 'k', g, '', '{}', '{}' FROM generate_series(1, $1) g`, n)
	must(t, err)
	first := r.relay(func(c *outbox.RelayConfig) { c.DrainTimeout = 50 * time.Millisecond; c.Lease = time.Hour })
	stacktest.Eventually(t, 10*time.Second, "it sends", func() (bool, error) { return first.metric(t, "stored_total") > 0, nil })
	began := time.Now()
	first.stop()
	if took, sent := time.Since(began), r.logged(); took > 5*time.Second || sent == n {
		t.Errorf("the stop took %s and sent %d of %d", took, sent, n)
	}
	second := r.relay()
	sent := func() int { // as the relays know: the last acknowledgement comes behind the last event
		return int(first.metric(t, "stored_total") + second.metric(t, "stored_total") + second.metric(t, "skipped_total"))
	}
	stacktest.Eventually(t, 60*time.Second, "the next relay sends the rest", func() (bool, error) { return reached(sent(), n) })
	if sent() != n || r.logged() != n {
		t.Errorf("%d sent, %d in the stream, want %d", sent(), r.logged(), n)
	}
}

func TestTheLargestEventThatTheWriterTakesIsSent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.relay()
	large := event(strings.Repeat("é", 400), 1<<62)
	large.Headers = map[string]string{"x": strings.Repeat("y", 4000)}
	fits := func(size int) bool {
		large.Data = make([]byte, size)
		return !errors.Is(r.writer.Queue(&pgx.Batch{}, large), outbox.ErrTooLarge)
	}
	size := sort.Search(1<<20, func(n int) bool { return !fits(n) }) - 1
	fits(size)
	wide := event("k", 1)
	wide.Headers = make(map[string]string)
	for i := 0; !errors.Is(r.writer.Queue(&pgx.Batch{}, wide), outbox.ErrTooLarge); i++ {
		wide.Headers[fmt.Sprint("x", i)] = strings.Repeat("y", 1000)
	}
	delete(wide.Headers, "x0")
	behind := event("k", 2)
	r.commit(large, wide, behind)
	r.eventuallyLogged(large, wide, behind)
}

func TestWakeCutsThePollShort(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	relay := r.relay(func(c *outbox.RelayConfig) { c.Lease = time.Hour; c.MinPoll, c.MaxPoll = time.Minute, time.Minute })
	stacktest.Eventually(t, 5*time.Second, "it leads", func() (bool, error) { return relay.metric(t, "leading") == 1, nil })
	e := event("k", 1)
	r.commit(e)
	relay.Wake()
	r.eventuallyLogged(e)
}

// The process that commits has a standby; its word goes to the one that leads.
func TestAPingOfAnotherProcessCutsThePollShort(t *testing.T) {
	t.Parallel()
	server := stacktest.NATS(t)
	r := rigOn(t, stacktest.Postgres(t, migrations.Outbox), server)
	relay := r.relay(func(c *outbox.RelayConfig) { c.Lease = time.Hour; c.MinPoll, c.MaxPoll = time.Minute, time.Minute })
	_, err := broker.Wakeups(r.nc, "test", func(string) { relay.Pinged() })
	must(t, err)
	must(t, r.nc.Flush())
	tell, err := broker.Wakeups(stacktest.Connect(t, server), "test", func(string) {})
	must(t, err)
	stacktest.Eventually(t, 5*time.Second, "it leads", func() (bool, error) { return relay.Leading(), nil })
	e := event("k", 1)
	r.commit(e)
	tell("")
	r.eventuallyLogged(e)
}

func TestNothingIsWrittenWhileNothingHappens(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	relay := r.relay(func(c *outbox.RelayConfig) { c.Lease = time.Hour })
	r.commit(event("k", 1))
	stacktest.Eventually(t, 5*time.Second, "the event is stored", func() (bool, error) { return relay.metric(t, "stored_total") == 1, nil })
	state := func() (s string) {
		must(t, r.pool.QueryRow(context.Background(), "SELECT (SELECT max(n) FROM oncebox.outbox_tick) || ' ' || saved_at FROM oncebox.outbox_cursor").Scan(&s))
		return s
	}
	stacktest.Eventually(t, 5*time.Second, "the round is saved", func() (saved bool, err error) {
		err = r.pool.QueryRow(context.Background(), "SELECT n > (SELECT max(n) FROM oncebox.outbox_tick) FROM oncebox.outbox_cursor").Scan(&saved)
		return saved, err
	})
	before := state()
	for range 200 { // looks, each of which finds nothing
		relay.Wake()
		must(t, r.pool.Ping(context.Background()))
	}
	if after := state(); after != before {
		t.Errorf("tick and save went from %s to %s", before, after)
	}
}

func TestEventsWaitWhileTheBrokerIsAway(t *testing.T) {
	t.Parallel()
	server := stacktest.NATS(t)
	r := rigOn(t, stacktest.Postgres(t, migrations.Outbox), server)
	a, b := event("k", 1), event("k", 2)
	relay := r.relay()
	r.commit(a)
	r.eventuallyLogged(a)
	must(t, server.Kill())
	r.commit(b)
	stacktest.Eventually(t, 10*time.Second, "the relay notices", func() (bool, error) { return relay.metric(t, "failures_total") > 0, nil })
	must(t, server.Restart(context.Background()))
	r.eventuallyLogged(a, b)
	r.parked(relay, 0) // an outage is no event's fault
}

// A broker that dies with events on their way to it has never got them: what is not acknowledged is not counted as stored.
func TestEventsThatABrokerTookToItsGraveAreSentAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	relay := r.relay()
	var want []oncebox.Event
	for i := range int64(20) {
		want = append(want, event("k", i+1))
	}
	r.commit(want[:10]...)
	r.eventuallyLogged(want[:10]...)
	given := relay.metric(t, "batch_rows")
	must(t, r.server.Pause())
	r.commit(want[10:]...)
	stacktest.Eventually(t, 15*time.Second, "they are on their way", func() (bool, error) { return relay.metric(t, "batch_rows") > given, nil })
	must(t, r.server.Kill())
	must(t, r.server.Restart(context.Background()))
	r.eventuallyLogged(want...)
}

func TestALostStreamIsFilledAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.relay()
	var want []oncebox.Event
	for i := range int64(100) {
		want = append(want, event("k", i+1))
	}
	for page := range slices.Chunk(want, 10) {
		r.commit(page...)
	}
	r.eventuallyLogged(want...)
	must(t, r.js.DeleteStream(context.Background(), stream))
	more := event("k", 1000)
	r.commit(more)
	r.eventuallyLogged(append(want, more)...)
}

func TestAStreamOfAnotherShapeIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	cfg := broker.Stream(stream, "test.>")
	cfg.MaxBytes = 1 << 20
	_, err := r.js.CreateStream(context.Background(), cfg)
	must(t, err)
	relay := r.relay()
	r.commit(event("k", 1))
	stacktest.Eventually(t, 5*time.Second, "the relay refuses", func() (bool, error) { return relay.metric(t, "failures_total") > 1, nil })
	if got := r.log(); len(got) != 0 {
		t.Errorf("%d events were stored all the same", len(got))
	}
}

func TestASequenceWithACacheIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, err := r.pool.Exec(context.Background(), "ALTER SEQUENCE oncebox.outbox_seq_seq CACHE 32")
	must(t, err)
	sink, err := broker.NewSink(r.nc, broker.Stream(stream, "test.>"), broker.SinkConfig{})
	must(t, err)
	relay, err := outbox.NewRelay(r.pool, sink, outbox.RelayConfig{Name: "test"})
	must(t, err)
	if err := relay.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "CACHE 32") {
		t.Errorf("Run returned %v, want an error that names CACHE 32", err)
	}
}
