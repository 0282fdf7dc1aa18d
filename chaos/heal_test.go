package chaos

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox/internal/stacktest"
)

// billingLosesTime has billing charge half of the orders, and then forget the other half: its database is put back to where it was
// between them. No guard of the charge table helps.
func (s *system) billingLosesTime(t testing.TB, half int) {
	t.Helper()
	s.dropChargeGuards(t)
	s.clients(t, "before", half)()
	s.settle(t)
	s.billing.terminate(t)()
	restore := s.billing.saved(t)
	s.billing.start(t)
	s.clients(t, "after", half)()
	s.settle(t)
	s.checkOnce(t, 2*half)
	s.billing.kill(t)
	restore()
	if n := one[int](t, s.billing.db, "SELECT count(*) FROM charge"); n != half {
		t.Fatalf("billing has %d charges after the restore, want %d", n, half)
	}
	s.billing.start(t)
}

// Invariant: a billing database that is restored to an earlier point has all charges again, each once, without anybody's doing; the
// answers are the same ones, so that orders takes no notice of them.
func TestARestoredBillingDatabaseHealsByItself(t *testing.T) {
	t.Parallel()
	const half = 60
	s, op := startOperated(t, map[string]string{"HEAL_EVERY": "1s"})
	s.billingLosesTime(t, half)
	stacktest.Eventually(t, patience, "all charges are there again", func() (bool, error) {
		return one[int](t, s.billing.db, "SELECT count(*) FROM charge") >= 2*half, nil
	})
	s.drained(t)
	for _, p := range s.brokenOrders(t, 2*half) {
		t.Error(p)
	}
	if n := s.orders.metric(t, "oncebox_heal_resent_total"); n < half {
		t.Errorf("%v events were sent again, want the %d that were lost", n, half)
	}
	if different, rows := op.verify(t, "--full"); len(different) > 0 || rows < 6*2*half {
		t.Errorf("verify compared %d rows and found %+v", rows, different)
	}
}

// Invariant: nothing but healing brings them back: with it off the judge sees every lost charge, and one word of the operator's
// heals.
func TestWithoutHealingARestoredBillingDatabaseStaysBroken(t *testing.T) {
	t.Parallel()
	const half = 60
	s, op := startOperated(t, map[string]string{"HEAL_EVERY": "0"})
	s.billingLosesTime(t, half)
	s.order(t, "one-more") // all the work goes on
	s.drained(t)
	if problems := s.brokenOrders(t, 2*half+1); len(problems) < half {
		t.Fatalf("the judge found only %d of the %d charges that are lost: %v", len(problems), half, problems)
	}
	different, _ := op.verify(t, "--full", "--settle=100ms")
	lost := different["charges"].OnlyLeft
	if len(lost) != half || len(different["events-orders-to-billing"].OnlyLeft) != half {
		t.Errorf("verify finds %d orders without a charge and %d events, want %d of each", len(lost), len(different["events-orders-to-billing"].OnlyLeft), half)
	}
	if status := op.run(t, nil, "heal", "--dry-run"); status != 1 {
		t.Errorf("a dry run ended with %d", status)
	}
	if n := s.orders.metric(t, "oncebox_heal_resent_total"); n != 0 {
		t.Errorf("a dry run sent %v events", n)
	}
	// Billing's answers to what it forgot are in nobody's outbox until it has made them again: that is told as well.
	if status := op.run(t, nil, "heal"); status != 1 {
		t.Errorf("heal ended with %d", status)
	}
	stacktest.Eventually(t, patience, "all charges are there again", func() (bool, error) {
		return one[int](t, s.billing.db, "SELECT count(*) FROM charge") >= 2*half+1, nil
	})
	s.drained(t)
	for _, p := range s.brokenOrders(t, 2*half+1) {
		t.Error(p)
	}
	if status := op.run(t, nil, "heal"); status != 0 {
		t.Errorf("with all healed, heal ended with %d", status)
	}
}

