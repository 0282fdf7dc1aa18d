package trial

import (
	"context"
	"sync"
)

// A Gate holds clients back, so that there is still work for each fault to come into.
type Gate struct {
	mu     sync.Mutex
	limit  int
	raised chan struct{}
}

// NewGate returns one that lets nothing through.
func NewGate() *Gate { return &Gate{raised: make(chan struct{})} }

// Raise lets intents below limit through. The limit never falls.
func (g *Gate) Raise(limit int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if limit > g.limit {
		g.limit = limit
		close(g.raised)
		g.raised = make(chan struct{})
	}
}

// Wait returns when intent n is let through, or with the cause of ctx's end.
func (g *Gate) Wait(ctx context.Context, n int) error {
	for {
		g.mu.Lock()
		open, raised := n < g.limit, g.raised
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
