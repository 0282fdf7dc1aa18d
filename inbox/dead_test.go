package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/inbox"
)

// dead lists letters as "class state key/version".
func dead(t *testing.T, d *inbox.DeadLetters, f inbox.Filter) []inbox.Letter {
	t.Helper()
	letters, err := d.List(context.Background(), f, 1000)
	must(t, err)
	return letters
}

// atOnce runs do n times at once and counts how it went; other errors than that a letter is not dead fail the test.
func atOnce(t *testing.T, n int, do func(i int) error) (ok, refused int32) {
	t.Helper()
	var done, not atomic.Int32
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			switch err := do(i); {
			case err == nil:
				done.Add(1)
			case errors.Is(err, inbox.ErrNotDead):
				not.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	return done.Load(), not.Load()
}

func TestALetterIsRetriedOnceHoweverManyTry(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := event("refused")
	e.TenantID, e.Headers = "acme", map[string]string{"x": "ü"}
	must(t, r.in.One(play)(e.Message()))
	var got oncebox.Event
	var runs atomic.Int32
	d := r.in.Dead(inbox.Each(func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
		runs.Add(1)
		got = e
		return effect(ctx, tx, e)
	}))
	letters := dead(t, d, inbox.Filter{State: "dead", TenantID: "acme"})
	if len(letters) != 1 || letters[0].Class != "refused" || string(letters[0].Payload) != "refused" || letters[0].Attempts != 1 {
		t.Fatalf("got %+v", letters)
	}
	ok, refused := atOnce(t, 16, func(i int) error {
		err := d.Retry(context.Background(), letters[0].N)
		if i%4 == 0 && errors.Is(err, inbox.ErrNotDead) {
			err = d.Drop(context.Background(), letters[0].N)
		}
		return err
	})
	if ok != 1 || refused != 15 || runs.Load() != 1 {
		t.Errorf("%d succeeded, %d were refused, the handler ran %d times", ok, refused, runs.Load())
	}
	r.wantEffects(1)
	want, err := oncebox.Decode(e.Message())
	must(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the retry was handed another event (-want +got):\n%s", diff)
	}
	if l := dead(t, d, inbox.Filter{})[0]; l.State != "retried" || l.Attempts != 2 {
		t.Errorf("the letter is %s after %d attempts", l.State, l.Attempts)
	}
	must(t, r.in.One(effect)(again(e, 5)))
	r.wantEffects(1) // a redelivery of what was retried
}

func TestARetryThatFailsLeavesTheLetterDead(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	must(t, r.in.One(play)(event("refused").Message()))
	d := r.in.Dead(inbox.Each(play))
	n := dead(t, d, inbox.Filter{})[0].N
	for name, h := range map[string]inbox.Handler{
		"permanent": func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
			return errors.Join(effect(ctx, tx, e), inbox.Permanent("worse", errors.New("still no")))
		},
		"passing": func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
			return errors.Join(effect(ctx, tx, e), errors.New("passing"))
		},
		"panic": func(context.Context, pgx.Tx, oncebox.Event) error { panic("at the disco") },
	} {
		if err := r.in.Dead(inbox.Each(h)).Retry(context.Background(), n); err == nil {
			t.Errorf("%s: the retry succeeded", name)
		}
	}
	r.wantEffects(0)
	if l := dead(t, d, inbox.Filter{})[0]; l.State != "dead" || l.Class != "worse" || l.Reason != "still no" || l.Attempts != 2 {
		t.Errorf("the letter is %+v", l)
	}
	must(t, d.Drop(context.Background(), n))
	if err := d.Retry(context.Background(), n); !errors.Is(err, inbox.ErrNotDead) {
		t.Errorf("a retry of a dropped letter returned %v", err)
	}
}

func TestLettersThatCannotBeRetried(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := event("good")
	other := e
	other.Data = []byte("good as well")
	must(t, r.in.One(play)(e.Message()))
	must(t, r.in.One(play)(other.Message()))
	must(t, r.in.One(play)(message.NewMessage("x", []byte("no event"))))
	d := r.in.Dead(inbox.Each(effect))
	for _, c := range []struct {
		class string
		want  error
	}{{"conflict", inbox.ErrHasEffect}, {"undecodable", oncebox.ErrInvalid}} {
		if err := d.Retry(context.Background(), dead(t, d, inbox.Filter{Class: c.class})[0].N); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v", c.class, err)
		}
	}
	r.wantEffects(1)
}