// Invariant: charges of orders that are lost with orders' database are named, each, and none is touched.
func TestARestoredOrdersDatabaseIsToldOfEachChargeWithoutAnOrder(t *testing.T) {
	t.Parallel()
	const kept, gone = 30, 25
	s, op := startOperated(t, map[string]string{"HEAL_EVERY": "1s"})
	s.clients(t, "kept", kept)()
	s.settle(t)
	s.orders.terminate(t)()
	restore := s.orders.saved(t)
	s.orders.start(t)
	s.clients(t, "gone", gone)()
	s.settle(t)
	const ids = "SELECT order_id::text FROM charge ORDER BY created_at"
	charged := all(t, s.billing.db, ids, pgx.RowTo[string])
	s.orders.kill(t)
	restore()
	s.orders.start(t)
	s.clients(t, "new", 10)()
	s.drained(t)
	orphans := slices.DeleteFunc(slices.Clone(charged), func(id string) bool {
		return one[bool](t, s.orders.db, "SELECT EXISTS (SELECT FROM orders WHERE id::text = $1)", id)
	})
	different, _ := op.verify(t, "--full", "--settle=100ms")
	found := different["charges"].OnlyRight
	slices.Sort(found)
	slices.Sort(orphans)
	if len(orphans) != gone || !slices.Equal(found, orphans) {
		t.Errorf("verify names %d charges without an order, want these %d: %v", len(found), gone, orphans)
	}
	if n := len(different["events-orders-to-billing"].OnlyRight); n != gone {
		t.Errorf("verify names %d events that no outbox has, want %d", n, gone)
	}
	stacktest.Eventually(t, patience, "the audit tells of them", func() (bool, error) {
		return s.orders.exports(t, "oncebox_heal_different") && s.orders.metric(t, "oncebox_heal_different", "kind", "unknown") == gone, nil
	})
	if n := one[int](t, s.billing.db, "SELECT count(*) FROM charge"); n != kept+gone+10 {
		t.Errorf("%d charges, want all %d: nothing is deleted", n, kept+gone+10)
	}
	if n := s.orders.metric(t, "oncebox_heal_resent_total"); n != 0 {
		t.Errorf("%v events were sent again", n)
	}
}

// Invariant: a broker that lost its disk, with events in flight and without having synced, is filled again by the relays alone:
// every order is charged once, without the charge table's guards. make soak has it happen ten times, each with 5,000 in flight.
func TestABrokerThatLostItsDiskWithEventsInFlightIsFilledAgain(t *testing.T) {
	t.Parallel()
	wipes, written := 1, 0
	if soaking() {
		wipes, written = 10, 6000
	}
	l := newLoss(t)
	for range wipes {
		l.strike(t, written, time.Minute, os.RemoveAll)
	}
	l.judge(t)
}

// Invariant: the same of a broker whose disk holds what it held half a minute ago, as after a loss of power where nothing was synced
// since: both streams, their durables and what was acknowledged go back. make soak has it happen ten times, each with half a minute's
// load; else it is some hundred orders'.
func TestABrokerThatIsRolledBackIsFilledAgain(t *testing.T) {
	t.Parallel()
	rollbacks, limit, load := 2, patience, time.Duration(0)
	if soaking() {
		rollbacks, limit, load = 10, 10*time.Second, 30*time.Second
	}
	l := newLoss(t)
	for range rollbacks {
		held := filepath.Join(t.TempDir(), "store")
		if err := l.nats.Pause(); err != nil {
			t.Fatal(err)
		}
		err := os.CopyFS(held, os.DirFS(l.nats.StorePath()))
		if err := errors.Join(err, l.nats.Continue()); err != nil {
			t.Fatal(err)
		}
		copied, end := time.Now(), l.published(t)
		l.load(t)
		l.settle(t)
		for time.Since(copied) < load {
			l.load(t)
		}
		l.strike(t, 0, limit, func(store string) error {
			if err := os.RemoveAll(store); err != nil {
				return err
			}
			return os.CopyFS(store, os.DirFS(held))
		})
		t.Logf("rolled back by %s, from %d at least to %d", time.Since(copied).Round(time.Second), l.reached, end)
		if l.reached < end+lossClients {
			t.Errorf("the stream ended at %d, and at %d when it was copied: too little was lost", l.reached, end)
		}
	}
	l.judge(t)
}

func soaking() bool { return os.Getenv("ONCEBOX_SOAK") != "" }

// A loss is a system whose broker loses what it held: one that syncs each two minutes, as is JetStream's default.
type loss struct {
	*system
	op      operator
	taken   int    // orders, so far
	reached uint64 // by the stream before it lost something, at least
}

// lossClients is how many orders come from clients at a time.
const lossClients = 400

