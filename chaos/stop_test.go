package chaos

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox/internal/stacktest"
)

// Invariant: at SIGTERM orders answers each request that it has begun, publishes everything that it has committed, and exits
// with 0 within 10 s.
func TestOrdersStoppedUnderLoadAnswersAndPublishesWhatItTook(t *testing.T) {
	t.Parallel()
	s := startSystem(t, nil, nil)
	s.billing.kill(t)                          // its answers would wait for the lock below too, on the pool's last connections
	s.orders.link.slow(t, 20*time.Millisecond) // the relay falls behind

	const clients = 3 // fewer than the pool's connections, so that each can be seen to be in a transaction
	var answered atomic.Int64
	g, ctx := errgroup.WithContext(t.Context())
	for c := range clients {
		g.Go(func() error {
			for i := 0; ; i++ {
				a, err := s.orders.post(ctx, fmt.Sprintf("client-%d-%d", c, i), 4200)
				switch {
				case errors.Is(err, syscall.ECONNREFUSED): // it was not begun
					return nil
				case err != nil:
					return fmt.Errorf("client %d, request %d: %w", c, i, err)
				case a.status != http.StatusCreated:
					return fmt.Errorf("client %d, request %d: answered %d: %s", c, i, a.status, a.body)
				}
				answered.Add(1)
			}
		})
	}
	stacktest.Eventually(t, patience, "the relay is behind", func() (bool, error) {
		return outboxRows(t, s.orders) >= s.published(t)+50, nil
	})
	release := s.orders.hold(t, "LOCK TABLE orders IN SHARE MODE")
	stacktest.Eventually(t, patience, "each client's request is in the middle of its transaction", func() (bool, error) {
		return s.orders.blocked(t, "%INSERT INTO orders%") == clients, nil
	})
	if rows, messages := outboxRows(t, s.orders), s.published(t); rows <= messages {
		t.Fatalf("stopped at the wrong moment: of %d rows %d are published", rows, messages)
	}
	wait := s.orders.terminate(t)
	stacktest.Eventually(t, patience, "orders takes no new requests", func() (bool, error) {
		c, err := net.Dial("tcp", s.orders.addr) // not a request: one that is taken would wait for the lock
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED), nil
	})
	release()
	wait()
	if err := g.Wait(); err != nil {
		t.Errorf("a request failed: %v", err)
	}
	orders := one[int64](t, s.orders.db, "SELECT count(*) FROM orders")
	if n := answered.Load(); n != orders {
		t.Errorf("%d orders were made and %d answered", orders, n)
	}
	if rows, messages := outboxRows(t, s.orders), s.published(t); rows != messages {
		t.Errorf("of %d rows %d are published", rows, messages)
	}

	s.orders.link.heal(t)
	s.orders.start(t)
	s.billing.start(t)
	s.settle(t)
	s.checkOnce(t, int(orders))
}

// Invariant: at SIGTERM billing finishes and acknowledges what it has in hand, so that nothing comes again, and exits with 0
// within 10 s.
func TestBillingStoppedUnderLoadLeavesNothingToRedeliver(t *testing.T) {
	t.Parallel()
	// What is not acknowledged must stay so until it is counted.
	s := startSystem(t, nil, map[string]string{"ACK_WAIT": "1m"})
	const orders = 150
	release := s.billing.hold(t, "LOCK TABLE charge IN SHARE MODE")
	waitForClients := s.clients(t, "load", orders)
	stacktest.Eventually(t, patience, "billing has messages in its handlers and behind them", func() (bool, error) {
		c, err := s.consumer(t.Context(), toBilling)
		return err == nil && c.NumAckPending >= 30 && s.billing.blocked(t, "%INSERT INTO charge%") >= 3, err
	})
	inHand := s.info(t, toBilling).NumAckPending
	wait := s.billing.terminate(t)
	stacktest.Eventually(t, patience, "billing is stopping", func() (bool, error) {
		h, err := s.billing.health(t.Context())
		return err == nil && !h.Ready, err
	})
	release()
	wait()
	if c := s.info(t, toBilling); c.NumAckPending != 0 {
		t.Errorf("of %d messages delivered, at least %d of them in hand at SIGTERM, %d are left unacknowledged",
			c.Delivered.Consumer, inHand, c.NumAckPending)
	}
	waitForClients()

	s.billing.set(brisk)
	s.billing.start(t)
	s.settle(t)
	if c := s.info(t, toBilling); c.Delivered.Consumer != c.Delivered.Stream {
		t.Errorf("%d deliveries of %d messages", c.Delivered.Consumer, c.Delivered.Stream)
	}
	s.checkOnce(t, orders)
}

// Invariant: the same at any moment, while messages come and go freely.
func TestBillingStoppedInMidstreamLeavesNothingToRedeliver(t *testing.T) {
	t.Parallel()
	s := startSystem(t, nil, map[string]string{"ACK_WAIT": "1m"})
	const stops, each = 3, 50
	for i := range stops {
		before := s.info(t, toBilling).Delivered.Stream
		wait := s.clients(t, fmt.Sprint("stop-", i), each)
		stacktest.Eventually(t, patience, "messages are coming", func() (bool, error) {
			return s.info(t, toBilling).Delivered.Stream > before, nil
		})
		s.billing.terminate(t)()
		if c := s.info(t, toBilling); c.NumAckPending != 0 || c.Delivered.Consumer != c.Delivered.Stream {
			t.Errorf("stop %d: %d deliveries of %d messages, %d left unacknowledged", i, c.Delivered.Consumer, c.Delivered.Stream, c.NumAckPending)
		}
		wait()
		if i == stops-1 {
			s.billing.set(brisk)
		}
		s.billing.start(t)
	}
	s.settle(t)
	s.checkOnce(t, stops*each)
}

// Invariant: where a request hangs and NATS takes nothing any more, the service still ends with 0 within 10 s of SIGTERM, and the next
// one finishes all of it.
func TestAStopEndsInTimeWhereNothingCanBeFinished(t *testing.T) {
	t.Parallel()
	s := startSystem(t, nil, nil)
	s.orders.link.swallow(t)
	s.order(t, "cannot-be-published")
	release := s.orders.hold(t, "LOCK TABLE orders IN SHARE MODE")
	hung := make(chan error, 1)
	go func() {
		_, err := s.orders.post(t.Context(), "hangs", 4200)
		hung <- err
	}()
	stacktest.Eventually(t, patience, "a request hangs", func() (bool, error) { return s.orders.blocked(t, "%INSERT INTO orders%") == 1, nil })
	s.orders.terminate(t)()
	if err := <-hung; err == nil {
		t.Error("the request that hung was answered")
	}
	if rows, messages := outboxRows(t, s.orders), s.published(t); rows != 1 || messages != 0 {
		t.Errorf("%d events are written and %d published, want 1 and 0", rows, messages)
	}
	release()
	s.orders.endSessions(t)
	s.orders.link.heal(t)
	s.orders.start(t)
	s.order(t, "hangs")
	s.settle(t)
	s.checkOnce(t, 2)
}
