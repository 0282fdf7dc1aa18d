package chaos

import (
	"slices"
	"testing"

	"github.com/oncebox/oncebox/internal/stacktest"
)

// The services that come to a point, upstream first.
func onBoth(s *system) []*service    { return []*service{s.orders, s.billing} }
func onInboxes(s *system) []*service { return []*service{s.billing, s.orders} }
func onOrders(s *system) []*service  { return []*service{s.orders} }
func onBilling(s *system) []*service { return []*service{s.billing} }

// Orders publishes its events one by one, billing in batches.
var relayCrashes = []crash{
	{operation: "relay-acquire", on: onBoth, by: byStart},
	{operation: "relay-tick", on: onBoth, by: byLoad(6)},
	{operation: "broker-publish", on: onBoth, n: 3, by: byLoad(12)},
	{operation: "broker-acked", on: onBoth, by: byLoad(6)},
	{operation: "relay-save", on: onBoth, by: byLoad(6)},
	{operation: "relay-save", on: onBoth, n: 2, by: byIdling},
	{operation: "relay-park", on: onBoth, by: byParking},
	{operation: "relay-unpark", on: onBoth, by: byDropping},
	{operation: "relay-unpark", on: onBoth, by: byRetrying},
	{operation: "relay-due", on: onBoth, by: byDelay},
	{operation: "relay-release", on: onBoth, stops: true, by: byStop},
}

// Invariant: whatever the relays of both services were about to do, or had done without hearing of it, when they died or failed, each
// event stands in its stream once, and each order is charged once, without the charge table's guards.
func TestRelaysThatCrashAtAnyPointPublishEachEventOnce(t *testing.T) {
	t.Parallel()
	c := newCrashed(t)
	c.billing.process["NATS_SYNC"] = "always"
	c.start(t)
	c.run(t, relayCrashes, c.judgeOnce)
}

// What comes for the first time is handled in a group, by one statement; what comes again, by itself.
var inboxCrashes = []crash{
	{operation: "inbox-begin", only: "after", on: onInboxes, by: byLoad(6)},
	{operation: "inbox-commit", on: onInboxes, by: byLoad(6)},
	{operation: "broker-ack", on: onInboxes, by: byLoad(6)},
	{operation: "inbox-start", on: onBilling, by: byRedelivery},
	{operation: "broker-nak", on: onBilling, by: byLocked("LOCK TABLE charge IN SHARE MODE")},
}

// Invariant: the same of the inboxes of both: each message has its effect once.
func TestInboxesThatCrashAtAnyPointHandleEachMessageOnce(t *testing.T) {
	t.Parallel()
	c := newCrashed(t)
	c.start(t)
	c.run(t, inboxCrashes, c.judgeOnce)
}

// The first commit is that of the intent, the second that of the answer.
var paymentCrashes = []crash{
	{operation: "inbox-begin", only: "after", on: onBilling, n: 2, by: byLoad(1)},
	{operation: "inbox-commit", on: onBilling, n: 1, by: byLoad(1)},
	{operation: "inbox-call", on: onBilling, by: byLoad(1)},
	{operation: "inbox-commit", on: onBilling, n: 2, by: byLoad(1)},
}

// Invariant: the same with a payment provider: it is paid once.
func TestPaymentsThatCrashAtAnyPointAreMadeOnce(t *testing.T) {
	t.Parallel()
	c := newCrashed(t)
	p := startProvider(t)
	c.billing.set(map[string]string{"PSP_URL": "http://" + p.addr, "PSP_TIMEOUT": "1s"})
	c.start(t)
	c.run(t, paymentCrashes, func(t testing.TB) {
		c.judgeOnce(t)
		if last, err := p.state(t.Context()); err != nil || last.Charges != c.orderCount {
			t.Errorf("the provider made %d charges for %d orders, %v", last.Charges, c.orderCount, err)
		}
	})
}

var keyCrashes = []crash{
	{operation: "idempotency-begin", only: "after", on: onOrders, n: 3, by: byLoad(6)},
	{operation: "idempotency-commit", on: onOrders, n: 3, by: byLoad(6)},
}

// Invariant: a request whose process dies, or that does not hear of its commit, makes one order, and its retries are answered by it.
func TestRequestsThatCrashAtAnyPointMakeOneOrder(t *testing.T) {
	t.Parallel()
	c := newCrashed(t)
	c.start(t)
	c.run(t, keyCrashes, c.judgeOnce)
}

