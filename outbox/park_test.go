package outbox_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/outbox"
)

// insert puts an event into the outbox as no Writer would.
func (r *rig) insert(e oncebox.Event) {
	r.t.Helper()
	_, err := r.pool.Exec(context.Background(), `INSERT INTO oncebox.outbox (id, source, topic, key, version, tenant_id, headers, payload)
		VALUES ($1, 'test', $2, $3, $4, '', '{}', $5)`, e.ID, e.Type, e.Key, e.Version, e.Data)
	must(r.t, err)
}

func elsewhere(key string, version int64) oncebox.Event {
	e := event(key, version)
	e.Type = "elsewhere.happened.v1"
	return e
}

// parked waits until n events are parked.
func (r *rig) parked(relay *running, n int) []outbox.ParkedEvent {
	r.t.Helper()
	var list []outbox.ParkedEvent
	stacktest.Eventually(r.t, 10*time.Second, fmt.Sprintf("%d events are parked", n), func() (ok bool, err error) {
		if list, err = relay.Parked().List(context.Background(), 100); err != nil {
			return false, err
		}
		if len(list) != n {
			return false, fmt.Errorf("%d are", len(list))
		}
		return true, nil
	})
	return list
}

func TestOneRowThatIsTooLargeIsParkedAndTheOthersAreSent(t *testing.T) {
	t.Parallel()
	for name, sync := range map[string]broker.Sync{"singles": broker.SyncInterval, "batches": broker.SyncAlways} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			var want []oncebox.Event
			for i := range int64(1000) {
				want = append(want, event("k", i+1))
			}
			large := event("k", 501)
			large.Data = make([]byte, 1<<20+1)
			r.commit(want[:500]...)
			r.insert(large)
			r.commit(want[500:]...)
			relay := r.relayOn(broker.SinkConfig{Sync: sync, Timeout: 5 * time.Second}, func(c *outbox.RelayConfig) { c.Lease = 5 * time.Second })
			r.eventuallyLogged(want...)
			list := r.parked(relay, 1)
			if list[0].ID != large.ID || list[0].Bytes != 1<<20+1 || !strings.Contains(list[0].Reason, "bytes") {
				t.Errorf("parked is %+v", list[0])
			}
			if refusals := relay.metric(t, "refusals_total"); refusals != 0 {
				t.Errorf("%v chains were refused", refusals)
			}
			if got := relay.metric(t, "parked"); got != 1 {
				t.Errorf("the gauge shows %v parked", got)
			}
		})
	}
}

func TestRowsThatAreNoEventsAreParked(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a, b := event("k", 1), event("k", 2)
	r.commit(a)
	wild := event("k", 8)
	wild.Type = "test.*"
	r.insert(wild)
	r.insert(elsewhere("k", 9))
	_, err := r.pool.Exec(context.Background(), `INSERT INTO oncebox.outbox (id, source, topic, key, version, tenant_id, headers, payload)
		VALUES (gen_random_uuid(), 'test', 'test.x', 'k', 1, '', '{"n": 1}', ''), (gen_random_uuid(), 'test', 'test.x', 'k', 1, '', '{"Nats-Rollup": "all"}', '')`)
	must(t, err)
	r.commit(b)
	relay := r.relay()
	r.eventuallyLogged(a, b)
	r.parked(relay, 4)
}

// A relay that took over and found no park row could send the parked event behind those that followed it.
func TestNothingIsSentBehindARowBeforeItIsParked(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	relay := r.relay(func(c *outbox.RelayConfig) { c.Lease = time.Minute })
	a, b := event("k", 1), event("k", 3)
	r.commit(a)
	r.eventuallyLogged(a)
	lock := r.begin()
	_, err := lock.Exec(context.Background(), "LOCK TABLE oncebox.outbox_parked IN SHARE MODE")
	must(t, err)
	r.insert(elsewhere("k", 2))
	r.commit(b)
	stacktest.Eventually(t, 10*time.Second, "the relay waits to park", func() (waits bool, err error) {
		err = r.pool.QueryRow(context.Background(), `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'oncebox.outbox_parked'::regclass AND NOT granted)`).Scan(&waits)
		return waits, err
	})
	if n := r.logged(); n != 1 {
		t.Errorf("%d events were sent before the one between them was parked", n-1)
	}
	must(t, lock.Rollback(context.Background()))
	r.eventuallyLogged(a, b)
	r.parked(relay, 1)
}

