package outbox_test

import (
	"context"
	"testing"
	"time"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/outbox"
)

func TestARangeIsSentAgain(t *testing.T) {
	t.Parallel()
	for name, sync := range map[string]broker.Sync{"singles": broker.SyncInterval, "batches": broker.SyncAlways} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			ctx := context.Background()
			relay := r.relayOn(broker.SinkConfig{Sync: sync, Timeout: 5 * time.Second})
			var want []oncebox.Event
			for i := range int64(50) {
				want = append(want, event("k", i+1))
			}
			want[20].Key = "other"
			r.commit(want...)
			r.eventuallyLogged(want...)
			which := outbox.Range{FromSeq: 11, ToSeq: 30, Key: "k", Topic: "test.happened.v1", From: time.Now().Add(-time.Hour), To: time.Now().Add(time.Hour)}
			report, err := relay.Replay(ctx, which, outbox.ReplayOptions{DryRun: true})
			if want := (outbox.Report{Events: 19, FirstSeq: 11, LastSeq: 30}); err != nil || report != want {
				t.Fatalf("a dry run says %+v, %v; want %+v", report, err, want)
			}
			for range 2 { // also what was sent again is sent once more, and not twice
				report, err = relay.Replay(ctx, which, outbox.ReplayOptions{Rate: 1000})
				if err != nil || report.Events != 19 {
					t.Fatalf("Replay says %+v, %v", report, err)
				}
			}
			replayed := append(append([]oncebox.Event{}, want[10:20]...), want[21:30]...)
			want = append(append(want, replayed...), replayed...)
			r.eventuallyLogged(want...)
			if n := relay.metric(t, "refusals_total"); n != 0 {
				t.Errorf("%v chains were refused", n)
			}
		})
	}
}

func TestReplayKeepsToItsRate(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fill(60)
	relay := r.relay()
	began := time.Now()
	report, err := relay.Replay(context.Background(), outbox.Range{FromSeq: 1}, outbox.ReplayOptions{Rate: 100})
	if took := time.Since(began); err != nil || report.Events != 60 || took < 450*time.Millisecond {
		t.Errorf("%+v in %s, %v", report, took, err)
	}
	if _, err := relay.Replay(context.Background(), outbox.Range{}, outbox.ReplayOptions{}); err == nil {
		t.Error("a range without bounds was taken")
	}
}

// A relay that died in a replay: the next one reads back both, and tells the one from the other by their number.
func TestWhatIsReplayedIsToldFromWhatWasSentFirst(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.relay()
	a, b := event("k", 1), event("k", 2)
	r.commit(a, b)
	r.eventuallyLogged(a, b)
	first.stop()
	_, err := first.Replay(context.Background(), outbox.Range{FromSeq: 1}, outbox.ReplayOptions{})
	must(t, err)
	_, err = r.pool.Exec(context.Background(), "UPDATE oncebox.outbox_cursor SET n = 1, seq = 0, stream_seq = 0")
	must(t, err)
	second := r.relay()
	r.eventuallyLogged(a, b, a, b)
	if n := second.metric(t, "skipped_total"); n != 2 {
		t.Errorf("%v events were skipped, want 2", n)
	}
}

func TestADelayedEventIsSentWhenItIsDueAndDelaysNobody(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	relay := r.relay()
	ctx := context.Background()
	later, never, now := event("k", 1), event("k", 2), event("k", 3)
	tx := r.begin()
	var dueAt time.Time
	must(t, tx.QueryRow(ctx, "SELECT clock_timestamp() + interval '1 second'").Scan(&dueAt))
	must(t, r.writer.AddAt(ctx, tx, dueAt, later))
	must(t, r.writer.AddAt(ctx, tx, dueAt.Add(time.Hour), never))
	must(t, r.writer.Add(ctx, tx, now))
	must(t, tx.Commit(ctx))
	relay.Wake()
	r.eventuallyLogged(now)
	r.eventuallyLogged(now, later)
	var sentAt time.Time
	must(t, r.pool.QueryRow(ctx, "SELECT time FROM oncebox.outbox WHERE id = $1", later.ID).Scan(&sentAt))
	if sentAt.Before(dueAt) {
		t.Errorf("it was sent at %s, before %s", sentAt, dueAt)
	}
	undone := r.begin()
	must(t, r.writer.AddAt(ctx, undone, dueAt, event("k", 4)))
	must(t, undone.Rollback(ctx))
	r.commit(never)
	stacktest.Eventually(t, 10*time.Second, "one more", func() (bool, error) { return reached(r.logged(), 3) })
	r.eventuallyLogged(now, later, never)
}