func newLoss(t testing.TB) *loss {
	t.Helper()
	_, pg := shared.get(t)
	s := newSystemOn(t, pg, stacktest.NATS(t, asDeployed(t, tester), syncingLate(t)))
	l := &loss{system: s, op: s.operated(t, map[string]string{"HEAL_EVERY": "1s"}), taken: 1}
	l.dropChargeGuards(t)
	l.start(t)
	l.order(t, "the-first")
	l.settle(t)
	return l
}

func (l *loss) load(t testing.TB) {
	t.Helper()
	l.clients(t, fmt.Sprint("load-", l.taken), lossClients)()
	l.taken += lossClients
}

// strike kills the broker with events in flight, changes its store, and starts it again. Within the limit all orders have to be paid:
// those of clients, and so many that are written beside them.
func (l *loss) strike(t testing.TB, written int, limit time.Duration, change func(store string) error) {
	t.Helper()
	release := l.billing.hold(t, "LOCK TABLE charge IN SHARE MODE")
	l.ordersLikeTheFirst(t, written)
	wait := l.clients(t, fmt.Sprint("struck-", l.taken), lossClients)
	l.taken += written + lossClients
	var inFlight int
	stacktest.Eventually(t, 2*patience, "events are in flight", func() (bool, error) {
		c, err := l.consumer(t.Context(), toBilling)
		if err != nil {
			return false, err
		}
		inFlight = int(c.NumPending) + c.NumAckPending
		return c.NumAckPending >= 20 && inFlight >= written*5/6+lossClients/2, nil
	})
	l.reached = l.published(t)
	if err := l.nats.Kill(); err != nil {
		t.Fatal(err)
	}
	release()
	if err := change(l.nats.StorePath()); err != nil {
		t.Fatal(err)
	}
	wait() // orders are taken without a broker
	if err := l.nats.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	stacktest.Eventually(t, limit, "all orders are settled", func() (bool, error) {
		return one[int](t, l.orders.db, "SELECT count(*) FROM orders WHERE status = 'paid'") == l.taken, nil
	})
	t.Logf("struck with %d events in flight of %d orders, settled within %s", inFlight, l.taken, time.Since(back))
}

func (l *loss) judge(t testing.TB) {
	t.Helper()
	l.drained(t)
	for _, p := range l.brokenOrders(t, l.taken) {
		t.Error(p)
	}
	if different, _ := l.op.verify(t, "--full"); len(different) > 0 {
		t.Errorf("verify found %+v", different)
	}
}

