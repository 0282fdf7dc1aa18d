package inbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/internal/crash"
)

// Outside is an effect that is not in the database: a payment, a letter. No transaction holds it, so what makes it happen once
// is the other side, which remembers the key that Call sends. The inbox sees to it that Call is not running twice, that every
// call of an event sends the same key, and that none is made when the other side may have forgotten it.
type Outside struct {
	// Prepare, if set, writes what has to be committed before the other side is asked, in the transaction that writes the
	// intent. It runs again with each attempt. It returns whether to ask: if not, Settle runs at once, with a nil answer. Its
	// errors are those of a [Handler].
	Prepare func(ctx context.Context, tx pgx.Tx, e oncebox.Event) (ask bool, err error)
	// Call asks for the effect of e under key, which is the same each time, and returns the answer. An error marked by
	// [Permanent] says that there is no effect and never will be; after any other, nobody knows, and Call runs again.
	// Required.
	Call func(ctx context.Context, e oncebox.Event, key string) (answer []byte, err error)
	// Find looks for the effect of an earlier Call by what the other side keeps for longer than keys, such as our own
	// reference. It runs in Call's place once KeyRetention is over, and for an event whose attempts crash. Required.
	Find func(ctx context.Context, e oncebox.Event) (answer []byte, found bool, err error)
	// Settle writes the answer, in the transaction in which the message is done. After an error the message comes again; one
	// marked by [Permanent] makes it a dead letter although it has its effect. Required.
	Settle func(ctx context.Context, tx pgx.Tx, e oncebox.Event, answer []byte) error
	// KeyRetention is how long the other side surely remembers a key. Default 23 hours, for those who promise a day.
	KeyRetention time.Duration
	// Lease bounds one attempt, from the intent to the answer: Call's context ends then, and another process may begin.
	// Default 1 minute.
	Lease time.Duration
}

func (o Outside) withDefaults() (Outside, error) {
	if o.KeyRetention == 0 {
		o.KeyRetention = 23 * time.Hour
	}
	if o.Lease == 0 {
		o.Lease = time.Minute
	}
	switch {
	case o.Call == nil || o.Find == nil || o.Settle == nil:
		return o, errors.New("inbox: Outside needs Call, Find and Settle")
	case o.KeyRetention < 0 || o.Lease < 0:
		return o, fmt.Errorf("inbox: Outside: KeyRetention %s and Lease %s must not be below 0", o.KeyRetention, o.Lease)
	}
	return o, nil
}

// ClassOutcomeUnknown is the class of the dead letter of an event whose effect was asked for, is not found, and can no longer
// be asked for safely: somebody has to look.
const ClassOutcomeUnknown = "outcome_unknown"

// External handles each message by an effect outside the database. It writes the intent and commits it, calls, and writes the
// answer together with the message's id. A crash in between leaves the intent, and whoever is handed the message next calls
// again, under the same key, after the lease.
//
// Attempts that began and never ended are counted: their process died, or Call did not return. An event that has crashed runs
// while no other of this process does, and after [Config.MaxCrashes] its effect is only looked for: if it is found, it is
// settled, and otherwise the event is a dead letter of class "crashed". Attempts that failed are not counted.
func (in *Inbox) External(o Outside) (message.NoPublishHandlerFunc, error) {
	x, err := in.external(o)
	if err != nil {
		return nil, err
	}
	return func(m *message.Message) error {
		d := in.receive(m)
		x.handle(m.Context(), d)
		return in.finish(d)
	}, nil
}

type external struct {
	in *Inbox
	Outside
	sql intentStatements
}

func (in *Inbox) external(o Outside) (*external, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	return &external{in: in, Outside: o, sql: newIntentStatements(in.cfg.Schema)}, nil
}

func (x *external) handle(ctx context.Context, d *delivery) {
	if d.verdict != nil {
		x.in.single(ctx, d, nil)
		return
	}
	x.in.suspects.RLock()
	i, err := x.begin(ctx, d, false)
	if err == nil && i.crashes > 0 {
		x.in.suspects.RUnlock()
		x.in.suspects.Lock()
		defer x.in.suspects.Unlock()
		i, err = x.begin(ctx, d, true)
	} else {
		defer x.in.suspects.RUnlock()
	}
	if err != nil {
		d.retry(err)
		return
	}
	if !i.claimed { // done, dead, in another's hands, or another message's
		x.in.single(ctx, d, nil)
		return
	}
	if err := x.attempt(ctx, d, i); err != nil {
		d.retry(err)
		x.release(ctx, d, i)
	}
}

// attempt asks for the effect and writes what came of it.
func (x *external) attempt(ctx context.Context, d *delivery, i intent) error {
	answer, err := []byte(nil), i.refused
	if err == nil && i.ask {
		answer, err = x.ask(ctx, d, i, func(ctx context.Context) ([]byte, error) { return x.callOrFind(ctx, d, i) })
	}
	if err == nil {
		err = x.end(ctx, d, i, "done", func(ctx context.Context, tx pgx.Tx) error { return x.Settle(ctx, tx, d.event, answer) })
	}
	why := permanent(err)
	switch {
	case err == nil:
		d.outcome = done
		if x.in.cfg.Committed != nil {
			x.in.cfg.Committed()
		}
	case errors.Is(err, ErrUnknownType):
		if err = x.end(ctx, d, i, "done", nil); err == nil {
			d.outcome = unknown
		}
	case why != nil:
		err = x.end(ctx, d, i, "dead", func(ctx context.Context, tx pgx.Tx) error {
			d.bury(why)
			b := &pgx.Batch{}
			if err := x.in.queueLetters(b, []*delivery{d}); err != nil {
				return err
			}
			return tx.SendBatch(ctx, b).Close()
		})
	}
	return err
}

// ask runs f, which calls, or looks for what an earlier call did, until the lease is over.
func (x *external) ask(ctx context.Context, d *delivery, i intent, f func(context.Context) ([]byte, error)) ([]byte, error) {
	ctx, cancel := context.WithDeadline(ctx, i.until)
	defer cancel()
	var (
		answer   []byte
		err      error
		returned = make(chan struct{})
	)
	go func() {
		defer close(returned)
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("inbox: the call for %s panicked: %v", d.event.Type, p)
			}
		}()
		answer, err = f(ctx)
	}()
	select {
	case <-returned:
	case <-ctx.Done():
		select {
		case <-returned:
		case <-time.After(x.Lease / 10):
			return nil, &hungError{returned}
		}
	}
	return answer, err
}

func (x *external) call(ctx context.Context, d *delivery) ([]byte, error) {
	if err := crash.Before("inbox-call"); err != nil {
		return nil, err
	}
	answer, err := x.Call(ctx, d.event, oncebox.DerivedID(d.event, x.in.cfg.Consumer, "outside", 0))
	return answer, crash.After("inbox-call", err)
}

func (x *external) callOrFind(ctx context.Context, d *delivery, i intent) (answer []byte, err error) {
	var class string
	switch {
	case i.crashes >= x.in.cfg.MaxCrashes:
		class = classCrashed
	case i.since+x.Lease >= x.KeyRetention:
		class = ClassOutcomeUnknown
	default:
		return x.call(ctx, d)
	}
	answer, found, err := x.Find(ctx, d.event)
	if err == nil && !found {
		err = Permanent(class, fmt.Errorf("inbox: it was first asked for %s ago, %d attempts began and never ended, and it is not found",
			i.since.Round(time.Second), i.crashes))
	}
	return answer, err
}
