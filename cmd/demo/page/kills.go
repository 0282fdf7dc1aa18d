package page

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/events"
)

const (
	looksForState = 40
	steadyPause   = 30 * time.Millisecond
	downTime      = time.Second // so that one sees it
)

// killAt stops a process (SIGSTOP) and looks, until it stands in the state that is sought, and then kills it there. After some
// looks in vain it is killed as it stands.
func (p *Page) killAt(ctx context.Context, process Process, sought func() (bool, error)) (found bool, err error) {
	for range looksForState {
		if err := process.Pause(); err != nil {
			return false, err
		}
		// What it had sent may still be committing.
		if err := wait(ctx, steadyPause); err != nil {
			return false, errors.Join(err, process.Continue())
		}
		if found, err = sought(); err != nil {
			return false, errors.Join(err, process.Continue())
		}
		if found {
			break
		}
		if err := process.Continue(); err != nil {
			return false, err
		}
		if err := wait(ctx, steadyPause/2); err != nil {
			return false, err
		}
	}
	return found, process.Kill()
}

func (p *Page) killBilling(ctx context.Context) (string, error) {
	committed, err := p.killAt(ctx, p.lab.BillingProcess, func() (bool, error) {
		return p.committedUnacked(ctx, billing.Name, func(order string) (n int, err error) {
			err = p.lab.Billing.QueryRow(ctx, "SELECT count(*) FROM charge WHERE order_id = $1", order).Scan(&n)
			return n, err
		})
	})
	if err != nil {
		return "", err
	}
	naive, err := p.killAt(ctx, p.lab.NaiveProcess, func() (bool, error) {
		return p.committedUnacked(ctx, p.lab.NaiveDurable, func(order string) (n int, err error) {
			err = p.lab.Naive.QueryRow(ctx, "SELECT count(*) FROM naive_charge WHERE order_id = $1", order).Scan(&n)
			return n, err
		})
	})
	if err != nil {
		return "", err
	}
	if err := p.revive(ctx, p.lab.BillingProcess, p.lab.NaiveProcess); err != nil {
		return "", err
	}
	say := func(who string, found bool) string {
		if found {
			return who + " died with a charge committed and not acknowledged."
		}
		return who + " died with nothing half done."
	}
	return say("Billing", committed) + " " + say("The naive consumer", naive), nil
}

func (p *Page) killOrders(ctx context.Context) (string, error) {
	found, err := p.killAt(ctx, p.lab.OrdersProcess, func() (open bool, err error) {
		err = p.lab.Super.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = $1 AND application_name <> $2 AND backend_xid IS NOT NULL AND state LIKE 'idle in transaction%')`,
			p.lab.Orders.Config().ConnConfig.Database, Application).Scan(&open)
		return open, err
	})
	return p.orderDied(ctx, found, "Orders died in the middle of a transaction.", "Orders died between two transactions.", err)
}

func (p *Page) killRelay(ctx context.Context) (string, error) {
	found, err := p.killAt(ctx, p.lab.OrdersProcess, func() (bool, error) {
		stream, err := p.lab.JetStream.Stream(ctx, events.OrdersStream)
		if err != nil {
			return false, err
		}
		var saved uint64
		err = p.lab.Orders.QueryRow(ctx, "SELECT stream_seq FROM oncebox.outbox_cursor").Scan(&saved)
		return stream.CachedInfo().State.LastSeq > saved, err
	})
	return p.orderDied(ctx, found, "The relay died with events published that its cursor did not know of.", "The relay died with its cursor saved.", err)
}

// orderDied starts orders again.
func (p *Page) orderDied(ctx context.Context, found bool, so, not string, err error) (string, error) {
	if err != nil {
		return "", err
	}
	if err := p.revive(ctx, p.lab.OrdersProcess); err != nil {
		return "", err
	}
	if found {
		return so, nil
	}
	return not, nil
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
