package chaos

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// settle waits until nothing is on its way any more: each order has its end, all outbox rows are published, and no message is
// waiting or unacknowledged.
func (s *system) settle(t testing.TB) {
	t.Helper()
	s.settleWithin(t, patience)
}

func (s *system) settleWithin(t testing.TB, limit time.Duration) {
	t.Helper()
	stacktest.Eventually(t, limit, "all orders are settled", func() (bool, error) {
		if one[bool](t, s.orders.db, "SELECT EXISTS (SELECT FROM orders WHERE status = 'pending')") {
			return false, nil
		}
		for d, producer := range map[direction]*service{toBilling: s.orders, toOrders: s.billing} {
			// Two rows of one id, which should not be, are one message.
			if s.lastSeq(t, d.stream) < one[uint64](t, producer.db, "SELECT count(DISTINCT id) FROM oncebox.outbox") {
				return false, nil
			}
			if c, err := s.consumer(t.Context(), d); err != nil || c.NumPending > 0 || c.NumAckPending > 0 {
				return false, err
			}
		}
		return true, nil
	})
}

func outboxRows(t testing.TB, s *service) uint64 {
	t.Helper()
	return one[uint64](t, s.db, "SELECT count(*) FROM oncebox.outbox")
}

// checkOnce holds a settled system to the promise. By the databases and the streams themselves:
//   - there are as many orders as wanted, each paid, by a charge of its amount, the only one that billing has for it;
//   - billing has no other charge;
//   - the ledger has two rows for each charge, of its amount, which sum to zero, and no others;
//   - each row of an outbox stands in its stream once, and nothing else does;
//   - neither service has a dead letter: the last guard, UNIQUE (order_id), never fired.
func (s *system) checkOnce(t testing.TB, wantOrders int) {
	t.Helper()
	problems := s.brokenOrders(t, wantOrders)
	problems = append(problems, s.brokenStream(t, events.OrdersStream, s.orders)...)
	problems = append(problems, s.brokenStream(t, events.BillingStream, s.billing)...)
	for _, svc := range []*service{s.orders, s.billing} {
		for _, dead := range all(t, svc.db, "SELECT class || ': ' || reason FROM oncebox.dead_letter", pgx.RowTo[string]) {
			problems = append(problems, fmt.Sprintf("dead letter of %s: %s", svc.name, dead))
		}
	}
	const shown = 6
	for i, p := range problems {
		if i == shown {
			t.Errorf("and %d more", len(problems)-shown)
			break
		}
		t.Error(p)
	}
}

func (s *system) brokenOrders(t testing.TB, wantOrders int) (problems []string) {
	t.Helper()
	type order struct {
		ID, Status, ChargeID string
		Amount               int64
	}
	type charge struct {
		ID, OrderID, Status string
		Amount              int64
	}
	type entries struct {
		ChargeID   string
		Count      int
		Sum, Taken int64
	}
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	charges := make(map[string][]charge)
	for _, c := range all(t, s.billing.db, "SELECT id::text, order_id::text, status, amount FROM charge", pgx.RowToStructByPos[charge]) {
		charges[c.OrderID] = append(charges[c.OrderID], c)
	}
	ledger := make(map[string]entries)
	for _, e := range all(t, s.billing.db, `SELECT charge_id::text, count(*), sum(amount)::bigint, max(amount)
		FROM ledger GROUP BY 1`, pgx.RowToStructByPos[entries]) {
		ledger[e.ChargeID] = e
	}
	orders := all(t, s.orders.db, "SELECT id::text, status, COALESCE(charge_id::text, ''), amount FROM orders", pgx.RowToStructByPos[order])
	if len(orders) != wantOrders {
		problem("%d orders, want %d", len(orders), wantOrders)
	}
	for _, o := range orders {
		of := charges[o.ID]
		delete(charges, o.ID)
		if len(of) != 1 {
			problem("order %s is charged %d times", o.ID, len(of))
			continue
		}
		want := charge{ID: o.ChargeID, OrderID: o.ID, Status: "succeeded", Amount: o.Amount}
		if of[0] != want || o.Status != "paid" {
			problem("order %s is %s, with the charge %+v, want %+v", o.ID, o.Status, of[0], want)
		}
		if e, want := ledger[of[0].ID], (entries{of[0].ID, 2, 0, o.Amount}); e != want {
			problem("the ledger of order %s: %+v, want %+v", o.ID, e, want)
		}
		delete(ledger, of[0].ID)
	}
	for id := range charges {
		problem("a charge for %s, which is no order", id)
	}
	for _, e := range ledger {
		problem("the ledger has rows of no order's only charge: %+v", e)
	}
	return problems
}

// brokenStream compares a stream with the outbox that it is made from.
func (s *system) brokenStream(t testing.TB, name string, producer *service) (problems []string) {
	t.Helper()
	stream, err := s.js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	times := make(map[string]int)
	for seq := uint64(1); seq <= stream.CachedInfo().State.LastSeq; seq++ {
		m, err := stream.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatalf("message %d of %s: %v", seq, name, err)
		}
		times[m.Header.Get(oncebox.HeaderID)]++
	}
	type written struct {
		ID   string
		Rows int
	}
	for _, w := range all(t, producer.db, "SELECT id::text, count(*) FROM oncebox.outbox GROUP BY id", pgx.RowToStructByPos[written]) {
		if w.Rows != 1 || times[w.ID] != 1 {
			problems = append(problems, fmt.Sprintf("event %s of %s: %d outbox rows, %d messages", w.ID, producer.name, w.Rows, times[w.ID]))
		}
		delete(times, w.ID)
	}
	for id := range times {
		problems = append(problems, fmt.Sprintf("the message %s in %s is in no outbox", id, name))
	}
	return problems
}

// all are a query's rows.
func all[T any](t testing.TB, db *pgxpool.Pool, sql string, scan pgx.RowToFunc[T]) []T {
	t.Helper()
	rows, err := db.Query(t.Context(), sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	values, err := pgx.CollectRows(rows, scan)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return values
}
