package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox/internal/stacktest"
)

// Invariant: with the keys in a Redis that loses all of them again and again under load, each intent makes one order, and each of
// its retries is told of that one.
func TestARedisThatForgetsMakesNoSecondOrder(t *testing.T) {
	t.Parallel()
	server := stacktest.Redis(t)
	o, err := redis.ParseURL(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(o)
	t.Cleanup(func() { client.Close() })
	s := startSystem(t, nil, nil)
	s.orders.terminate(t)()
	s.orders.process = map[string]string{"IDEMPOTENCY_STORE": "redis", "REDIS_URL": server.URL(), "IDEMPOTENCY_LEASE": "750ms"}
	s.orders.start(t)
	second := s.orders.twin(t, brisk)
	second.process = s.orders.process
	second.start(t)

	// A twentieth of the five seconds of make soak; there always was something to forget.
	intents, every := 200, 250*time.Millisecond
	if soaking() {
		intents, every = 20*intents, 20*every
	}
	ctx, stop := context.WithCancel(t.Context())
	var flushed atomic.Int64
	flushing := make(chan struct{})
	go func() {
		defer close(flushing)
		for ctx.Err() == nil {
			pause(ctx, every)
			if n, err := client.DBSize(ctx).Result(); err == nil && n > 0 && client.FlushAll(ctx).Err() == nil {
				flushed.Add(1)
			}
		}
	}()
	const tries = 5
	g, gctx := errgroup.WithContext(t.Context())
	g.SetLimit(8)
	for i := range intents {
		g.Go(func() error {
			var location, id string
			for n := range tries {
				to := []*service{s.orders, second}[(i+n)%2]
				a := answer{}
				for a.status != http.StatusCreated {
					var err error
					if a, err = to.post(gctx, fmt.Sprint("intent-", i), int64(100+i)); err != nil {
						return err
					}
					if a.status != http.StatusCreated && a.status != http.StatusConflict && a.status != http.StatusServiceUnavailable {
						return fmt.Errorf("intent %d, try %d: %d %s", i, n, a.status, a.body)
					}
				}
				var order struct{ ID string }
				if err := json.Unmarshal(a.body, &order); err != nil {
					return err
				}
				if at := a.header.Get("Location"); n > 0 && (at != location || order.ID != id) {
					return fmt.Errorf("intent %d, try %d: %s at %s, before %s at %s", i, n, order.ID, at, id, location)
				}
				location, id = a.header.Get("Location"), order.ID
			}
			return nil
		})
	}
	err = g.Wait()
	stop()
	<-flushing
	if err != nil {
		t.Fatal(err)
	}
	stopped := s.orders.metric(t, "orders_guarded_total") + second.metric(t, "orders_guarded_total")
	t.Logf("all was forgotten %d times, and the unique key stopped %v second orders", flushed.Load(), stopped)
	if flushed.Load() < 2 || stopped == 0 {
		t.Error("the fault did not fire: nothing that mattered was forgotten")
	}
	s.settle(t)
	s.checkOnce(t, intents)
}
