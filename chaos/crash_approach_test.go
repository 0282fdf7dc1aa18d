package chaos

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox/internal/stacktest"
)

// An approach has services come to an operation. It calls arm when all that is before it is over, and wait returns when all that is
// after it is.
type approach func(t testing.TB, c *crashed, svcs []*service, arm func()) (wait func())

// byLoad makes n orders.
func byLoad(n int) approach {
	return func(t testing.TB, c *crashed, _ []*service, arm func()) func() {
		arm()
		return c.load(t, n)
	}
}

// byStart begins.
func byStart(t testing.TB, c *crashed, svcs []*service, arm func()) func() {
	for _, svc := range svcs {
		svc.terminate(t)()
	}
	arm()
	for _, svc := range svcs {
		svc.launch(t)
	}
	return func() { c.load(t, 1)() }
}

// byStop ends.
func byStop(t testing.TB, c *crashed, svcs []*service, arm func()) func() {
	arm()
	c.load(t, 6)()
	for _, svc := range svcs {
		stacktest.Eventually(t, patience, svc.name+" has the lease", func() (bool, error) {
			return svc.metric(t, "oncebox_relay_leading") == 1, nil
		})
	}
	for _, svc := range svcs {
		svc.terminate(t)
	}
	return func() {}
}

// byIdling does nothing.
func byIdling(_ testing.TB, _ *crashed, _ []*service, arm func()) func() {
	arm()
	return func() {}
}

// byRedelivery has a message come a second time to the only service.
func byRedelivery(t testing.TB, c *crashed, svcs []*service, arm func()) func() {
	first := fault{"inbox-commit/before", kill, 1}
	svcs[0].arm(t, first)
	wait := c.load(t, 1)
	svcs[0].awaitFault(t, first)
	arm()
	svcs[0].launch(t)
	return wait
}

// A topic that no stream has.
const nobodys = "nobody.takes.this"

// unsendable writes an event that has to be parked.
func (s *service) unsendable(t testing.TB) {
	t.Helper()
	s.exec(t, `INSERT INTO oncebox.outbox (id, source, topic, key, version, tenant_id, headers, payload)
		VALUES (gen_random_uuid(), $1, $2, 'key', 0, 'default', '{}', '{}')`, s.name, nobodys)
}

// parked waits until the event is, in that state, and forgets it: nobody is to look for it in the stream.
func (s *service) parked(t testing.TB, outcome string) {
	t.Helper()
	stacktest.Eventually(t, patience, s.name+"'s event is parked", func() (bool, error) {
		return one[bool](t, s.db, "SELECT EXISTS (SELECT FROM oncebox.outbox_parked WHERE outcome = $1)", outcome), nil
	})
	if n := one[int](t, s.db, "SELECT count(*) FROM oncebox.outbox_parked"); n != 1 {
		t.Errorf("%s has parked %d events, want 1", s.name, n)
	}
}

func (s *service) forgetParked(t testing.TB) {
	t.Helper()
	s.exec(t, "DELETE FROM oncebox.outbox WHERE topic = $1", nobodys)
	s.exec(t, "DELETE FROM oncebox.outbox_parked")
}

func (s *service) exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	if _, err := s.db.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// byParking writes an event that no stream can hold.
func byParking(t testing.TB, _ *crashed, svcs []*service, arm func()) func() {
	arm()
	for _, svc := range svcs {
		svc.unsendable(t)
	}
	return func() {
		for _, svc := range svcs {
			svc.parked(t, "")
			svc.forgetParked(t)
		}
	}
}

// byDropping gives such a one up.
func byDropping(t testing.TB, _ *crashed, svcs []*service, arm func()) func() {
	for _, svc := range svcs {
		svc.unsendable(t)
		svc.parked(t, "")
	}
	arm()
	for _, svc := range svcs {
		svc.exec(t, "UPDATE oncebox.outbox_parked SET outcome = 'drop'")
	}
	return func() {
		for _, svc := range svcs {
			svc.parked(t, "dropped")
			svc.forgetParked(t)
		}
	}
}

// noop is a topic of the service's stream that nobody knows.
func (s *service) noop() string { return s.name + ".noop.v1" }