// Invariant: verify finds one charge that is deleted by hand, one inbox row, one changed amount, wherever it is, by --full; without
// it a comparison reads what is new.
func TestVerifyFindsWhatIsChangedByHand(t *testing.T) {
	t.Parallel()
	const orders = 40
	s, op := startOperated(t, map[string]string{"HEAL_EVERY": "0"})
	s.clients(t, "load", orders)()
	s.settle(t)
	if different, _ := op.verify(t); len(different) > 0 {
		t.Fatalf("before anything is changed: %+v", different)
	}
	ids := all(t, s.billing.db, "SELECT order_id::text FROM charge ORDER BY order_id", pgx.RowTo[string])
	by := func(db *service, sql string, args ...any) {
		t.Helper()
		// As a superuser would, past the ledger's triggers.
		tx, err := db.db.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err = tx.Exec(t.Context(), "SET LOCAL session_replication_role = replica"); err == nil {
			_, err = tx.Exec(t.Context(), sql, args...)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		what, id string // of the order
		do, undo func(id string)
		book     string
		side     func(book) []string
	}{
		{"a charge is deleted", ids[1], func(id string) {
			by(s.billing, "CREATE TABLE kept AS SELECT * FROM charge WHERE order_id::text = '"+id+"'")
			by(s.billing, "DELETE FROM charge WHERE order_id::text = $1", id)
		}, func(string) { by(s.billing, "INSERT INTO charge SELECT * FROM kept") }, "charges", func(b book) []string { return b.OnlyLeft }},
		{"a charge's amount is changed", ids[2], func(id string) { by(s.billing, "UPDATE charge SET amount = amount + 1 WHERE order_id::text = $1", id) },
			func(id string) { by(s.billing, "UPDATE charge SET amount = amount - 1 WHERE order_id::text = $1", id) }, "charges", func(b book) []string { return b.Unequal }},
		{"an order's amount is changed", ids[3], func(id string) { by(s.orders, "UPDATE orders SET amount = amount + 1 WHERE id::text = $1", id) },
			func(id string) { by(s.orders, "UPDATE orders SET amount = amount - 1 WHERE id::text = $1", id) }, "requests", func(b book) []string { return b.Unequal }},
		{"an order's status is changed", ids[4], func(id string) { by(s.orders, "UPDATE orders SET status = 'refunded' WHERE id::text = $1", id) },
			func(id string) { by(s.orders, "UPDATE orders SET status = 'paid' WHERE id::text = $1", id) }, "held", func(b book) []string { return b.Unequal }},
		{"a ledger row is changed", ids[5], func(id string) {
			by(s.billing, "UPDATE ledger SET amount = amount + 1 WHERE account = 'revenue' AND charge_id = (SELECT id FROM charge WHERE order_id::text = $1)", id)
		}, func(id string) {
			by(s.billing, "UPDATE ledger SET amount = amount - 1 WHERE account = 'revenue' AND charge_id = (SELECT id FROM charge WHERE order_id::text = $1)", id)
		}, "ledger", func(b book) []string { return b.Unequal }},
		{"a payload is changed", ids[6], func(id string) {
			by(s.orders, "UPDATE oncebox.outbox SET payload = convert_to(replace(convert_from(payload, 'UTF8'), 'tea', 'tee'), 'UTF8') WHERE key = $1", id)
		}, func(id string) {
			by(s.orders, "UPDATE oncebox.outbox SET payload = convert_to(replace(convert_from(payload, 'UTF8'), 'tee', 'tea'), 'UTF8') WHERE key = $1", id)
		}, "events-orders-to-billing", func(b book) []string { return b.Unequal }},
		{"an inbox row is deleted", ids[7], func(id string) {
			by(s.billing, "DELETE FROM oncebox.inbox WHERE id::text = $1", one[string](t, s.orders.db, "SELECT id::text FROM oncebox.outbox WHERE key = $1", id))
		}, func(string) {}, "events-orders-to-billing", func(b book) []string { return b.OnlyLeft }},
	} {
		c.do(c.id)
		different, _ := op.verify(t, "--full", "--settle=50ms")
		named := c.side(different[c.book])
		want := c.id
		switch c.book {
		case "ledger":
			want = one[string](t, s.billing.db, "SELECT id::text FROM charge WHERE order_id::text = $1", c.id)
		case "events-orders-to-billing":
			want = one[string](t, s.orders.db, "SELECT id::text FROM oncebox.outbox WHERE key = $1", c.id)
		}
		if !slices.Equal(named, []string{want}) {
			t.Errorf("%s: the book %s names %v, want %s; all: %+v", c.what, c.book, named, want, different)
		}
		c.undo(c.id)
	}
}

// Invariant: one order's way is told by its id, its event's id and its idempotency key alike.
func TestAnOrdersWayIsTraced(t *testing.T) {
	t.Parallel()
	s, op := startOperated(t, nil)
	s.order(t, "the-key")
	s.settle(t)
	s.order(t, "another")
	s.settle(t)
	order := one[string](t, s.orders.db, "SELECT id::text FROM orders ORDER BY created_at LIMIT 1")
	event := one[string](t, s.orders.db, "SELECT id::text FROM oncebox.outbox WHERE key = $1", order)
	for _, name := range []string{order, event, "the-key"} {
		var way []struct{ Service, Where, What string }
		if status := op.run(t, &way, "trace", name); status != 0 {
			t.Fatalf("trace %s ended with %d", name, status)
		}
		var steps []string
		for _, w := range way {
			steps = append(steps, w.Service+" "+w.Where+" "+w.What)
		}
		slices.Sort(steps)
		want := []string{"billing charge succeeded", "billing inbox billing: done", "billing ledger charge", "billing ledger charge",
			"billing outbox billing.charge.succeeded.v1", "orders inbox orders: done", "orders orders paid", "orders outbox orders.charge.requested.v1"}
		if !slices.Equal(steps, want) {
			t.Errorf("trace %s tells\n%v, want\n%v", name, steps, want)
		}
	}
	if status := op.run(t, nil, "trace", "nobody"); status != 2 {
		t.Errorf("a trace of nothing ended with %d", status)
	}
	if a := s.orders.operate(t, http.MethodPost, "/heal", ""); a.status != http.StatusUnauthorized {
		t.Errorf("healing without the token: %d", a.status)
	}
}
