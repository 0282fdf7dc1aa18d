package outbox_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

// While what the log holds is skipped, the position that it was read back at is the only one that may be saved: rows that are sent
// meanwhile stand behind all of it, and a log that loses its end again would be missed.
func TestNoPositionIsSavedWhileWhatTheLogHoldsIsSkipped(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := context.Background()
	first := r.relay()
	var want []oncebox.Event
	for i := range int64(60) {
		want = append(want, event("k", i+1))
	}
	r.commit(want...)
	r.eventuallyLogged(want...)
	first.stop()
	// One that the database does not have, as after its restore: the relay looks for it to the end.
	_, err := r.js.PublishMsg(ctx, &nats.Msg{Subject: "test.happened.v1", Header: nats.Header{
		oncebox.HeaderID: {uuid.NewString()}, oncebox.HeaderKey: {"k"}, oncebox.HeaderVersion: {"1"}}})
	must(t, err)
	for _, sql := range []string{
		"UPDATE oncebox.outbox_cursor SET n = 1, seq = 0, stream_seq = 0", // as a crash before any save would have left it
		"CREATE TABLE saved (n bigint, seq bigint, stream_seq bigint)",
		`CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO saved VALUES (NEW.n, NEW.seq, NEW.stream_seq); RETURN NULL; END $$`,
		"CREATE TRIGGER note AFTER UPDATE ON oncebox.outbox_cursor FOR EACH ROW EXECUTE FUNCTION note()",
	} {
		_, err := r.pool.Exec(ctx, sql)
		must(t, err)
	}
	r.commit(event("k", 61))
	second := r.relay(func(c *outbox.RelayConfig) { c.SaveEvery, c.Page = time.Nanosecond, 10 })
	stacktest.Eventually(t, 15*time.Second, "all is in the stream", func() (bool, error) { return reached(r.logged(), 62) })
	stacktest.Eventually(t, 15*time.Second, "and saved", func() (ok bool, err error) {
		return ok, r.pool.QueryRow(ctx, "SELECT stream_seq = 62 FROM oncebox.outbox_cursor").Scan(&ok)
	})
	if n := second.metric(t, "skipped_total"); n != 60 {
		t.Errorf("%v events were skipped, want 60", n)
	}
	var all, early int
	must(t, r.pool.QueryRow(ctx, "SELECT count(*), count(*) FILTER (WHERE (n, seq) > (1, 0) AND stream_seq < 60) FROM saved").Scan(&all, &early))
	if all < 3 || early > 0 {
		t.Errorf("of %d positions saved, %d are ahead of what the log is known to hold", all, early)
	}
}

// A night without a broker leaves no tick for each try, and rounds in which nothing is cost no lease.
func TestAnOutageWritesNothingAndEmptyRoundsKeepTheLease(t *testing.T) {
	t.Parallel()
	server := stacktest.NATS(t)
	r := rigOn(t, stacktest.Postgres(t, migrations.Outbox), server)
	ctx := context.Background()
	first := r.relay()
	a, b := event("k", 1), event("k", 2)
	r.commit(a)
	r.eventuallyLogged(a)
	first.stop()
	must(t, server.Kill())
	r.commit(b)
	ticks := func() (n int) {
		must(t, r.pool.QueryRow(ctx, "SELECT max(n) FROM oncebox.outbox_tick").Scan(&n))
		return n
	}
	before := ticks()
	second := r.relay()
	stacktest.Eventually(t, 30*time.Second, "it has tried again and again", func() (bool, error) {
		return second.metric(t, "failures_total") >= 3, nil
	})
	if after := ticks(); after != before {
		t.Errorf("tries in vain wrote %d ticks", after-before)
	}
	second.stop()

	const empty = 1000 // at a millisecond each, some times the lease
	_, err := r.pool.Exec(ctx, `INSERT INTO oncebox.outbox_tick (cursor, n, epoch, prev, snap, stream_seq, slot)
		SELECT cursor, n + g, epoch, snap, snap, stream_seq, ((n + g) >> 16) & 15 FROM oncebox.outbox_tick, generate_series(1, $1) g WHERE n = $2`, empty, before)
	must(t, err)
	must(t, server.Restart(ctx))
	stacktest.Eventually(t, 15*time.Second, "the connection is back", func() (bool, error) { return r.nc.IsConnected(), nil })
	third := r.relay()
	r.eventuallyLogged(a, b)
	if n := third.metric(t, "failures_total"); n != 0 {
		t.Errorf("%v failures on the way through %d empty rounds", n, empty)
	}
}
