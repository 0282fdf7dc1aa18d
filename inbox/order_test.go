package inbox_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox/inbox"
)

func eachOrdered(t *testing.T, order inbox.Order, f func(r *rig, handle message.NoPublishHandlerFunc)) {
	t.Parallel()
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			f(r, way(t, r.inboxWith(inbox.Config{Consumer: "consumer", Ordered: &order})))
		})
	}
}

// versions are those of the effects, in the order in which they were made.
func (r *rig) effects() []string {
	r.t.Helper()
	rows, err := r.pool.Query(context.Background(), "SELECT convert_from(data, 'UTF8') FROM effect ORDER BY ctid")
	must(r.t, err)
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(r.t, err)
	return got
}

func (r *rig) wantInOrder(want ...string) {
	r.t.Helper()
	if diff := cmp.Diff(want, r.effects()); diff != "" {
		r.t.Errorf("effects (-want +got):\n%s", diff)
	}
}

func TestAnEventWaitsForItsPredecessor(t *testing.T) {
	eachOrdered(t, inbox.Order{Hold: time.Hour}, func(r *rig, handle message.NoPublishHandlerFunc) {
		es := ofOneKey("1", "2", "3", "4", "5")
		for n := 1; n <= 10; n++ { // as often as it comes, and no attempt is counted
			if handle(again(es[1], n)) == nil {
				r.t.Error("an event was taken for done before its predecessor")
			}
		}
		r.wantEffects(0)
		must(r.t, handle(es[0].Message()))
		for _, err := range inOrder(handle, es[1], es[2], es[4], es[3]) {
			if err != nil && r.count("effect") > 4 {
				r.t.Error(err)
			}
		}
		must(r.t, handle(again(es[4], 2)))
		r.wantInOrder("1", "2", "3", "4", "5")
		r.wantLetters()
		if n := r.count("oncebox.inbox WHERE state <> 'done' OR crashes > 0"); n != 0 {
			r.t.Errorf("%d rows are not done, or have crashes", n)
		}
	})
}

// Without order the handler sees what comes as it comes.
func TestWithoutOrderNothingWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	es := ofOneKey("1", "2")
	must(t, r.in.One(play)(es[1].Message()))
	must(t, r.in.One(play)(es[0].Message()))
	r.wantInOrder("2", "1")
}

func TestAGroupInWhichOneFailsKeepsTheOrder(t *testing.T) {
	eachOrdered(t, inbox.Order{Hold: time.Hour}, func(r *rig, handle message.NoPublishHandlerFunc) {
		es := ofOneKey("1", "passing", "3")
		errs := inOrder(handle, es...)
		if errs[0] != nil || errs[1] == nil || errs[2] == nil {
			r.t.Errorf("got %v", errs)
		}
		r.wantInOrder("1")
		// It is handed out again, and works now; its successor follows.
		must(r.t, r.inboxWith(inbox.Config{Consumer: "consumer", Ordered: &inbox.Order{}}).One(effect)(again(es[1], 2)))
		must(r.t, handle(again(es[2], 2)))
		r.wantInOrder("1", "passing", "3")
	})
}

func TestAPredecessorThatNeverComes(t *testing.T) {
	for name, c := range map[string]struct {
		order   inbox.Order
		effects []string
		letters []string
	}{
		"to the dead letters": {inbox.Order{Hold: time.Nanosecond}, []string{"1", "2"}, []string{"gap"}},
		"run after":           {inbox.Order{Hold: time.Nanosecond, RunAfter: true}, []string{"2"}, []string{"late"}},
	} {
		t.Run(name, func(t *testing.T) {
			eachOrdered(t, c.order, func(r *rig, handle message.NoPublishHandlerFunc) {
				es := ofOneKey("1", "2")
				if handle(es[1].Message()) == nil {
					r.t.Error("the successor did not wait at all")
				}
				must(r.t, handle(again(es[1], 2)))
				must(r.t, handle(es[0].Message()))
				r.wantLetters(c.letters...)
				if slices.Equal(c.letters, []string{"gap"}) {
					d := r.inboxWith(inbox.Config{Consumer: "consumer", Ordered: &c.order}).Dead(inbox.Each(effect))
					must(r.t, d.Retry(context.Background(), dead(r.t, d, inbox.Filter{})[0].N))
				}
				r.wantInOrder(c.effects...)
				if n := r.count("oncebox.inbox_position WHERE version = 2"); n != 1 {
					r.t.Error("the key has not come to version 2")
				}
			})
		})
	}
}

func TestADeadLetterWithAVersionDoesNotHoldItsKey(t *testing.T) {
	eachOrdered(t, inbox.Order{Hold: time.Hour}, func(r *rig, handle message.NoPublishHandlerFunc) {
		for _, err := range inOrder(handle, ofOneKey("1", "refused", "3", "broken", "5")...) {
			must(r.t, err)
		}
		r.wantInOrder("1", "3", "5")
	})
}
