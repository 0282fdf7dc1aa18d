package main

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox/internal/trial"
)

// clients ask for all intents, as far as the gate lets them.
type clients struct {
	o       options
	w       *world
	begun   time.Time
	history *lines
	gate    *trial.Gate

	next     atomic.Int64
	answered atomic.Int64 // intents that have an answer
	tries    atomic.Int64
	replays  atomic.Int64 // answers that said they were given before

	mu     sync.Mutex
	failed []string       // intents without an answer, or with a wrong one
	saw    map[string]int // tries without an answer, by kind
}

func newClients(o options, w *world, history *lines) *clients {
	return &clients{o: o, w: w, begun: time.Now(), history: history, gate: trial.NewGate(), saw: map[string]int{}}
}

func (c *clients) now() int64 { return time.Since(c.begun).Microseconds() }

func (c *clients) note(t try) {
	c.history.add(t)
	c.tries.Add(1)
	if t.Replayed {
		c.replays.Add(1)
	}
	if t.Error != "" {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.saw[t.Error]++
	}
}

// run returns when every intent is done.
func (c *clients) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for range c.o.Clients {
		g.Go(trial.Guarded(func() error { return c.work(ctx) }))
	}
	return g.Wait()
}

// restFor is how many intents lie between an order and its deletion in a while.
const restFor = 6

func (c *clients) work(ctx context.Context) error {
	type order struct {
		in intent
		id string
	}
	var made []order // to be deleted
	for done := 0; ; done++ {
		n := int(c.next.Add(1)) - 1
		if n >= c.o.Orders {
			break
		}
		if err := c.gate.Wait(ctx, n); err != nil {
			return err
		}
		in := intentOf(c.o, n)
		id, err := c.do(ctx, in)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c.answered.Add(1)
		if err != nil {
			c.fail(err)
			continue
		}
		switch in.remove {
		case removedAtOnce:
			c.remove(ctx, in, id)
		case removedInAWhile:
			made = append(made, order{in, id})
		}
		if len(made) > restFor {
			c.remove(ctx, made[0].in, made[0].id)
			made = made[1:]
		}
	}
	for _, o := range made {
		c.remove(ctx, o.in, o.id)
	}
	return nil
}

// do asks for one intent until it is answered, and then perhaps again, by which an answer is seen twice.
func (c *clients) do(ctx context.Context, in intent) (id string, err error) {
	body, err := in.body()
	if err != nil {
		return "", err
	}
	if in.together {
		var both sync.WaitGroup
		for _, p := range c.w.of(in.service()) {
			both.Go(func() { c.send(ctx, p, in, in.op(), http.MethodPost, in.path(), in.key(), body) })
		}
		both.Wait()
	}
	t, err := c.insist(ctx, in, in.op(), http.MethodPost, in.path(), in.key(), body, in.first)
	for range in.again {
		if err == nil {
			_, err = c.insist(ctx, in, in.op(), http.MethodPost, in.path(), in.key(), body, in.first+1)
		}
	}
	return t.ID, err
}

func (c *clients) remove(ctx context.Context, in intent, id string) {
	if _, err := c.insist(ctx, in, opDelete, http.MethodDelete, "/v1/orders/"+id, in.deleteKey(), nil, in.first); err != nil && ctx.Err() == nil {
		c.fail(err)
	}
}

func (c *clients) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed = append(c.failed, err.Error())
}
