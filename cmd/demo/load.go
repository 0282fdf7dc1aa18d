package main

import (
	"context"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// workers is how many intents of one client are tried at once.
const workers = 16

// A load is the run itself: two clients, and the killer.
type load struct {
	s      *stack
	o      options
	keyed  *client
	naive  *client
	gate   *gate
	killer *killer
}

func newLoad(s *stack, o options) *load {
	l := &load{s: s, o: o, gate: newGate(),
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
			g.Go(guarded(func() error { return l.work(gctx, c, &next) }))
		}
	}
	g.Go(guarded(func() error { return l.killer.run(gctx) }))
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
		if err := l.gate.wait(ctx, intent); err != nil {
			return err
		}
		if err := c.order(ctx, intent); err != nil {
			return err
		}
	}
}

// A gate holds the clients back, so that there is still work to kill billing in the middle of.
type gate struct {
	mu     sync.Mutex
	limit  int
	raised chan struct{}
}

func newGate() *gate { return &gate{raised: make(chan struct{})} }

// raise lets intents below limit through. The limit never falls.
func (g *gate) raise(limit int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if limit > g.limit {
		g.limit = limit
		close(g.raised)
		g.raised = make(chan struct{})
	}
}

func (g *gate) wait(ctx context.Context, intent int) error {
	for {
		g.mu.Lock()
		open, raised := intent < g.limit, g.raised
		g.mu.Unlock()
		if open {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-raised:
		}
	}
}
