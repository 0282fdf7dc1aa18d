package chaos

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/oncebox/oncebox/internal/stacktest"
)

// Invariant: whenever the two are killed, and however often a client asks again, each order that is taken is charged once.
// UNIQUE (order_id) is gone; where charge's other guard, its id, had to help, a dead letter shows it.
func TestKillsUnderLoadChargeEachOrderOnce(t *testing.T) {
	t.Parallel()
	const waveOrders, billingKills, ordersKills = 40, 3, 2
	random := seeded(t)
	s := startSystem(t, nil, nil)
	if _, err := s.billing.db.Exec(t.Context(), "ALTER TABLE charge DROP CONSTRAINT charge_order_id"); err != nil {
		t.Fatal(err)
	}
	s.orders.link.slow(t, 5*time.Millisecond) // its relay is to be behind its clients
	victims := slices.Concat(slices.Repeat([]*service{s.billing}, billingKills), slices.Repeat([]*service{s.orders}, ordersKills))
	random.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })

	for wave, victim := range victims {
		before := 1 + random.IntN(waveOrders/2)
		s.clients(t, fmt.Sprint("before-kill-", wave), before)()
		var wait func()
		load := func() { wait = s.clients(t, fmt.Sprint("kill-", wave), waveOrders-before) }
		if victim == s.billing {
			s.killBillingWithMessagesInHand(t, load)
		} else {
			s.killOrdersWithUnpublishedRows(t, load)
		}
		victim.start(t)
		wait()
	}
	s.settle(t)
	s.checkOnce(t, len(victims)*waveOrders)
	c := s.info(t, toBilling)
	if again := c.Delivered.Consumer - c.Delivered.Stream; again < billingKills {
		t.Errorf("%d messages came again after %d kills: the kills hit nothing", again, billingKills)
	}
}

// seeded is the test's own source of random numbers.
func seeded(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if given := os.Getenv("CHAOS_SEED"); given != "" {
		var err error
		if seed, err = strconv.ParseUint(given, 10, 64); err != nil {
			t.Fatalf("CHAOS_SEED: %v", err)
		}
	}
	fmt.Printf("%s: CHAOS_SEED=%d\n", t.Name(), seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// killBillingWithMessagesInHand kills billing during load, at a moment when it stands still and has messages unacknowledged.
func (s *system) killBillingWithMessagesInHand(t testing.TB, load func()) {
	t.Helper()
	load()
	const enough = 30 // looks, 5 ms apart: an acknowledgement that was on its way has arrived by then, on a busy machine too
	looks := 0
	stacktest.Eventually(t, patience, "billing has messages in hand", func() (bool, error) {
		if looks == 0 {
			if err := s.billing.proc.Pause(); err != nil {
				return false, err
			}
		}
		looks++
		if s.info(t, toBilling).NumAckPending > 0 {
			return looks == enough, nil
		}
		looks = 0
		return false, s.billing.proc.Continue()
	})
	s.billing.kill(t)
}

// killOrdersWithUnpublishedRows kills orders during load, at a moment when it stands still and has something to publish.
func (s *system) killOrdersWithUnpublishedRows(t testing.TB, load func()) {
	t.Helper()
	load()
	stacktest.Eventually(t, patience, "orders has rows to publish", func() (bool, error) {
		if err := s.orders.proc.Pause(); err != nil {
			return false, err
		}
		// The relay sends them one at a time: of two, one is not even on its way.
		if outboxRows(t, s.orders) >= s.published(t)+2 {
			return true, nil
		}
		return false, s.orders.proc.Continue()
	})
	s.orders.kill(t)
}
