package inbox_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncebox/oncebox"
)

// What is done and comes again is passed by without a transaction of its own: it waits for no lock, and writes nothing.
func TestWhatIsDoneAndComesAgainLocksNothing(t *testing.T) {
	eachWay(t, func(r *rig, handle message.NoPublishHandlerFunc) {
		es := r.handled(handle, 60)
		r.withRowsLocked(func() {
			for i, err := range deliver(handle, redelivered(es)...) {
				if err != nil {
					r.t.Errorf("message %d comes again: %v", i, err)
				}
			}
		})
		r.wantEffects(len(es))
		r.wantLetters()
	})
}

// A stream that was made anew hands all out as if for the first time. Once a group has met what is done, the next ones look first.
func TestWhatAStreamMadeAnewHandsOutLocksNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	handle := ways["a group as a set"](t, r.in)
	es := r.handled(handle, 60)
	_ = deliver(handle, toMessages(es)...) // each lane meets some
	fresh := event("good, and new among them")
	es = append(es, fresh)
	r.withRowsLocked(func() {
		for i, err := range deliver(handle, toMessages(es)...) {
			if err != nil {
				t.Errorf("message %d comes again: %v", i, err)
			}
		}
	})
	r.wantEffects(len(es))
	r.wantLetters()
}

// The shortcut tells what is done from what only has the same id, and from what is not done.
func TestWhatIsKnownAndNotDoneGoesTheWholeWay(t *testing.T) {
	eachWay(t, func(r *rig, handle message.NoPublishHandlerFunc) {
		es := r.handled(handle, 3)
		_, err := r.pool.Exec(r.t.Context(), "UPDATE oncebox.inbox SET state = 'started' WHERE id = $1", es[0].ID)
		must(r.t, err)
		other := es[1]
		other.Data = []byte("good, and other content")
		for i, err := range deliver(handle, again(es[0], 2), again(other, 2), again(es[2], 2)) {
			if err != nil {
				r.t.Errorf("message %d comes again: %v", i, err)
			}
		}
		r.wantEffects(len(es) + 1) // the first's was taken for undone
		r.wantLetters("conflict")
	})
}

func (r *rig) handled(handle message.NoPublishHandlerFunc, n int) (es []oncebox.Event) {
	r.t.Helper()
	for i := range n {
		es = append(es, event(fmt.Sprint("good ", i)))
	}
	for _, err := range deliver(handle, toMessages(es)...) {
		must(r.t, err)
	}
	r.wantEffects(n)
	return es
}

func redelivered(es []oncebox.Event) (ms []*message.Message) {
	for _, e := range es {
		ms = append(ms, again(e, 2))
	}
	return ms
}

// withRowsLocked runs f while another transaction holds all rows of the inbox.
func (r *rig) withRowsLocked(f func()) {
	r.t.Helper()
	tx, err := r.pool.Begin(context.Background())
	must(r.t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	_, err = tx.Exec(context.Background(), "SELECT FROM oncebox.inbox FOR UPDATE")
	must(r.t, err)
	f()
}