func TestAllThatAFilterSelectsAreRetriedByTwoAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const n = 250
	for i := range n {
		must(t, r.in.One(play)(event(fmt.Sprint("refused ", i)).Message()))
	}
	must(t, r.in.One(play)(event("regretted").Message()))
	d := r.in.Dead(inbox.Each(effect))
	var retried atomic.Int64
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			report, err := d.RetryAll(context.Background(), inbox.Filter{Class: "refused"})
			if err != nil || report.Failed != 0 {
				t.Errorf("%+v, %v", report, err)
			}
			retried.Add(int64(report.Retried))
		})
	}
	wg.Wait()
	if retried.Load() != n {
		t.Errorf("%d retried, want %d", retried.Load(), n)
	}
	r.wantEffects(n)
	if left := dead(t, d, inbox.Filter{State: "dead"}); len(left) != 1 || left[0].Class != "regretted" {
		t.Errorf("left are %+v", left)
	}
}

// A key whose message died waits: what comes later goes behind it, in order, and all of it runs in order when it is retried.
func TestAKeyWaitsBehindItsDeadLetter(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			in := r.inboxWith(inbox.Config{Consumer: "consumer", KeyPolicy: inbox.HoldKey})
			handle := way(t, in)
			ofKey := func(key, data string) *message.Message {
				e := event(data)
				e.Key = key
				return e.Message()
			}
			for _, m := range []*message.Message{ofKey("k", "good 1"), ofKey("k", "refused 2"), ofKey("k", "good 3"), ofKey("other", "good"), ofKey("k", "good 4")} {
				must(t, handle(m))
			}
			r.wantEffects(2)
			r.wantLetters("refused", "behind", "behind")
			d := in.Dead(inbox.Each(effect))
			letters := dead(t, d, inbox.Filter{Key: "k"})
			if err := d.Retry(context.Background(), letters[1].N); !errors.Is(err, inbox.ErrBehind) {
				t.Errorf("a letter was retried before the one in front of it: %v", err)
			}
			report, err := d.RetryAll(context.Background(), inbox.Filter{Key: "k"})
			if err != nil || report.Retried != 3 {
				t.Errorf("%+v, %v", report, err)
			}
			must(t, handle(ofKey("k", "good 5")))
			rows, err := r.pool.Query(context.Background(), "SELECT convert_from(data, 'UTF8') FROM effect WHERE data <> 'good' ORDER BY ctid")
			must(t, err)
			got, err := pgx.CollectRows(rows, pgx.RowTo[string])
			must(t, err)
			if diff := cmp.Diff("good 1, refused 2, good 3, good 4, good 5", strings.Join(got, ", ")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// The same when the dead one and its successors stand in one group.
func TestAKeyWaitsBehindItsDeadLetterWithinAGroup(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"refused", "regretted", "broken"} {
		for name, way := range ways {
			if name == "one" {
				continue
			}
			t.Run(kind+" "+name, func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				in := r.inboxWith(inbox.Config{Consumer: "consumer", KeyPolicy: inbox.HoldKey})
				inOrder(way(t, in), ofOneKey("good 1", kind, "good 3", "good 4")...)
				r.wantEffects(1)
				if n := r.count("oncebox.dead_letter WHERE class = 'behind'"); n != 2 {
					t.Errorf("%d behind, want 2", n)
				}
			})
		}
	}
}

// ofOneKey are versions 1, 2, … of one key.
func ofOneKey(data ...string) []oncebox.Event {
	key := uuid.NewString()
	es := make([]oncebox.Event, len(data))
	for i, d := range data {
		es[i] = event(d)
		es[i].Key, es[i].Version = key, int64(i+1)
	}
	return es
}

// inOrder hands events over as a subscriber does, each when the one before has been taken or is done, and returns their errors.
func inOrder(handle message.NoPublishHandlerFunc, es ...oncebox.Event) []error {
	errs := make([]error, len(es))
	var wg sync.WaitGroup
	for i, e := range es {
		m, next := e.Message(), make(chan struct{}, 2)
		m.SetContext(oncebox.WithTaken(context.Background(), func() { next <- struct{}{} }))
		wg.Go(func() {
			errs[i] = handle(m)
			next <- struct{}{}
		})
		<-next
	}
	wg.Wait()
	return errs
}