// cover lets the stream hold the events that are elsewhere, as an operator would who saw them parked.
func (r *rig) cover() {
	r.t.Helper()
	r.declared.Subjects = append(r.declared.Subjects, "elsewhere.>")
	_, err := r.js.UpdateStream(context.Background(), r.declared)
	must(r.t, err)
}

func TestAHeldKeyWaitsBehindItsParkedEventAndFollowsIt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	hold := func(c *outbox.RelayConfig) { c.Parked = outbox.HoldKey }
	relay := r.relay(hold)
	first, second, third, other := event("k", 1), elsewhere("k", 2), event("k", 3), event("other", 1)
	r.commit(first)
	r.insert(second)
	r.commit(third, other)
	r.eventuallyLogged(first, other)
	list := r.parked(relay, 2)
	if list[0].Waits || !list[1].Waits {
		t.Errorf("parked are %+v", list)
	}
	relay.stop()
	r.cover()
	relay = r.relay(hold) // it knows from the table that the key waits
	fourth := event("k", 4)
	r.commit(fourth)
	r.parked(relay, 3)
	n, err := relay.Parked().Retry(context.Background(), list[0].Seq)
	if n != 1 || err != nil {
		t.Fatalf("Retry: %d, %v", n, err)
	}
	r.eventuallyLogged(first, other, second, third, fourth)
	r.parked(relay, 0)
	fifth := event("k", 5)
	r.commit(fifth)
	r.eventuallyLogged(first, other, second, third, fourth, fifth)
}

func TestADroppedEventLetsItsKeyGoOn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	relay := r.relay(func(c *outbox.RelayConfig) { c.Parked = outbox.HoldKey })
	second := event("k", 2)
	r.insert(elsewhere("k", 1))
	r.commit(second)
	list := r.parked(relay, 2)
	if _, err := relay.Parked().Retry(context.Background(), list[0].Seq); err != nil { // in vain
		t.Fatal(err)
	}
	stacktest.Eventually(t, 5*time.Second, "it was tried and stays", func() (bool, error) {
		l, err := relay.Parked().List(context.Background(), 10)
		return len(l) == 2 && !l[0].Asked, err
	})
	_, err := relay.Parked().Drop(context.Background(), list[0].Seq)
	must(t, err)
	r.eventuallyLogged(second)
	r.parked(relay, 0)
}

// What was retried has no place in a round: a relay that goes back finds it by its park row.
func TestAParkedEventThatWasRetriedIsSentAgainWhenTheStreamIsLost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	relay := r.relay()
	a, p, b := event("a", 1), elsewhere("p", 1), event("b", 1)
	r.commit(a)
	r.insert(p)
	list := r.parked(relay, 1)
	relay.stop()
	r.cover()
	relay = r.relay()
	_, err := relay.Parked().Retry(context.Background(), list[0].Seq)
	must(t, err)
	r.eventuallyLogged(a, p)
	must(t, r.js.DeleteStream(context.Background(), stream))
	r.commit(b)
	stacktest.Eventually(t, 10*time.Second, "all three are in the new stream", func() (bool, error) { return reached(r.logged(), 3) })
	got := ids(r.log())
	for _, e := range []oncebox.Event{a, p, b} {
		if !slices.Contains(got, e.ID) {
			t.Errorf("%s is not in the stream", e.ID)
		}
	}
}