// byRetrying has such a one sent after all, under a topic that the stream has. It is an outbox row like any other to the judge.
func byRetrying(t testing.TB, _ *crashed, svcs []*service, arm func()) func() {
	for _, svc := range svcs {
		svc.unsendable(t)
		svc.parked(t, "")
	}
	arm()
	for _, svc := range svcs {
		svc.exec(t, "UPDATE oncebox.outbox_parked SET outcome = 'retry', topic = $1", svc.noop())
	}
	return func() {
		for _, svc := range svcs {
			svc.parked(t, "retried")
			svc.exec(t, "DELETE FROM oncebox.outbox_parked")
		}
	}
}

// byDelay has an event become due. The relay is held up before it looks for one.
func byDelay(t testing.TB, _ *crashed, svcs []*service, arm func()) func() {
	var releases []func()
	for _, svc := range svcs {
		releases = append(releases, svc.hold(t, "SELECT FROM oncebox.outbox_cursor FOR UPDATE"))
		stacktest.Eventually(t, patience, svc.name+"'s relay is held up", func() (bool, error) {
			return svc.blocked(t, "%UPDATE%outbox_cursor%") > 0, nil
		})
		svc.exec(t, `INSERT INTO oncebox.outbox_delayed (id, source, topic, key, version, tenant_id, headers, payload, not_before)
			VALUES (gen_random_uuid(), $1, $2, 'key', 0, 'default', '{}', '{}', clock_timestamp())`, svc.name, svc.noop())
	}
	arm()
	for _, release := range releases {
		release()
	}
	return func() {
		for _, svc := range svcs {
			stacktest.Eventually(t, patience, svc.name+" has sent what was due", func() (bool, error) {
				return one[bool](t, svc.db, "SELECT NOT EXISTS (SELECT FROM oncebox.outbox_delayed)"), nil
			})
		}
	}
}

// byLocked makes an order while a lock is held that its work needs, and gives the lock back when the service has failed.
func byLocked(lock string) approach {
	return func(t testing.TB, c *crashed, svcs []*service, arm func()) func() {
		arm()
		release := svcs[0].hold(t, lock)
		wait := c.load(t, 1)
		return func() {
			release()
			wait()
		}
	}
}

// byForgetting makes what is handled three months old, and with it the events, which would be missed else. Who prunes is held up
// meanwhile.
func byForgetting(t testing.TB, c *crashed, svcs []*service, arm func()) func() {
	c.load(t, 6)()
	c.settle(t)
	var releases []func()
	for _, svc := range svcs {
		releases = append(releases, svc.hold(t, "LOCK TABLE oncebox.inbox_retention IN EXCLUSIVE MODE"))
		stacktest.Eventually(t, patience, svc.name+" is about to prune", func() (bool, error) {
			return svc.blocked(t, "%inbox_retention%") > 0, nil
		})
		for _, sql := range []string{"UPDATE oncebox.outbox SET time = time - interval '90 days'", "UPDATE oncebox.inbox SET at = at - interval '90 days'"} {
			svc.exec(t, sql)
		}
	}
	arm()
	for _, release := range releases {
		release()
	}
	wait := c.load(t, 1)
	return func() {
		wait()
		for _, svc := range svcs {
			stacktest.Eventually(t, patience, svc.name+" has forgotten what is old", func() (bool, error) {
				return one[bool](t, svc.db, "SELECT NOT EXISTS (SELECT FROM oncebox.inbox WHERE at < clock_timestamp() - interval '30 days')"), nil
			})
		}
	}
}

// byRestore has the services find their outboxes in another cluster than the one they know.
func byRestore(t testing.TB, c *crashed, svcs []*service, arm func()) func() {
	c.load(t, 6)()
	c.settle(t)
	for _, svc := range svcs {
		svc.terminate(t)()
		svc.exec(t, "UPDATE oncebox.outbox_cursor SET cluster = 'another'")
	}
	arm()
	for _, svc := range svcs {
		svc.launch(t)
	}
	return func() { c.load(t, 1)() }
}

