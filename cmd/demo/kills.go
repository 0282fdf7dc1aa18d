package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/trial"
)

// A killer kills billing, and the naive consumer with it, in the middle of its work, and starts both again.
//
// No kill is placed by time. Billing is stopped (SIGSTOP), and then it is looked at what it has in hand: best is a charge that
// is committed and whose message is not acknowledged, since that message must come again and must not charge again; after some
// looks in vain a message that was handed out and not acknowledged will do. A kill without such a state does not happen.
type killer struct {
	s         *stack
	gate      *trial.Gate
	orders    int
	kills     int
	customers string // of the orders that the progress is measured by

	done        atomic.Int64
	afterCommit atomic.Int64 // of them with a charge committed and not acknowledged
	noops       int          // redeliveries that billing's inbox stopped, in incarnations that are gone
	lastNoops   int          // the same in the one of now, when last asked
}

const (
	// looks is how often a kill looks for the better state.
	looks = 10
	// flowLimit is how long it waits each time for messages in flight.
	flowLimit = time.Second
	// pullLimit is longer than any request for messages lasts that could run out while billing stands still.
	pullLimit = 5 * time.Second
	// stateLimit bounds the wait for a message in hand of a billing that stands still.
	stateLimit = 30 * time.Second
)

// The orders are let through in kills+1 portions, the last of which runs undisturbed. released is how many there are in the
// first n+1 of them. It grows with each n, as long as there are more orders than kills.
func (k *killer) released(n int) int { return k.orders * (n + 1) / (k.kills + 1) }

func (k *killer) run(ctx context.Context) error {
	k.gate.Raise(k.released(0))
	var before sight
	for n := range k.kills {
		if err := k.awaitTurn(ctx, n, before); err != nil {
			return fmt.Errorf("kill %d: %w", n+1, err)
		}
		// There is load again now. One order of it is kept back, for a billing that stands still and has nothing in hand.
		k.gate.Raise(k.released(n+1) - 1)
		var err error
		if before, err = k.place(ctx, k.released(n+1)); err != nil {
			return fmt.Errorf("kill %d: %w", n+1, err)
		}
		k.gate.Raise(k.released(n + 1))
		if err := k.strike(ctx, before); err != nil {
			return fmt.Errorf("kill %d: %w", n+1, err)
		}
	}
	return nil
}

// awaitTurn waits for the middle of the n-th portion, and until all that the kill before left unacknowledged has come again:
// else what it left would be taken for the next one's.
func (k *killer) awaitTurn(ctx context.Context, n int, before sight) error {
	half := (k.orders*n + k.orders/2) / (k.kills + 1)
	return whileMoving(ctx, "before it", func() (string, bool, error) {
		charged, err := k.s.charged(ctx, k.customers)
		if err != nil {
			return "", false, err
		}
		now, err := k.look(ctx)
		return fmt.Sprintf("%d of %d orders charged, messages up to %d of %d acknowledged", charged, half, now.floor, before.delivered),
			charged >= half && now.floor >= before.delivered, err
	})
}

// place stops billing in a state worth a kill and leaves it stopped. limit is where the gate is raised to if billing has
// nothing in hand.
func (k *killer) place(ctx context.Context, limit int) (sight, error) {
	for range looks {
		flows, err := k.flows(ctx)
		if err != nil {
			return sight{}, err
		}
		if !flows {
			break
		}
		seen, err := k.halt(ctx)
		if err != nil || seen.committed > seen.acked {
			return seen, err
		}
		if err := k.s.billing.process(false).Continue(); err != nil {
			return sight{}, fmt.Errorf("continue billing: %w", err)
		}
		if err := trial.Pause(ctx, time.Duration(5+rand.IntN(30))*time.Millisecond); err != nil {
			return sight{}, err
		}
	}
	if err := k.haltAtPull(ctx); err != nil {
		return sight{}, err
	}
	k.gate.Raise(limit)
	var seen sight
	err := trial.Until(ctx, pollPause, stateLimit, "billing has a message in hand", func() (ok bool, err error) {
		seen, err = k.steady(ctx)
		return seen.unacked > 0, err
	})
	return seen, err
}

// haltAtPull stops billing while it has just asked for messages, so that the next one is handed out to it although it stands
// still. What it asked for earlier may be about to run out: billing has to ask again first.
func (k *killer) haltAtPull(ctx context.Context) error {
	seen, err := k.halt(ctx)
	if err != nil || seen.unacked > 0 {
		return err
	}
	late := time.Now().Add(pullLimit)
	err = trial.Until(ctx, pollPause, 2*pullLimit, "billing's request for messages has run out", func() (ok bool, err error) {
		seen, err = k.look(ctx)
		return seen.asked == 0 || seen.unacked > 0 || time.Now().After(late), err
	})
	if err != nil || seen.unacked > 0 {
		return err
	}
	if err := k.s.billing.process(false).Continue(); err != nil {
		return fmt.Errorf("continue billing: %w", err)
	}
	err = trial.Until(ctx, pollPause, stateLimit, "billing asks for messages", func() (bool, error) {
		seen, err := k.look(ctx)
		return seen.asked > 0, err
	})
	if err != nil {
		return err
	}
	if err := k.s.billing.process(false).Pause(); err != nil {
		return fmt.Errorf("stop billing: %w", err)
	}
	return nil
}

