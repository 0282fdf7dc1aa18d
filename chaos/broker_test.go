package chaos

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/oncebox/oncebox/internal/stacktest"
)

// Invariant: while the broker is dead orders are taken, and all of them are charged once when it is back.
func TestNATSKilledUnderLoadChargesEachOrderOnce(t *testing.T) {
	t.Parallel()
	s := startSystem(t, nil, nil)
	const orders = 100
	release := s.billing.hold(t, "LOCK TABLE charge IN SHARE MODE")
	waitForClients := s.clients(t, "load", orders)
	stacktest.Eventually(t, patience, "billing has messages in its handlers and behind them", func() (bool, error) {
		c, err := s.consumer(t.Context(), toBilling)
		return err == nil && c.NumAckPending >= 20 && s.billing.blocked(t, "%INSERT INTO charge%") > 0, err
	})
	if err := s.nats.Kill(); err != nil {
		t.Fatal(err)
	}
	release()
	s.waitConnected(t, false)
	waitForClients() // without NATS
	if !s.orders.isReady(t) {
		t.Error("without NATS orders is not ready")
	}
	if err := s.nats.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.settle(t)
	s.checkOnce(t, orders)
}

// Invariant: a durable that is gone is made again and starts from the stream's first message; what was done before is stopped
// by the inbox.
func TestDurablesDeletedUnderLoadChargeEachOrderOnce(t *testing.T) {
	t.Parallel()
	s := startSystem(t, nil, nil)
	s.dropChargeGuards(t)
	const before, during = 40, 40
	s.clients(t, "before", before)()
	s.settle(t)
	noops := map[direction]*service{toBilling: s.billing, toOrders: s.orders}
	for _, svc := range noops {
		if n := svc.metric(t, "oncebox_inbox_noops_total"); n != 0 {
			t.Fatalf("%s had %v redeliveries already", svc.name, n)
		}
	}
	waitForClients := s.clients(t, "during", during)
	created := s.info(t, toBilling).Created
	for d := range noops {
		if err := s.js.DeleteConsumer(t.Context(), d.stream, d.durable); err != nil {
			t.Fatal(err)
		}
	}
	waitForClients()
	stacktest.Eventually(t, patience, "the durables are there again", func() (bool, error) {
		if _, err := s.consumer(t.Context(), toOrders); err != nil {
			return false, err
		}
		c, err := s.consumer(t.Context(), toBilling)
		return err == nil && c.Created.After(created), err
	})
	s.settle(t)
	for d, svc := range noops {
		if n := svc.metric(t, "oncebox_inbox_noops_total"); n < before {
			t.Errorf("%s stopped %v redeliveries, want the %d from before the durable of %s was deleted", svc.name, n, before, d.stream)
		}
	}
	s.checkOnce(t, before+during)
}

// Invariant: a broker that lost the end of its disk is filled again from the outbox, also with what the relay had published
// without remembering it before it was killed, and the inbox stops what was done.
func TestStreamThatLostItsEndIsFilledAgain(t *testing.T) {
	t.Parallel()
	s := startSystem(t, map[string]string{"LEASE": "5m"}, nil)
	s.order(t, "kept")
	s.settle(t)
	backup := t.TempDir()
	s.whileNATSIsDown(t, func(store string) error { return os.CopyFS(backup, os.DirFS(store)) })

	// Published, but not saved, when orders is killed.
	release := s.orders.hold(t, "SELECT FROM oncebox.outbox_cursor FOR UPDATE")
	s.order(t, "lost")
	stacktest.Eventually(t, patience, "the relay has published", func() (bool, error) {
		return s.published(t) == 2 && s.orders.blocked(t, "%UPDATE%outbox_cursor%SET n =%") == 1, nil
	})
	s.orders.kill(t)
	s.orders.endSessions(t)
	release()
	if _, err := s.orders.db.Exec(t.Context(), "UPDATE oncebox.outbox_cursor SET lease_until = clock_timestamp()"); err != nil {
		t.Fatal(err) // the five minutes have passed
	}
	s.orders.set(brisk)
	s.orders.start(t)
	stacktest.Eventually(t, patience, "the relay has found the message in the stream", func() (bool, error) {
		return s.orders.metric(t, "oncebox_relay_skipped_total") == 1, nil
	})
	s.settle(t)

	s.orders.terminate(t)()
	s.billing.terminate(t)()
	s.whileNATSIsDown(t, func(store string) error {
		if err := os.RemoveAll(store); err != nil {
			return err
		}
		return os.CopyFS(store, os.DirFS(backup))
	})
	if n := s.published(t); n != 1 {
		t.Fatalf("the stream ends at %d, want its end to be lost", n)
	}
	s.orders.start(t)
	s.billing.start(t)
	stacktest.Eventually(t, patience, "the stream is filled again", func() (bool, error) { return s.published(t) == 2, nil })
	s.settle(t)
	s.checkOnce(t, 2)
}

// whileNATSIsDown does something to JetStream's files, and returns when the running services are connected again.
func (s *system) whileNATSIsDown(t testing.TB, do func(store string) error) {
	t.Helper()
	if err := s.nats.Stop(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	s.waitConnected(t, false)
	if err := do(s.nats.StorePath()); err != nil {
		t.Fatal(err)
	}
	if err := s.nats.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.waitConnected(t, true)
}

// waitConnected waits until both services, as far as they run, have or have not a connection to NATS.
func (s *system) waitConnected(t testing.TB, want bool) {
	t.Helper()
	for _, svc := range []*service{s.orders, s.billing} {
		stacktest.Eventually(t, patience, fmt.Sprintf("%s is connected: %t", svc.name, want), func() (bool, error) {
			select {
			case <-svc.proc.Done():
				return true, nil
			default:
			}
			is, err := svc.connected(t.Context())
			return is == want, err
		})
	}
}
