package inbox_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/inbox"
)

// A letter of an effect outside is retried there, once however many try, and under the key of the first call.
func TestALetterOfAnEffectOutsideIsRetriedOutside(t *testing.T) {
	t.Parallel()
	r, p := newRig(t), newProvider(t)
	o := p.outside()
	settle := o.Settle
	o.Settle = func(context.Context, pgx.Tx, oncebox.Event, []byte) error {
		return inbox.Permanent("unsettled", errors.New("of a fault that is mended"))
	}
	h, err := r.in.External(o)
	must(t, err)
	for _, data := range []string{"good", "lost"} { // the reply to the second is lost, so that it is asked for twice
		p.until(h, event(data))
	}
	r.wantLetters("unsettled", "unsettled")
	r.wantEffects(0)
	o.Settle = settle
	d, err := r.in.DeadOutside(o)
	must(t, err)
	letters := dead(t, d, inbox.Filter{State: "dead"})
	if ok, refused := atOnce(t, 16, func(i int) error { return d.Retry(t.Context(), letters[i%2].N) }); ok != 2 || refused != 14 {
		t.Errorf("%d retries succeeded, %d were refused", ok, refused)
	}
	r.wantEffects(2)
	for _, data := range []string{"good", "lost"} {
		if n := len(p.charges(data)); n != 1 {
			t.Errorf("%s was charged %d times", data, n)
		}
	}
	if n := r.count("oncebox.inbox WHERE state = 'done'"); n != 2 || r.count("oncebox.dead_letter WHERE state = 'retried'") != 2 {
		t.Errorf("%d are done", n)
	}
}

// What the other side refused is asked for, since nothing of it was done; what nobody knows is looked for alone. A retry that fails
// leaves the letter dead.
func TestARetryAsksOnlyForWhatWasNeverDone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var calls, finds atomic.Int32
	answers := func(err error) error { return err }
	o := watched(func(oncebox.Event) error {
		calls.Add(1)
		return answers(inbox.Permanent("refused", errors.New("no")))
	}, &finds, false)
	h, err := r.in.External(o)
	must(t, err)
	must(t, h(event("refused").Message()))
	unknown := event("unknown")
	answers = func(error) error { return errors.New("nobody knows") }
	if h(unknown.Message()) == nil {
		t.Error("an unknown outcome was taken for done")
	}
	_, err = r.pool.Exec(t.Context(), "UPDATE oncebox.inbox SET at = at - interval '2 days' WHERE state = 'intent'")
	must(t, err)
	must(t, h(again(unknown, 2)))
	r.wantLetters("refused", inbox.ClassOutcomeUnknown)

	d, err := r.in.DeadOutside(o)
	must(t, err)
	letters := dead(t, d, inbox.Filter{})
	calls.Store(0)
	want := func(n int64, fails bool, asked int32, state, class string) {
		t.Helper()
		if err := d.Retry(t.Context(), n); (err != nil) != fails {
			t.Errorf("the retry returned %v", err)
		}
		if calls.Swap(0) != asked {
			t.Errorf("it was not asked for %d times", asked)
		}
		if l := r.count("oncebox.dead_letter WHERE n = $1 AND state = $2 AND class = $3", n, state, class); l != 1 {
			t.Errorf("letter %d is not %s as %s: %+v", n, state, class, dead(t, d, inbox.Filter{}))
		}
	}
	want(letters[0].N, true, 1, "dead", "refused") // nobody knows
	answers = func(error) error { return inbox.Permanent("worse", errors.New("still no")) }
	want(letters[0].N, true, 1, "dead", "worse")
	answers = func(error) error { return nil }
	want(letters[1].N, true, 0, "dead", inbox.ClassOutcomeUnknown)
	refuses := o
	refuses.Prepare = func(context.Context, pgx.Tx, oncebox.Event) (bool, error) {
		return false, inbox.Permanent("not now", errors.New("by a setting"))
	}
	asks := d
	d, err = r.in.DeadOutside(refuses)
	must(t, err)
	want(letters[1].N, true, 0, "dead", "not now")
	d = asks
	want(letters[1].N, true, 0, "dead", inbox.ClassOutcomeUnknown) // that nobody knows outlasts the class
	r.wantEffects(0)
	if n := r.count("oncebox.inbox WHERE state = 'dead'"); n != 2 {
		t.Errorf("%d rows are dead", n)
	}
	want(letters[0].N, false, 1, "retried", "worse")
	o.Find = func(context.Context, oncebox.Event) ([]byte, bool, error) { return nil, true, nil }
	d, err = r.in.DeadOutside(o)
	must(t, err)
	want(letters[1].N, false, 0, "retried", inbox.ClassOutcomeUnknown)
	r.wantEffects(2)
}

// While a letter is retried nobody drops it. Of a process that dies in the middle it is free after the lease: to be dropped, or
// retried, and what the first call did is found.
func TestALetterIsNotDroppedUnderItsRetry(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var (
		finds  atomic.Int32
		refuse = func(oncebox.Event) error { return inbox.Permanent("refused", errors.New("no")) }
		o      = watched(refuse, &finds, false)
	)
	o.Lease = time.Minute
	h, err := r.in.External(o)
	must(t, err)
	e := event("a")
	must(t, h(e.Message()))
	begun, die := make(chan struct{}), make(chan struct{})
	hangs := o
	hangs.Call = func(context.Context, oncebox.Event, string) ([]byte, error) {
		close(begun)
		<-die
		return nil, errors.New("never")
	}
	first, err := r.inbox("consumer").DeadOutside(hangs)
	must(t, err)
	n := dead(t, first, inbox.Filter{})[0].N
	ended := make(chan error, 1)
	go func() { ended <- first.Retry(context.Background(), n) }()
	<-begun
	o.Find = func(context.Context, oncebox.Event) ([]byte, bool, error) { return nil, true, nil }
	d, err := r.inbox("consumer").DeadOutside(o)
	must(t, err)
	for what, do := range map[string]func(context.Context, int64) error{"retry": d.Retry, "drop": d.Drop} {
		if err := do(t.Context(), n); !errors.Is(err, inbox.ErrNotDead) {
			t.Errorf("a %s meanwhile returned %v", what, err)
		}
	}
	_, err = r.pool.Exec(t.Context(), "UPDATE oncebox.inbox SET owner = gen_random_uuid(), lease_until = clock_timestamp()") // so that the dead is not heard
	must(t, err)
	if err := h(again(e, 2)); err == nil {
		t.Error("its message, which came again, took the letter's attempt over")
	}
	r.wantEffects(0)
	must(t, d.Retry(t.Context(), n))
	must(t, h(again(e, 3)))
	r.wantEffects(1)
	close(die)
	if <-ended == nil {
		t.Error("a retry whose letter was another's took itself for done")
	}
	r.wantEffects(1)
	if err := d.Drop(t.Context(), n); !errors.Is(err, inbox.ErrNotDead) {
		t.Errorf("a drop of a letter that was retried returned %v", err)
	}
}
