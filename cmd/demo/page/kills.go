package page

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/events"
)

const (
	// seekLimit is for how long a fault looks for the state that it is placed by. One may pay meanwhile.
	seekLimit   = 5 * time.Second
	steadyPause = 30 * time.Millisecond
	downTime    = time.Second // so that one sees it
)

// errMissed is a fault that did not fire, or not all of it: the state that it is placed by was not seen.
var errMissed = errors.New("it did not fire")

// killAt stops a process (SIGSTOP) and looks, until it stands in the state that is sought, and then kills it there. One that is not
// seen in it within seekLimit is left alone.
func killAt(ctx context.Context, process Process, sought func() (bool, error)) (killed bool, err error) {
	for late := time.Now().Add(seekLimit); time.Now().Before(late); {
		if err := process.Pause(); err != nil {
			return false, err
		}
		// What it had sent may still be committing.
		if err := wait(ctx, steadyPause); err != nil {
			return false, errors.Join(err, process.Continue())
		}
		found, err := sought()
		if err != nil {
			return false, errors.Join(err, process.Continue())
		}
		if found {
			return true, process.Kill()
		}
		if err := process.Continue(); err != nil {
			return false, err
		}
		if err := wait(ctx, steadyPause/2); err != nil {
			return false, err
		}
	}
	return false, nil
}

// A target is a process that a fault kills in a state that it was seen in.
type target struct {
	process Process
	state   string // "with a charge committed"
	sought  func() (bool, error)
}

// killEach looks for the targets at the same time, starts again those that it killed, and says what each was seen in. Its error is
// errMissed if one of them was not seen in its state.
func (p *Page) killEach(ctx context.Context, targets ...target) (string, error) {
	killed, errs := make([]bool, len(targets)), make([]error, len(targets))
	var looking sync.WaitGroup
	for i, t := range targets {
		looking.Go(func() { killed[i], errs[i] = killAt(ctx, t.process, t.sought) })
	}
	looking.Wait()
	var dead []Process
	var said []string
	var missed error
	for i, t := range targets {
		if killed[i] {
			dead = append(dead, t.process)
			said = append(said, fmt.Sprintf("Killed %s %s.", t.process.Name, t.state))
			continue
		}
		missed = errMissed
		said = append(said, fmt.Sprintf("Did not fire at %s: in %s nobody saw it %s, and it was left alone.", t.process.Name, seekLimit, t.state))
	}
	if len(dead) > 0 {
		errs = append(errs, p.revive(ctx, dead...))
	}
	return strings.Join(said, " "), cmp.Or(errors.Join(errs...), missed)
}

func (p *Page) killBilling(ctx context.Context) (string, error) {
	const state = "with a charge committed and its message not acknowledged"
	return p.killEach(ctx,
		target{p.lab.BillingProcess, state, func() (bool, error) {
			return p.committedUnacked(ctx, billing.Name, func(order string) (n int, err error) {
				err = p.lab.Billing.QueryRow(ctx, "SELECT count(*) FROM charge WHERE order_id = $1", order).Scan(&n)
				return n, err
			})
		}},
		target{p.lab.NaiveProcess, state, func() (bool, error) {
			return p.committedUnacked(ctx, p.lab.NaiveDurable, func(order string) (n int, err error) {
				err = p.lab.Naive.QueryRow(ctx, "SELECT count(*) FROM naive_charge WHERE order_id = $1", order).Scan(&n)
				return n, err
			})
		}})
}

func (p *Page) killOrders(ctx context.Context) (string, error) {
	return p.killEach(ctx, target{p.lab.OrdersProcess, "in the middle of a transaction", func() (open bool, err error) {
		err = p.lab.Super.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = $1 AND application_name <> $2 AND backend_xid IS NOT NULL AND state LIKE 'idle in transaction%')`,
			p.lab.Orders.Config().ConnConfig.Database, Application).Scan(&open)
		return open, err
	}})
}

func (p *Page) killRelay(ctx context.Context) (string, error) {
	return p.killEach(ctx, target{p.lab.OrdersProcess, "with events published that its relay's cursor did not know of", func() (bool, error) {
		stream, err := p.lab.JetStream.Stream(ctx, events.OrdersStream)
		if err != nil {
			return false, err
		}
		var saved uint64
		err = p.lab.Orders.QueryRow(ctx, "SELECT stream_seq FROM oncebox.outbox_cursor").Scan(&saved)
		last := stream.CachedInfo().State.LastSeq
		if err != nil || last <= saved {
			return false, err
		}
		m, err := stream.GetMsg(ctx, last)
		return err == nil && m.Header.Get(jetstream.MsgIDHeader) != "", err // without: a copy, and not the relay's
	}})
}

// committedUnacked looks among the messages above the acknowledged ones for one whose order is charged.
func (p *Page) committedUnacked(ctx context.Context, durable string, charges func(order string) (int, error)) (bool, error) {
	consumer, err := p.lab.JetStream.Consumer(ctx, events.OrdersStream, durable)
	if err != nil {
		return false, err
	}
	info := consumer.CachedInfo()
	if info.NumAckPending == 0 {
		return false, nil
	}
	stream, err := p.lab.JetStream.Stream(ctx, events.OrdersStream)
	if err != nil {
		return false, err
	}
	// The first above the floor is not acknowledged; those behind it may be.
	msg, err := stream.GetMsg(ctx, info.AckFloor.Stream+1)
	if err != nil {
		return false, err
	}
	var req events.ChargeRequested
	if err := json.Unmarshal(msg.Data, &req); err != nil {
		return false, err
	}
	n, err := charges(req.OrderID)
	return n > 0, err
}

func (p *Page) revive(ctx context.Context, dead ...Process) error {
	if err := wait(ctx, downTime); err != nil {
		return err
	}
	for _, d := range dead {
		if err := d.Start(ctx); err != nil {
			return err
		}
	}
	return nil
}
