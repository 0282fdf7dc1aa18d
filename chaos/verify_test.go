package chaos

import (
	"fmt"
	"testing"
	"time"

	"github.com/oncebox/oncebox/internal/stacktest"
)

// Invariant: what comes through the two services is compared in a time that does not get in an operator's way, all of it, and what is
// new since the last time. Each order goes the whole way: from the outbox through the stream to its charge, and back.
//
// make soak has a million orders, and holds the two comparisons to half a minute and a second.
func TestVerifyComparesAllOrdersAndThenWhatIsNew(t *testing.T) {
	t.Parallel()
	n, settings := 8000, map[string]string{"HEAL_EVERY": "0"}
	long := soaking()
	if long { // with the times that a service has: for minutes there is more to do than a second can wait for
		n, settings["ACK_WAIT"], settings["LEASE"] = 1_000_000, "30s", "5s"
	}
	s, op := startOperated(t, settings)
	s.order(t, "the-first")
	s.settle(t)
	s.ordersLikeTheFirst(t, n-1)
	stacktest.Eventually(t, patience+time.Duration(n)*time.Millisecond, "all orders are paid", func() (bool, error) {
		return one[int](t, s.orders.db, "SELECT count(*) FROM orders WHERE status = 'paid'") == n, nil
	})
	s.drained(t)

	timed := func(want int64, limit time.Duration, args ...string) int64 {
		t.Helper()
		began := time.Now()
		different, rows := op.verify(t, args...)
		took := time.Since(began)
		t.Logf("verify %v compared %d rows in %s", args, rows, took)
		if len(different) > 0 || rows < want {
			t.Errorf("verify %v compared %d rows, want at least %d, and found %+v", args, rows, want, different)
		}
		if long && took > limit {
			t.Errorf("verify %v took %s, and may take %s", args, took, limit)
		}
		return rows
	}
	full := timed(int64(6*n), 30*time.Second, "--full")
	timed(0, time.Minute) // notes how far it came
	if rows := timed(0, time.Minute); rows > full*3/4 {
		t.Errorf("verify compared %d rows once more", rows)
	}
	if long { // what is younger than a minute is always compared again
		stacktest.Eventually(t, 2*time.Minute, "nothing is new", func() (bool, error) {
			_, rows := op.verify(t)
			return rows < full/1000, nil
		})
		timed(0, time.Second)
		return
	}
	// What is changed by hand among many is found.
	id := one[string](t, s.billing.db, "SELECT order_id::text FROM charge ORDER BY order_id OFFSET 4321 LIMIT 1")
	if _, err := s.billing.db.Exec(t.Context(), "UPDATE charge SET amount = amount + 1 WHERE order_id::text = $1", id); err != nil {
		t.Fatal(err)
	}
	different, _ := op.verify(t, "--full", "--settle=50ms")
	if named := different["charges"].Unequal; len(named) != 1 || named[0] != id {
		t.Errorf("verify names %v, want %s", named, id)
	}
}

// ordersLikeTheFirst writes orders as the service would have, each with its event, a thousand in a transaction: one a millisecond of
// the time before, by the UUIDs of version 7 that name them.
func (s *system) ordersLikeTheFirst(t testing.TB, n int) {
	t.Helper()
	const each = 1000
	columns := func(table, but string) string {
		return one[string](t, s.orders.db, `SELECT string_agg(quote_ident(column_name), ', ' ORDER BY ordinal_position) FROM information_schema.columns
			WHERE table_schema || '.' || table_name = $1 AND column_name <> ALL (string_to_array($2, ' '))`, table, but)
	}
	orders, events := columns("public.orders", "id idem_key idem_request idem_fingerprint status version settled_version charge_id"),
		columns("oncebox.outbox", "seq slot xid id key payload time")
	began := time.Now().Add(-time.Minute).UnixMilli() - int64(n)
	for from := 0; from < n; from += each {
		sql := fmt.Sprintf(`WITH g AS (
				SELECT (begins || '8' || right(md5('order' || g), 15))::uuid AS id, (begins || '9' || right(md5('event' || g), 15))::uuid AS event
				FROM generate_series(%d, %d) AS g, LATERAL (SELECT lpad(to_hex(%d + g), 12, '0') || '7000' AS begins) AS t),
			f AS MATERIALIZED (SELECT * FROM orders WHERE charge_id IS NOT NULL ORDER BY created_at LIMIT 1),
			o AS (INSERT INTO orders (id, status, version, settled_version, %[4]s) SELECT g.id, 'pending', 1, 0, %[4]s FROM g, f)
			INSERT INTO oncebox.outbox (id, key, payload, %[5]s)
			SELECT g.event, g.id::text, convert_to(replace(convert_from(payload, 'UTF8'), key, g.id::text), 'UTF8'), %[5]s
			FROM g, (SELECT x.* FROM oncebox.outbox AS x, f WHERE x.key = f.id::text ORDER BY x.seq LIMIT 1) AS first`,
			from, min(from+each, n)-1, began, orders, events)
		if _, err := s.orders.db.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
}
