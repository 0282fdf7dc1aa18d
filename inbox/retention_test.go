package inbox_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/internal/stacktest"
)

func TestPruneForgetsWhatIsOldAndDone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := context.Background()
	horizon := time.Now().Add(-30 * 24 * time.Hour)
	var horizonErr error
	in := r.inboxWith(inbox.Config{Consumer: "consumer", Retention: 24 * time.Hour,
		Horizon: func(context.Context) (time.Time, error) { return horizon, horizonErr }})
	since, err := in.CompleteSince(ctx)
	if must(t, err); !since.IsZero() {
		t.Errorf("complete since %s before anything was pruned", since)
	}
	must(t, r.in.One(play)(event("refused").Message()))
	_ = r.in.One(play)(again(event("passing"), 2)) // started, not done
	for range 50 {
		must(t, r.in.One(effect)(event("a").Message()))
	}
	must(t, r.inbox("another").One(effect)(event("a").Message()))
	_, err = r.pool.Exec(ctx, "UPDATE oncebox.inbox SET at = at - interval '20 days'")
	must(t, err)
	young := event("young")
	must(t, r.in.One(effect)(young.Message()))

	horizonErr = errors.New("nobody knows")
	if _, err := in.Prune(ctx); !errors.Is(err, horizonErr) {
		t.Errorf("without a horizon Prune returned %v", err)
	}
	horizonErr = nil
	since, err = in.Prune(ctx)
	must(t, err)
	if n := r.count("oncebox.inbox"); n != 54 || since.Sub(horizon.Add(-time.Minute)).Abs() > time.Millisecond {
		t.Errorf("%d rows are left of 54 that may still come, complete since %s", n, since)
	}
	horizon = time.Now()
	since, err = in.Prune(ctx)
	must(t, err)
	if n := r.count("oncebox.inbox WHERE consumer = 'consumer'"); n != 2 { // what was started, and the young one
		t.Errorf("%d rows are left, want 2", n)
	}
	if n := r.count("oncebox.inbox WHERE consumer = 'another'"); n != 1 {
		t.Error("another consumer's row is gone")
	}
	if age := time.Since(since); age < 24*time.Hour || age > 25*time.Hour {
		t.Errorf("complete since %s", since)
	}
	must(t, r.in.One(effect)(young.Message()))
	r.wantEffects(52)
	// It never goes back.
	horizon = time.Now().Add(-30 * 24 * time.Hour)
	again, err := in.Prune(ctx)
	must(t, err)
	kept, err := in.CompleteSince(ctx)
	must(t, err)
	if again.Before(since) || !kept.Equal(again) {
		t.Errorf("complete since %s, then %s, kept %s", since, again, kept)
	}
	r.wantLetters("refused")
}

// A message is published by the broker's clock and handled by the database's, which may be a little behind: it looks handled before
// it was published, and may come again all the same.
func TestPruneLeavesAMinuteForClocksThatDiffer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	es := []oncebox.Event{event("handled 30 seconds before the horizon"), event("handled 90 seconds before it")}
	published := time.Now()
	for i, e := range es {
		must(t, r.in.One(effect)(e.Message()))
		_, err := r.pool.Exec(t.Context(), "UPDATE oncebox.inbox SET at = $1 WHERE id = $2", published.Add(-time.Duration(30+60*i)*time.Second), e.ID)
		must(t, err)
	}
	in := r.inboxWith(inbox.Config{Consumer: "consumer", Retention: time.Nanosecond,
		Horizon: func(context.Context) (time.Time, error) { return published, nil }})
	_, err := in.Prune(t.Context())
	must(t, err)
	must(t, in.One(effect)(again(es[0], 2)))
	r.wantEffects(2)
	if n := r.count("oncebox.inbox"); n != 1 {
		t.Errorf("%d rows are left, want the young one", n)
	}
}

// A row that a peer has locked is left for the next time.
func TestPruneWaitsForNoLock(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := context.Background()
	for range 3 {
		must(t, r.in.One(effect)(event("a").Message()))
	}
	tx, err := r.pool.Begin(ctx)
	must(t, err)
	defer tx.Rollback(ctx)
	_, err = tx.Exec(ctx, "SELECT FROM oncebox.inbox ORDER BY id LIMIT 1 FOR UPDATE")
	must(t, err)
	in := r.inboxWith(inbox.Config{Consumer: "consumer", Retention: time.Nanosecond})
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err = in.Prune(ctx)
	must(t, err)
	if n := r.count("oncebox.inbox"); n != 1 {
		t.Errorf("%d rows are left, want the locked one", n)
	}
}

// Whoever asks is told of what will be gone before anything is.
func TestCompleteSinceMovesBeforeAnythingIsPruned(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := context.Background()
	must(t, r.in.One(effect)(event("a").Message()))
	tx, err := r.pool.Begin(ctx)
	must(t, err)
	defer tx.Rollback(ctx)
	_, err = tx.Exec(ctx, "LOCK TABLE oncebox.inbox IN SHARE MODE") // nothing is deleted until then
	must(t, err)
	in := r.inboxWith(inbox.Config{Consumer: "consumer", Retention: time.Nanosecond})
	pruned := make(chan error, 1)
	go func() {
		_, err := in.Prune(ctx)
		pruned <- err
	}()
	stacktest.Eventually(t, 20*time.Second, "the deletion waits", func() (bool, error) {
		return r.count("pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'DELETE%'") == 1, nil
	})
	since, err := in.CompleteSince(ctx)
	if must(t, err); since.IsZero() || r.count("oncebox.inbox") != 1 {
		t.Errorf("complete since %s while nothing is pruned yet", since)
	}
	must(t, tx.Rollback(ctx))
	must(t, <-pruned)
	if r.count("oncebox.inbox") != 0 {
		t.Error("nothing was pruned")
	}
}

// A producer that keeps more than it said makes itself heard, and what is left is not pruned.
func TestAHorizonBehindWhatIsRememberedIsSeen(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var horizon atomic.Pointer[time.Time]
	says := func(at time.Time) { horizon.Store(&at) }
	reg := prometheus.NewRegistry()
	in := r.inboxWith(inbox.Config{Consumer: "consumer", Retention: time.Nanosecond, HorizonEvery: time.Millisecond, Registerer: reg,
		Horizon: func(context.Context) (time.Time, error) { return *horizon.Load(), nil }})
	says(time.Now().Add(-time.Hour))
	_, err := in.Prune(t.Context())
	must(t, err)
	must(t, r.in.One(effect)(event("a").Message()))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		in.WatchHorizon(ctx)
	}()
	forgotten := func() float64 {
		families, err := reg.Gather()
		must(t, err)
		for _, f := range families {
			if f.GetName() == "oncebox_inbox_forgotten_seconds" {
				return f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		t.Fatal("no metric")
		return 0
	}
	says(time.Now().Add(-3 * time.Hour))
	stacktest.Eventually(t, 20*time.Second, "two hours are forgotten", func() (bool, error) { return forgotten() > 7000, nil })
	_, err = in.Prune(t.Context())
	if must(t, err); r.count("oncebox.inbox") != 1 {
		t.Error("what may still come was pruned")
	}
	says(time.Now())
	stacktest.Eventually(t, 20*time.Second, "nothing is", func() (bool, error) { return forgotten() == 0, nil })
	stop()
	<-ended
}
