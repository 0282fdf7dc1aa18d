package chaos

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// Invariant: what billing committed but never acknowledged comes again and changes nothing, by the inbox alone.
func TestBillingKilledBetweenCommitAndAckChargesOnce(t *testing.T) {
	t.Parallel()
	// In its first life nothing may come again before the kill.
	t.Run("crash-after-effect-commit-before-ack", func(t *testing.T) {
		eachGuarding(t, nil, map[string]string{"ACK_WAIT": "1m"}, func(t *testing.T, s *system) {
			release := s.billing.hold(t, "LOCK TABLE charge IN SHARE MODE")
			s.order(t, "key")
			stacktest.Eventually(t, patience, "billing is in the middle of the charge", func() (bool, error) {
				return s.billing.blocked(t, "%INSERT INTO charge%") == 1, nil
			})
			s.billing.link.swallow(t) // the message has come, the acknowledgement will not go
			release()
			stacktest.Eventually(t, patience, "the charge is committed", func() (bool, error) {
				return one[bool](t, s.billing.db, "SELECT EXISTS (SELECT FROM charge) AND EXISTS (SELECT FROM oncebox.inbox)"), nil
			})
			s.billing.kill(t)
			if c := s.info(t, toBilling); c.Delivered.Consumer != 1 || c.NumAckPending != 1 || c.AckFloor.Consumer != 0 {
				t.Fatalf("killed at the wrong moment: %d deliveries, %d of them unacknowledged, acknowledged up to %d",
					c.Delivered.Consumer, c.NumAckPending, c.AckFloor.Consumer)
			}

			s.billing.link.heal(t)
			s.billing.set(brisk)
			s.billing.start(t)
			stacktest.Eventually(t, patience, "the message came again and is acknowledged", func() (bool, error) {
				c := s.info(t, toBilling)
				return c.Delivered.Consumer >= 2 && c.NumAckPending == 0, nil
			})
			s.settle(t)
			if n := s.info(t, toBilling).Delivered.Consumer; n != 2 {
				t.Errorf("delivered %d times, want 2", n)
			}
			if n := s.billing.metric(t, "oncebox_inbox_noops_total"); n != 1 {
				t.Errorf("the inbox stopped %v redeliveries, want 1", n)
			}
			s.checkOnce(t, 1)
		})
	})
}

// Invariant: a message whose effect was not committed is not acknowledged, so that it comes again.
func TestBillingKilledBetweenDeliveryAndCommitChargesOnce(t *testing.T) {
	t.Parallel()
	eachGuarding(t, nil, map[string]string{"ACK_WAIT": "1m"}, func(t *testing.T, s *system) {
		release := s.billing.hold(t, "LOCK TABLE charge IN SHARE MODE")
		s.order(t, "key")
		stacktest.Eventually(t, patience, "billing is in the middle of the charge", func() (bool, error) {
			return s.billing.blocked(t, "%INSERT INTO charge%") == 1, nil
		})
		s.billing.kill(t)
		if c := s.info(t, toBilling); c.Delivered.Consumer != 1 || c.NumAckPending != 1 {
			t.Errorf("killed at the wrong moment: %d deliveries, %d of them unacknowledged", c.Delivered.Consumer, c.NumAckPending)
		}
		if one[bool](t, s.billing.db, "SELECT EXISTS (SELECT FROM oncebox.inbox)") {
			t.Error("killed at the wrong moment: the inbox row is committed")
		}

		// The dead process's session still holds the uncommitted inbox row: the redelivery has to wait for its end.
		release()
		s.billing.set(brisk)
		s.billing.start(t)
		s.settle(t)
		if n := s.billing.metric(t, "oncebox_inbox_handled_total"); n != 1 {
			t.Errorf("%v messages handled after the kill, want 1", n)
		}
		s.checkOnce(t, 1)
	})
}

