package inbox_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// Failures and outages are no crashes, however many.
func TestFailedAttemptsAreNotCounted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := event("passing")
	for n := 1; n <= 10; n++ {
		if err := r.in.One(play)(again(e, n)); err == nil {
			t.Fatal("a failure was taken for done")
		}
	}
	r.wantLetters()
	if n := r.count("oncebox.inbox WHERE crashes > 0 OR owner IS NOT NULL"); n != 0 {
		t.Error("an attempt that ended was counted, or left open")
	}
	must(t, r.in.One(effect)(again(e, 11)))
	r.wantEffects(1)
}

// Attempts of processes that died: what a message leaves behind when its process is gone is its open row.
func TestAMessageThatKillsItsProcessIsDeadAfterMaxCrashes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e, other := event("killer"), event("beside it")
	die := make(chan struct{})
	defer close(die)
	for n := 2; n <= 4; n++ { // each in a process of its own, from which nothing more is heard
		begun := make(chan struct{})
		in := r.inbox("consumer")
		go func() {
			_ = in.One(func(context.Context, pgx.Tx, oncebox.Event) error {
				close(begun)
				<-die
				return errors.New("never")
			})(again(e, n))
		}()
		<-begun
		must(t, r.in.One(effect)(again(other, n)))
		r.cutConnectionsOfOthers()
	}
	r.wantLetters()
	must(t, r.inbox("consumer").One(effect)(again(e, 5)))
	r.wantLetters("crashed")
	r.wantEffects(1) // of the one beside it
}

// What has crashed before runs while no other redelivered message does: if it crashes again, no innocent's attempt is open.
func TestAMessageThatHasCrashedRunsInNoCompany(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var others sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		others.Go(func() {
			for e, n := event("innocent"), 2; ; n++ {
				select {
				case <-stop:
					return
				default:
					_ = r.in.One(func(ctx context.Context, tx pgx.Tx, _ oncebox.Event) error {
						_, err := tx.Exec(ctx, "SELECT pg_sleep(0.002)")
						return errors.Join(err, errors.New("passing"))
					})(again(e, n))
				}
			}
		})
	}
	ended := sync.OnceFunc(func() { close(stop); others.Wait() })
	defer ended()
	for range 10 {
		e := event("passing")
		if r.in.One(play)(again(e, 2)) == nil {
			t.Fatal("a failure was taken for done")
		}
		_, err := r.pool.Exec(t.Context(), "UPDATE oncebox.inbox SET crashes = 1 WHERE id = $1", e.ID)
		must(t, err)
		must(t, r.in.One(func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
			if n := r.count("oncebox.inbox WHERE owner IS NOT NULL AND id <> $1", e.ID); n != 0 {
				t.Errorf("%d attempts are open beside it", n)
			}
			return effect(ctx, tx, e)
		})(again(e, 3)))
	}
	ended()
	r.wantEffects(10)
}

// cutConnectionsOfOthers ends the transactions of handlers that hang, as the death of their process would.
func (r *rig) cutConnectionsOfOthers() {
	r.t.Helper()
	stacktest.Eventually(r.t, 10*time.Second, "no transaction is left", func() (bool, error) {
		_, err := r.pool.Exec(context.Background(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'idle in transaction'`)
		if err != nil {
			return false, err
		}
		return r.count(`pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'`) == 0, nil
	})
}

func TestAHandlerThatNeverReturnsIsGivenUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := event("a")
	in := r.inboxWith(inbox.Config{Consumer: "consumer", Timeout: 300 * time.Millisecond})
	end := make(chan struct{})
	t.Cleanup(func() { close(end) }) // before the pool is closed
	hang := func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
		must(t, effect(ctx, tx, e))
		<-end
		return nil
	}
	h, failures := in.One(hang), 0
	stacktest.Eventually(t, 30*time.Second, "the message is given up", func() (bool, error) {
		err := h(again(e, failures+1))
		if err != nil {
			failures++
		}
		return err == nil, err
	})
	if failures < 4 { // the first delivery is not counted
		t.Errorf("given up after %d attempts", failures)
	}
	r.wantEffects(0)
	r.wantLetters("crashed")
}

func TestAHandlerThatHeedsItsContextComesAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	in := r.inboxWith(inbox.Config{Consumer: "consumer", Timeout: 100 * time.Millisecond})
	e := event("a")
	for n := 1; n <= 5; n++ {
		err := in.One(func(ctx context.Context, tx pgx.Tx, _ oncebox.Event) error {
			_, err := tx.Exec(ctx, "SELECT pg_sleep(60)")
			return err
		})(again(e, n))
		if err == nil {
			t.Fatal("a handler that was cut was taken for done")
		}
	}
	r.wantLetters()
	must(t, in.One(effect)(again(e, 6)))
	r.wantEffects(1)
}

// A handler that cuts a query of its own short has broken its connection, and not the database.
func TestAHandlersOwnDeadlineIsNoOutage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	runs := 0
	err := r.in.One(func(ctx context.Context, tx pgx.Tx, _ oncebox.Event) error {
		runs++
		ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		_, err := tx.Exec(ctx, "SELECT pg_sleep(60)")
		return err
	})(event("a").Message())
	if err == nil || runs != 1 {
		t.Errorf("it ran %d times in hand, %v", runs, err)
	}
}

// A peer is paused with the locks of a group: the others wait for a moment only, and the rest of the group goes on.
func TestAPausedPeerHoldsUpItsOwnMessagesOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	in := r.inboxWith(inbox.Config{Consumer: "consumer", LockTimeout: 50 * time.Millisecond})
	shared := event("good shared")
	held, release := make(chan struct{}), make(chan struct{})
	paused := make(chan error, 1)
	go func() {
		paused <- r.in.One(func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
			close(held)
			<-release
			return effect(ctx, tx, e)
		})(shared.Message())
	}()
	<-held
	h, err := in.Group(playAll, inbox.GroupConfig{})
	must(t, err)
	messages := []oncebox.Event{shared}
	for range 9 {
		messages = append(messages, event("good"))
	}
	failed := 0
	for i, err := range deliver(h, toMessages(messages)...) {
		if err != nil {
			failed++
		}
		if i == 0 && err == nil {
			t.Error("a message that a peer is handling was taken for done")
		}
	}
	if failed != 1 {
		t.Errorf("%d messages failed, want 1", failed)
	}
	r.wantEffects(9)
	close(release)
	must(t, <-paused)
	must(t, h(again(shared, 2)))
	r.wantEffects(10)
	r.wantLetters()
}
