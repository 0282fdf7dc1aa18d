package page

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A Fault is something that a button breaks, for real. To add one is to add it to the list.
type Fault struct {
	ID     string `json:"id"`
	Title  string `json:"title"`
	Does   string `json:"does"`
	Expect string `json:"expect"`
	Off    string `json:"off,omitempty"` // why it cannot be had here

	needs power
	// do returns what it met, once the fault is over and all that it killed serves again.
	do func(*Page, context.Context) (string, error)
}

var faults = []Fault{
	{ID: "kill-billing", needs: processes, Title: "Kill billing", do: (*Page).killBilling,
		Does:   "SIGKILL to billing and to the naive consumer, each once it is seen with a charge committed and not acknowledged.",
		Expect: "Both get those messages again. The inbox knows them; the naive consumer charges twice."},
	{ID: "kill-orders", needs: processes, Title: "Kill orders", do: (*Page).killOrders,
		Does:   "SIGKILL to orders, once it is seen in the middle of a transaction.",
		Expect: "Clients find nobody and try again. What did not commit did not happen; what did is answered from its key."},
	{ID: "kill-relay", needs: processes, Title: "Kill the relay after a publish", do: (*Page).killRelay,
		Does:   "SIGKILL to orders, once its relay is seen with events published and its cursor not saved.",
		Expect: "The next relay reads back what stands in the stream, and goes on behind it."},
	{ID: "pause-nats", needs: broker, Title: "Pause NATS 3 s", do: (*Page).pauseNATS,
		Does:   "SIGSTOP to the nats-server for three seconds, its connections open.",
		Expect: "Orders goes on taking orders. Their events wait in the outbox."},
	{ID: "cut-postgres", needs: wire, Title: "Cut the link to Postgres 2 s", do: (*Page).cutPostgres,
		Does:   "Closes each connection of both services to their databases, with whatever is under way on it, and refuses new ones.",
		Expect: "What did not commit did not happen; of a commit whose answer was cut off nobody knows, until its key or id is tried again."},
	{ID: "redeliver", needs: processes, Title: "Redeliver everything", do: (*Page).redeliver,
		Does:   "Deletes the durable consumers: JetStream forgets what was acknowledged and hands out its whole stream again.",
		Expect: "The inbox stops each message. The naive consumer charges everybody again."},
	{ID: "duplicates", needs: writer, Title: "Send 1,000 duplicates", do: (*Page).duplicate,
		Does:   "Publishes copies of messages that stand in the stream, past JetStream's own deduplication.",
		Expect: "The inbox stops each copy, the naive consumer charges it."},
	{ID: "roll-back", needs: broker, Title: "Roll the broker's store back", do: (*Page).rollBack,
		Does:   "Copies the store of NATS, has 20 clients pay, stops NATS, and puts the copy back: the stream's tail is gone.",
		Expect: "The relay misses it and sends it again from the outbox. The inbox knows what was charged; the naive consumer does not."},
	{ID: "poison", Title: "Poison message", do: (*Page).poison,
		Does:   "Commits an event to the outbox of orders that billing can never handle: a charge of less than nothing.",
		Expect: "It becomes a dead letter with its reason, and nobody waits behind it."},
	{ID: "killer", needs: processes, Title: "A message that kills", do: (*Page).killer,
		Does:   "One client pays, and billing dies (SIGKILL) each time that it handles the message, which is held up by a lock.",
		Expect: "After three deaths it is a dead letter, and everybody else is charged. The cause is gone then: retry it in the console."},
}

// Break begins the fault in the background.
func (p *Page) Break(id string) error {
	for _, f := range p.Faults() {
		if f.ID == id {
			if f.Off != "" {
				return errors.New(f.Off)
			}
			return p.begin("fault", f.ID, f.Title, func(ctx context.Context) (string, error) { return p.breakAndSettle(ctx, f) })
		}
	}
	return errUnknown
}

// Faults are all, and why some cannot be had here.
func (p *Page) Faults() []Fault {
	fs := slices.Clone(faults)
	for i := range fs {
		fs[i].Off = p.lab.lacks(fs[i].needs)
	}
	return fs
}

// breakAndSettle tells how the system came out of the fault.
func (p *Page) breakAndSettle(ctx context.Context, f Fault) (string, error) {
	met, missed := f.do(p, ctx)
	if missed != nil && !errors.Is(missed, errMissed) {
		return met, missed
	}
	s, err := p.settle(ctx)
	if err != nil {
		return met, err
	}
	text, err := s.verdict()
	return met + " " + text, cmp.Or(err, missed)
}

// errNotEqual is what must never be seen.
var errNotEqual = errors.New("orders and charges differ")

// verdict is what came out, or an error if billing did not charge each order once, or hold it as a dead letter: whatever clients
// do, that holds.
func (s Sums) verdict() (string, error) {
	text := fmt.Sprintf("Came out with %d orders, %d charges by billing, %d by the naive consumer.", s.Orders, s.Charges, s.Naive)
	if s.Held > 0 {
		text += fmt.Sprintf(" %d waits as a dead letter.", s.Held)
	}
	if s.Charges+s.Held != s.Orders {
		return text, errNotEqual
	}
	return text, nil
}

func (p *Page) cutPostgres(ctx context.Context) (string, error) {
	var open int
	err := p.lab.Super.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE datname = ANY ($1) AND application_name <> $2`,
		[]string{p.lab.Orders.Config().ConnConfig.Database, p.lab.Billing.Config().ConnConfig.Database}, Application).Scan(&open)
	if err != nil {
		return "", err
	}
	if open == 0 {
		return "Did not fire: there was no connection to cut.", errMissed
	}
	return fmt.Sprintf("%d connections were cut.", open), p.lab.CutPostgres(ctx, 2*time.Second)
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