var (
	ordersCrashes = []crash{
		{operation: "orders-commit", on: onOrders, n: 3, by: byLoad(6)},
		{operation: "redis-reserve", on: onOrders, n: 3, by: byLoad(6)},
		{operation: "redis-complete", on: onOrders, n: 3, by: byLoad(6)},
		// A handler that waits for longer than a third of its lease, and then for longer than it may.
		{operation: "redis-extend", on: onOrders, by: byLocked("LOCK TABLE orders IN SHARE MODE")},
		{operation: "redis-release", on: onOrders, by: byLocked("LOCK TABLE orders IN SHARE MODE")},
	}
	billingCrashes = []crash{{operation: "billing-commit", on: onBilling, n: 3, by: byDirectCharges}}
)

// Invariant: the same with the keys in Redis, where no transaction holds both: the effect's own key is what is left.
func TestRequestsWithTheirKeysInRedisThatCrashAtAnyPointHaveOneEffect(t *testing.T) {
	t.Parallel()
	c := newCrashed(t)
	server := stacktest.Redis(t)
	c.orders.set(map[string]string{"LOCK_TIMEOUT": "1s"})
	for _, svc := range onBoth(c.system) {
		svc.process["IDEMPOTENCY_STORE"], svc.process["REDIS_URL"], svc.process["IDEMPOTENCY_LEASE"] = "redis", server.URL(), "750ms"
	}
	c.start(t)
	c.run(t, ordersCrashes, c.judgeOnce)
	c.run(t, billingCrashes, c.judgeDirect)
}

var (
	markCrashes   = []crash{{operation: "heal-mark", on: onOrders, by: byClosing}}
	replayCrashes = []crash{{operation: "relay-replay", on: onOrders, by: byLoss}}
)

// Invariant: a comparison that dies half way is made again, and what it sent again has its effect once.
func TestHealingThatCrashesAtAnyPointHealsOnce(t *testing.T) {
	t.Parallel()
	c := newCrashed(t)
	c.orders.set(map[string]string{"HEAL_EVERY": "200ms"})
	c.start(t)
	c.run(t, markCrashes, c.judgeOnce)
	c.run(t, replayCrashes, func(t testing.TB) {
		for _, p := range c.brokenOrders(t, c.orderCount) {
			t.Error(p)
		}
	})
}

var retainCrashes = []crash{{operation: "relay-retain", on: onBoth, by: byAge}}

// Invariant: a slot of the outbox that is emptied takes no event with it that was not sent.
func TestRetentionThatCrashesAtAnyPointLosesNothing(t *testing.T) {
	t.Parallel()
	c := newCrashed(t)
	for _, svc := range onBoth(c.system) {
		svc.set(map[string]string{"RETAIN_EVERY": "200ms"})
	}
	c.start(t)
	c.run(t, retainCrashes, func(t testing.TB) {
		c.settle(t)
		for _, p := range c.brokenOrders(t, c.orderCount) {
			t.Error(p)
		}
	})
}

var pruneCrashes = []crash{{operation: "inbox-prune", on: onBoth, by: byForgetting}}

// Invariant: what an inbox forgets is what is over.
func TestPruningThatCrashesAtAnyPointForgetsWhatIsOver(t *testing.T) {
	t.Parallel()
	c := newCrashed(t)
	for _, svc := range onBoth(c.system) {
		svc.set(map[string]string{"TEND_EVERY": "200ms"})
	}
	c.start(t)
	c.run(t, pruneCrashes, c.judgeOnce)
}

var restoreCrashes = []crash{
	{operation: "relay-rewrite", on: onBoth, by: byRestore},
	{operation: "relay-adopt", on: onBoth, by: byRestore},
}

// Invariant: after a restore into another cluster each event stands in its stream once, however often the relays die over it.
func TestARestoreThatCrashesAtAnyPointSendsNothingTwice(t *testing.T) {
	t.Parallel()
	c := newCrashed(t)
	for _, svc := range onBoth(c.system) { // the rows are rewritten by their owner
		svc.set(map[string]string{"AFTER_RESTORE": "resend", "RELAY_DATABASE_URL": svc.owner})
	}
	c.start(t)
	c.run(t, restoreCrashes, c.judgeOnce)
}

func allCrashes() []crash {
	return slices.Concat(pruneCrashes, restoreCrashes, relayCrashes, inboxCrashes, paymentCrashes, keyCrashes, ordersCrashes, billingCrashes, markCrashes, replayCrashes, retainCrashes)
}