// flows waits a while for messages that are handed out or about to be.
func (k *killer) flows(ctx context.Context) (bool, error) {
	late := time.Now().Add(flowLimit)
	flows := false
	err := trial.Until(ctx, pollPause, 2*flowLimit, "messages flow", func() (bool, error) {
		now, err := k.look(ctx)
		flows = now.unacked > 0
		return flows || time.Now().After(late), err
	})
	return flows, err
}

// A sight is what is seen of billing's work from outside: in its database and in JetStream.
type sight struct {
	committed int    // orders that it has charged
	acked     int    // messages acknowledged
	unacked   int    // messages handed out and not acknowledged
	asked     int    // requests for messages that are open
	delivered uint64 // the last message that was handed out
	floor     uint64 // up to it everything is acknowledged
}

// look counts what is committed before it asks what is acknowledged: both only grow, so if more was committed then than is
// acknowledged now, then a message is not acknowledged now whose charge is committed. Every message of the stream asks for the
// charge of another order, and the stream begins with this run. The inbox is not asked: it is what the kill is to put to the
// test.
func (k *killer) look(ctx context.Context) (sight, error) {
	var s sight
	err := k.s.billingDB.QueryRow(ctx, "SELECT count(*) FROM charge").Scan(&s.committed)
	if err != nil {
		return sight{}, fmt.Errorf("count what is charged: %w", err)
	}
	info, err := k.s.consumer(ctx, events.OrdersStream, billing.Name)
	if err != nil {
		return sight{}, err
	}
	s.unacked, s.asked = info.NumAckPending, info.NumWaiting
	s.delivered, s.floor = info.Delivered.Stream, info.AckFloor.Stream
	s.acked = int(s.delivered) - s.unacked
	return s, nil
}

// halt stops billing and looks.
func (k *killer) halt(ctx context.Context) (sight, error) {
	noops, err := k.s.billing.metric(ctx, noopsMetric, "", "") // a stopped process does not answer
	if err != nil {
		return sight{}, err
	}
	k.lastNoops = noops
	if err := k.s.billing.process(false).Pause(); err != nil {
		return sight{}, fmt.Errorf("stop billing: %w", err)
	}
	return k.steady(ctx)
}

// steady looks until two looks agree: after billing was stopped Postgres may still be committing what it had sent, and
// acknowledgements may be on their way.
func (k *killer) steady(ctx context.Context) (sight, error) {
	now, err := k.look(ctx)
	if err != nil {
		return sight{}, err
	}
	err = trial.Until(ctx, pollPause, stateLimit, "billing stands still", func() (bool, error) {
		if err := trial.Pause(ctx, pollPause); err != nil {
			return false, err
		}
		last := now
		now, err = k.look(ctx)
		return now.committed == last.committed && now.acked == last.acked, err
	})
	return now, err
}

// noopsMetric counts the redeliveries that an inbox stopped.
const noopsMetric = "oncebox_inbox_noops_total"

// strike kills the stopped billing, and the naive consumer in whatever it is doing, and starts both again.
func (k *killer) strike(ctx context.Context, seen sight) error {
	for _, p := range []*program{k.s.billing, k.s.naive} {
		if err := p.kill(); err != nil {
			return err
		}
	}
	k.noops += k.lastNoops
	k.lastNoops = 0
	k.done.Add(1)
	if seen.committed > seen.acked {
		k.afterCommit.Add(1)
	}
	for _, p := range []*program{k.s.billing, k.s.naive} {
		if err := p.start(); err != nil {
			return err
		}
	}
	return k.s.billing.ready(ctx)
}

// stopped is how many redeliveries billing's inboxes stopped. A lower bound: what a killed billing counted after it was last
// asked is lost with it.
func (k *killer) stopped(ctx context.Context) (int, error) {
	now, err := k.s.billing.metric(ctx, noopsMetric, "", "")
	return k.noops + now, err
}

// consumer is JetStream's own account of a durable.
func (s *stack) consumer(ctx context.Context, stream, durable string) (*jetstream.ConsumerInfo, error) {
	c, err := s.js.Consumer(ctx, stream, durable)
	if err != nil {
		return nil, fmt.Errorf("look at consumer %s of %s: %w", durable, stream, err)
	}
	return c.CachedInfo(), nil
}

// charged is how many charges these customers have.
func (s *stack) charged(ctx context.Context, customers string) (int, error) {
	var n int
	err := s.billingDB.QueryRow(ctx, "SELECT count(*) FROM charge WHERE status = 'succeeded' AND starts_with(customer_id, $1)", customers).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count the charges: %w", err)
	}
	return n, nil
}
