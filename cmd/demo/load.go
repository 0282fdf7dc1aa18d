package main

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox/internal/trial"
)

// workers is how many intents of one client are tried at once.
const workers = 16

// A load is the run itself: two clients, and the killer.
type load struct {
	s      *stack
	o      options
	keyed  *client
	naive  *client
	gate   *trial.Gate
	killer *killer
}

func newLoad(s *stack, o options) *load {
	l := &load{s: s, o: o, gate: trial.NewGate(),
		keyed: newClient(keyedPrefix, false, s.run, s.link.url), naive: newClient(naivePrefix, true, s.run, s.link.url)}
	l.killer = &killer{s: s, gate: l.gate, orders: o.orders, kills: o.kills, customers: l.keyed.customers()}
	return l
}

// run returns when every intent has its answer, every kill is done, and everything has come to rest. unsettled says what has
// not; it is a matter for the judge.
func (l *load) run(ctx context.Context) (unsettled, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	bar := newProgress(l)
	defer bar.start(ctx)()

	g, gctx := errgroup.WithContext(ctx)
	for _, c := range []*client{l.keyed, l.naive} {
		var next atomic.Int64
		for range workers {
			g.Go(trial.Guarded(func() error { return l.work(gctx, c, &next) }))
		}
	}
	g.Go(trial.Guarded(func() error { return l.killer.run(gctx) }))
	if err := g.Wait(); err != nil {
		return nil, err
	}
	bar.phase(settling)
	return l.settle(ctx)
}

// work tries one intent after the other, as far as the gate lets it.
func (l *load) work(ctx context.Context, c *client, next *atomic.Int64) error {
	for {
		intent := int(next.Add(1)) - 1
		if intent >= l.o.orders {
			return nil
		}
		if err := l.gate.Wait(ctx, intent); err != nil {
			return err
		}
		if err := c.order(ctx, intent); err != nil {
			return err
		}
	}
}
