package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
)

// databases are those of a small run that went well: two orders of the client with keys and three of the naive one, whose third
// was charged twice by the naive consumer.
type databases struct{ orders, billing, naive *pgxpool.Pool }

func goodRun(t *testing.T) databases {
	t.Helper()
	dbs := databases{
		orders:  stacktest.Postgres(t, migrations.Outbox, migrations.Inbox, migrations.Orders),
		billing: stacktest.Postgres(t, migrations.Outbox, migrations.Inbox, migrations.Billing),
		naive:   stacktest.Postgres(t),
	}
	mustExec(t, dbs.naive, naiveTable)
	for _, o := range []struct {
		customer string
		naively  int // charges by the naive consumer
	}{{"customer-r-0", 0}, {"customer-r-1", 0}, {"naive-r-0", 1}, {"naive-r-0", 1}, {"naive-r-1", 2}} {
		order, charge := uuid.New(), uuid.New()
		mustExec(t, dbs.orders, `INSERT INTO orders (tenant_id, id, customer_id, amount, currency, description, status, version)
			VALUES ('default', $1, $2, 10000, 'USD', '', 'paid', 2)`, order, o.customer)
		mustExec(t, dbs.billing, `INSERT INTO charge (tenant_id, id, order_id, customer_id, amount, currency, status)
			VALUES ('default', $1, $2, $3, 10000, 'USD', 'succeeded')`, charge, order, o.customer)
		mustExec(t, dbs.billing, `INSERT INTO ledger (tenant_id, charge_id, account, amount, currency)
			VALUES ('default', $1, 'customer:' || $2, -10000, 'USD'), ('default', $1, 'revenue', 10000, 'USD')`, charge, o.customer)
		for range o.naively {
			mustExec(t, dbs.naive, "INSERT INTO naive_charge (order_id, customer_id, amount) VALUES ($1, $2, 10000)", order, o.customer)
		}
	}
	mustExec(t, dbs.billing, "ALTER TABLE ledger DISABLE TRIGGER USER") // the database would refuse to be wrecked
	return dbs
}

// judged counts these databases; what broker, services and link would have counted is as after a good run.
func (dbs databases) judged(t *testing.T) (tally, []string) {
	t.Helper()
	r := tally{intents: 2, kills: 1, redelivered: 1, repliesLost: 1}
	if err := r.countDatabases(t.Context(), dbs.orders, dbs.billing, dbs.naive, "customer-r-"); err != nil {
		t.Fatal(err)
	}
	return r, r.failures(options{orders: 2, loss: 0.4, kills: 1})
}

func TestGoodRunPasses(t *testing.T) {
	t.Parallel()
	r, failed := goodRun(t).judged(t)
	if len(failed) > 0 {
		t.Errorf("failed: %q", failed)
	}
	const want = "orders=2 charged=2 duplicates=0 lost=0 naive_charged=4 attempts=0 replies_lost=1 kills=1 redelivered=1 guard_inbox=0 guard_order=0"
	if got := r.line(); got != want {
		t.Errorf("line:\n%s\nwant\n%s", got, want)
	}
	if r.naiveOrders != 3 || r.naiveTwice != 1 || r.naiveMoney != 40000 || r.oncebox != 20000 {
		t.Errorf("naive orders %d, twice %d, money %d; with keys %d", r.naiveOrders, r.naiveTwice, r.naiveMoney, r.oncebox)
	}
}

func TestEachBrokenPromiseFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		wreck func(t *testing.T, dbs databases)
		want  []string // each part of one failure
	}{
		{"a charge is missing", func(t *testing.T, dbs databases) {
			mustExec(t, dbs.billing, "DELETE FROM ledger WHERE charge_id = (SELECT id FROM charge WHERE customer_id = 'customer-r-0')")
			mustExec(t, dbs.billing, "DELETE FROM charge WHERE customer_id = 'customer-r-0'")
		}, []string{"1 of 5 accepted orders are not charged", "there are 1 charges", "$500.00 and billing charged $400.00"}},
		{"a naive client's charge is missing", func(t *testing.T, dbs databases) {
			mustExec(t, dbs.billing, "DELETE FROM ledger WHERE charge_id = (SELECT id FROM charge WHERE customer_id = 'naive-r-1')")
			mustExec(t, dbs.billing, "DELETE FROM charge WHERE customer_id = 'naive-r-1'")
		}, []string{"1 of 5 accepted orders are not charged", "$500.00 and billing charged $400.00"}},
		{"an order is charged twice", func(t *testing.T, dbs databases) {
			mustExec(t, dbs.billing, "ALTER TABLE charge DROP CONSTRAINT charge_order_id")
			mustExec(t, dbs.billing, `WITH c AS (INSERT INTO charge (tenant_id, id, order_id, customer_id, amount, currency, status)
				SELECT tenant_id, gen_random_uuid(), order_id, customer_id, amount, currency, status FROM charge WHERE customer_id = 'customer-r-1' RETURNING *)
				INSERT INTO ledger (tenant_id, charge_id, account, amount, currency)
				SELECT tenant_id, id, a, s * amount, currency FROM c, (VALUES ('customer:x', -1), ('revenue', 1)) AS v (a, s)`)
		}, []string{"1 charges are beyond one for each order", "there are 3 charges", "billing charged $600.00"}},
		{"one is charged twice and another not at all", func(t *testing.T, dbs databases) {
			mustExec(t, dbs.billing, "ALTER TABLE charge DROP CONSTRAINT charge_order_id")
			mustExec(t, dbs.billing, `UPDATE charge SET order_id = (SELECT order_id FROM charge WHERE customer_id = 'customer-r-1')
				WHERE customer_id = 'customer-r-0'`)
		}, []string{"1 of 5 accepted orders are not charged", "1 charges are beyond one for each order"}},
		{"a charge is of no order", func(t *testing.T, dbs databases) {
			mustExec(t, dbs.orders, "DELETE FROM orders WHERE customer_id = 'naive-r-1'")
		}, []string{"1 charges are of no accepted order", "$400.00 and billing charged $500.00"}},
		{"an order was not accepted", func(t *testing.T, dbs databases) {
			mustExec(t, dbs.orders, "UPDATE orders SET customer_id = 'another' WHERE customer_id = 'customer-r-0'")
		}, []string{"wanted 2 orders and 1 were accepted", "of its 1 orders there are 2 charges"}},
		{"an order is not paid", func(t *testing.T, dbs databases) {
			mustExec(t, dbs.orders, "UPDATE orders SET status = 'pending' WHERE customer_id = 'naive-r-1'")
		}, []string{"1 of 5 orders are not paid"}},
		{"a charge is of another amount", func(t *testing.T, dbs databases) {
			mustExec(t, dbs.billing, "UPDATE charge SET amount = 10001 WHERE customer_id = 'customer-r-0'")
		}, []string{"billing charged $500.01", "the ledger rows of 1 charges are not in balance"}},
		{"a ledger row is missing", func(t *testing.T, dbs databases) {
			mustExec(t, dbs.billing, "DELETE FROM ledger WHERE account = 'customer:customer-r-0'")
		}, []string{"the ledger rows of 1 charges are not in balance", "the ledger sums to $100.00"}},
		{"a charge has no ledger", func(t *testing.T, dbs databases) {
			mustExec(t, dbs.billing, "DELETE FROM ledger WHERE charge_id = (SELECT id FROM charge WHERE customer_id = 'customer-r-0')")
		}, []string{"the ledger rows of 1 charges are not in balance"}},
		{"the last guard fired", func(t *testing.T, dbs databases) {
			mustExec(t, dbs.billing, `INSERT INTO oncebox.dead_letter
				(consumer, source, id, tenant_id, message_id, topic, key, version, seq, class, reason, attempts, headers, payload)
				VALUES ('billing', 'orders', gen_random_uuid(), 'default', '', '', '', 1, 1, 'already_charged', '', 1, '{}', '')`)
		}, []string{"the last guard", "there are 1 dead letters"}},
		{"nothing was charged too often by the naive consumer", func(t *testing.T, dbs databases) {
			mustExec(t, dbs.naive, "DELETE FROM naive_charge WHERE id > 2")
		}, []string{"the naive charges, 2, are not above the orders, 2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dbs := goodRun(t)
			c.wreck(t, dbs)
			_, failed := dbs.judged(t)
			if len(failed) != len(c.want) {
				t.Errorf("failed: %q, want %q", failed, c.want)
			}
			for _, want := range c.want {
				if !slices.ContainsFunc(failed, func(f string) bool { return strings.Contains(f, want) }) {
					t.Errorf("failed: %q, want %q", failed, want)
				}
			}
		})
	}
}

func TestFaultsThatDidNotComeFail(t *testing.T) {
	good := tally{intents: 2, orders: 2, charged: 2, naiveCharged: 3, kills: 2, killsAfterCommit: 1, redelivered: 2, guardInbox: 1, repliesLost: 1}
	o := options{orders: 2, loss: 0.4, kills: 2}
	if failed := good.failures(o); len(failed) > 0 {
		t.Fatalf("failed: %q", failed)
	}
	for want, wreck := range map[string]func(*tally){
		"billing was killed 1 times, not 2":                 func(r *tally) { r.kills = 1 },
		"after 2 kills only 1 messages were redelivered":    func(r *tally) { r.redelivered = 1 },
		"1 kills came between":                              func(r *tally) { r.guardInbox = 0 },
		"no reply was lost":                                 func(r *tally) { r.repliesLost = 0 },
		"the naive charges, 2, are not above the orders, 2": func(r *tally) { r.naiveCharged = 2 },
	} {
		r := good
		wreck(&r)
		if failed := r.failures(o); len(failed) != 1 || !strings.Contains(failed[0], want) {
			t.Errorf("failed: %q, want %q", failed, want)
		}
	}
	good.repliesLost, good.naiveCharged = 0, 2
	if failed := good.failures(options{orders: 2, kills: 2}); len(failed) > 0 {
		t.Errorf("without loss: %q", failed)
	}
}

func mustExec(t *testing.T, db *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := db.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}
