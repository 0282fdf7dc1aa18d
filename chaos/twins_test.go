package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox/internal/stacktest"
)

// Invariant: of two instances of each service side by side, one at a time is stopped and started again under load, as a rolling
// release does it, and all of them a second time. A client that tries the other instance, once, when one refuses its connection sees
// no failure; each stop ends with 0 within 10 s, with nothing left undone; no message is handed out twice; each order is charged once.
func TestTwoRollsOfEveryServiceUnderLoadFailNobodyAndRedeliverNothing(t *testing.T) {
	t.Parallel()
	patient := map[string]string{"ACK_WAIT": "1m"} // what is not acknowledged must stay so until it is counted
	s := startSystem(t, patient, patient)
	ordersTwin, billingTwin := s.orders.twin(t, brisk), s.billing.twin(t, brisk)
	ordersTwin.set(patient)
	billingTwin.set(patient)
	ordersTwin.start(t)
	billingTwin.start(t)

	load, stop := context.WithCancel(t.Context())
	defer stop()
	var made, moved atomic.Int64
	instances := []*service{s.orders, ordersTwin}
	g, ctx := errgroup.WithContext(t.Context())
	const clients = 4
	for c := range clients {
		g.Go(func() error {
			for i := 0; load.Err() == nil; i++ {
				key := fmt.Sprintf("client-%d-%d", c, i)
				a, err := instances[(c+i)%2].post(ctx, key, 4200)
				if errors.Is(err, syscall.ECONNREFUSED) {
					moved.Add(1)
					a, err = instances[(c+i+1)%2].post(ctx, key, 4200)
				}
				if err != nil || a.status != http.StatusCreated {
					return fmt.Errorf("%s: %w, answered %d: %s", key, err, a.status, a.body)
				}
				made.Add(1)
			}
			return nil
		})
	}
	services := []*service{s.orders, s.billing, ordersTwin, billingTwin}
	for _, svc := range slices.Concat(services, services) {
		before := made.Load()
		stacktest.Eventually(t, patience, "orders come in", func() (bool, error) {
			return made.Load() >= before+20 || ctx.Err() != nil, nil
		})
		wasMoved := moved.Load()
		svc.terminate(t)()
		if svc.name == "orders" {
			stacktest.Eventually(t, patience, "clients went to the other instance", func() (bool, error) {
				return moved.Load() > wasMoved || ctx.Err() != nil, nil
			})
		}
		svc.start(t)
	}
	stop()
	if err := g.Wait(); err != nil {
		t.Fatalf("a request failed: %v", err)
	}
	s.settle(t)
	for _, svc := range services {
		log, err := os.ReadFile(svc.log.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, undone := range []string{"not all was finished", "stopped before all was sent"} {
			if bytes.Contains(log, []byte(undone)) {
				t.Errorf("the log of %s at %s says: %s", svc.name, svc.addr, undone)
			}
		}
	}
	for _, d := range []direction{toBilling, toOrders} {
		if c := s.info(t, d); c.Delivered.Consumer != c.Delivered.Stream || c.NumRedelivered != 0 {
			t.Errorf("%d deliveries of %d messages of %s, %d of them again", c.Delivered.Consumer, c.Delivered.Stream, d.stream, c.NumRedelivered)
		}
	}
	s.checkOnce(t, int(made.Load()))
}