// byDirectCharges asks billing for charges without an order.
func byDirectCharges(t testing.TB, c *crashed, _ []*service, arm func()) func() {
	arm()
	const n = 6
	g, ctx := errgroup.WithContext(t.Context())
	for range n {
		c.directCount++
		ref := fmt.Sprint("ref-", c.directCount)
		g.Go(func() error {
			return accepted(ctx, func() (answer, error) {
				return c.billing.ask(ctx, http.MethodPost, "/v1/charges", `{"customer_id":"ada","amount":4200,"currency":"EUR","ref_id":"`+ref+`"}`, "Idempotency-Key", ref)
			})
		})
	}
	return func() {
		t.Helper()
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	}
}

// judgeDirect holds billing to one charge for each request that came without an order, with its two rows in the ledger.
func (c *crashed) judgeDirect(t testing.TB) {
	t.Helper()
	type tally struct{ Charges, Refs, Rows, Sum, Taken int }
	rows := all(t, c.billing.db, `SELECT (SELECT count(*) FROM charge WHERE order_id IS NULL), (SELECT count(DISTINCT ref_id) FROM charge),
		count(*), COALESCE(sum(amount), 0)::bigint, COALESCE(sum(amount) FILTER (WHERE account = 'revenue'), 0)::bigint
		FROM ledger WHERE charge_id IN (SELECT id FROM charge WHERE order_id IS NULL)`, pgx.RowToStructByPos[tally])
	n := c.directCount
	if want := (tally{n, n, 2 * n, 0, 4200 * n}); rows[0] != want {
		t.Errorf("billing has %+v, want %+v", rows[0], want)
	}
}

// byClosing has a bucket of orders' events be full, so that it is compared for the last time.
func byClosing(t testing.TB, c *crashed, _ []*service, arm func()) func() {
	arm()
	c.orders.exec(t, "SELECT setval('oncebox.outbox_seq_seq', (last_value / 1000 + 1) * 1000) FROM oncebox.outbox_seq_seq")
	return c.load(t, 1)
}

// byLoss has billing forget an order's charge that it has acknowledged.
func byLoss(t testing.TB, c *crashed, _ []*service, arm func()) func() {
	c.load(t, 1)()
	c.settle(t)
	order := one[string](t, c.orders.db, "SELECT key FROM oncebox.outbox ORDER BY seq DESC LIMIT 1")
	event := one[string](t, c.orders.db, "SELECT id::text FROM oncebox.outbox WHERE key = $1", order)
	arm()
	tx, err := c.billing.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b := &pgx.Batch{}
	b.Queue("SET LOCAL session_replication_role = replica") // past the ledger's triggers
	b.Queue("DELETE FROM oncebox.inbox WHERE id::text = $1", event)
	b.Queue("DELETE FROM ledger WHERE charge_id = (SELECT id FROM charge WHERE order_id::text = $1)", order)
	b.Queue("DELETE FROM charge WHERE order_id::text = $1", order)
	if err := tx.SendBatch(t.Context(), b).Close(); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		stacktest.Eventually(t, patience, "the charge is there again", func() (bool, error) {
			return one[bool](t, c.billing.db, "SELECT EXISTS (SELECT FROM charge WHERE order_id::text = $1)", order), nil
		})
		c.drained(t)
	}
}

// byAge makes what was sent thirteen days old, so that its slot is emptied, while there are younger orders.
func byAge(t testing.TB, c *crashed, svcs []*service, arm func()) func() {
	c.load(t, 6)()
	c.settle(t)
	arm()
	for _, svc := range svcs {
		svc.exec(t, "UPDATE oncebox.outbox SET slot = (slot + 3) % 16, time = time - interval '13 days' WHERE time > clock_timestamp() - interval '1 day'")
	}
	wait := c.load(t, 1)
	return func() {
		wait()
		for _, svc := range svcs {
			stacktest.Eventually(t, patience, "the old slot of "+svc.name+" is empty", func() (bool, error) {
				return one[bool](t, svc.db, "SELECT NOT EXISTS (SELECT FROM oncebox.outbox WHERE time < clock_timestamp() - interval '1 day')"), nil
			})
		}
	}
}