// Invariant: what the relay published but did not remember is not published again. The broker's duplicate window could hide
// that for its two minutes; so the relay itself has to have found the message in the stream.
func TestOrdersKilledBetweenPublishAndCursorSaveChargesOnce(t *testing.T) {
	t.Parallel()
	// In its first life no renewal of the lease may fall into the time of the lock: it would wait instead of the save.
	t.Run("relay-killed-after-publish-before-mark-restart-2-min", func(t *testing.T) {
		eachGuarding(t, map[string]string{"LEASE": "5m"}, nil, func(t *testing.T, s *system) {
			stacktest.Eventually(t, patience, "the relay leads and is idle", func() (bool, error) {
				return one[bool](t, s.orders.db, "SELECT stream_created IS NOT NULL FROM oncebox.outbox_cursor"), nil
			})
			const cursor = "SELECT (n, seq, stream_seq, saved_at)::text FROM oncebox.outbox_cursor"
			before := one[string](t, s.orders.db, cursor)
			round := one[int64](t, s.orders.db, "SELECT n FROM oncebox.outbox_cursor")
			release := s.orders.hold(t, "SELECT FROM oncebox.outbox_cursor FOR UPDATE")
			s.order(t, "key")
			stacktest.Eventually(t, patience, "the relay has published and waits to save its cursor", func() (bool, error) {
				return s.published(t) == 1 && s.orders.blocked(t, "%UPDATE%outbox_cursor%SET n =%") == 1, nil
			})
			s.orders.kill(t)
			s.orders.endSessions(t)
			release()
			if after := one[string](t, s.orders.db, cursor); after != before {
				t.Fatalf("killed at the wrong moment: the cursor was saved, %s then %s", before, after)
			}
			if is, want := s.published(t), outboxRows(t, s.orders); is != 1 || want != 1 {
				t.Fatalf("killed at the wrong moment: %d messages for %d outbox rows", is, want)
			}
			stream, err := s.js.Stream(t.Context(), events.OrdersStream)
			if err != nil {
				t.Fatal(err)
			}
			m, err := stream.GetMsg(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			id := one[string](t, s.orders.db, "SELECT id::text FROM oncebox.outbox")
			if ce, nats := m.Header.Get(oncebox.HeaderID), m.Header.Get(jetstream.MsgIDHeader); ce != id || nats != id {
				t.Errorf("the message's ids are %q and %q, want the outbox row's %q", ce, nats, id)
			}

			if _, err := s.orders.db.Exec(t.Context(), "UPDATE oncebox.outbox_cursor SET lease_until = clock_timestamp()"); err != nil {
				t.Fatal(err) // the five minutes have passed
			}
			s.orders.set(brisk)
			s.orders.start(t)
			stacktest.Eventually(t, patience, "the relay is past the message", func() (bool, error) {
				return one[int64](t, s.orders.db, "SELECT n FROM oncebox.outbox_cursor") > round, nil
			})
			s.settle(t)
			if n := s.orders.metric(t, "oncebox_relay_skipped_total"); n != 1 {
				t.Errorf("the relay skipped %v messages that it found in the stream, want 1", n)
			}
			if n := s.published(t); n != 1 {
				t.Errorf("the stream ends at %d, want 1", n)
			}
			s.checkOnce(t, 1)
		})
	})
}

// Invariant: what was committed is published, also by another process, and an order is taken while NATS is away.
func TestOrdersKilledBetweenCommitAndPublishChargesOnce(t *testing.T) {
	t.Parallel()
	eachGuarding(t, nil, nil, func(t *testing.T, s *system) {
		s.orders.link.cut()
		stacktest.Eventually(t, patience, "orders has lost NATS", func() (bool, error) {
			connected, err := s.orders.connected(t.Context())
			return err == nil && !connected, err
		})
		s.order(t, "key")
		stacktest.Eventually(t, patience, "the relay has begun the round and cannot publish it", func() (bool, error) {
			return s.orders.metric(t, "oncebox_relay_failures_total") > 0, nil
		})
		if !s.orders.isReady(t) {
			t.Error("without NATS orders is not ready")
		}
		s.orders.kill(t)
		if rows, messages := outboxRows(t, s.orders), s.published(t); rows != 1 || messages != 0 {
			t.Fatalf("killed at the wrong moment: %d outbox rows, %d messages published", rows, messages)
		}

		s.orders.link.mend(t)
		s.orders.start(t)
		s.settle(t)
		s.checkOnce(t, 1)
	})
}
