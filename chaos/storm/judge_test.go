package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// A case of damage is done to a system in which all is well.
type damage struct {
	what  string
	db    func(*world) *pgxpool.Pool // nil: the history is changed
	table string                     // which is put back afterwards
	sql   string
	edit  func([]try) []try
	want  string // part of what the judge says
}

func ordersOf(w *world) *pgxpool.Pool  { return w.ordersDB }
func billingOf(w *world) *pgxpool.Pool { return w.billingDB }

const (
	// one is an order that is paid and stays, another a second charge of it.
	one     = "(SELECT order_id FROM charge WHERE status = 'succeeded' AND order_id IS NOT NULL ORDER BY order_id LIMIT 1)"
	another = "INSERT INTO charge (tenant_id, id, order_id, customer_id, amount, currency, status) SELECT tenant_id, gen_random_uuid(), order_id, customer_id, amount, currency, status FROM charge WHERE order_id = " + one
)

var damages = []damage{
	{what: "a charge is deleted", db: billingOf, table: "charge", sql: "DELETE FROM charge WHERE order_id = " + one, want: "has 0 charges"},
	{what: "a charge is doubled", db: billingOf, table: "charge", sql: "ALTER TABLE charge DROP CONSTRAINT charge_order_id; " + another, want: "has 2 charges"},
	{what: "a direct charge is doubled", db: billingOf, table: "charge", sql: `DROP INDEX charge_idem_key; INSERT INTO charge (tenant_id, id, customer_id, amount, currency, status, idem_key)
		SELECT tenant_id, gen_random_uuid(), customer_id, amount, currency, status, idem_key FROM charge WHERE idem_key IS NOT NULL LIMIT 1`, want: "has 2 charges"},
	{what: "a charge is of no order", db: billingOf, table: "charge", sql: "UPDATE charge SET order_id = gen_random_uuid() WHERE order_id = " + one, want: "which is no order"},
	{what: "a charge's amount is changed", db: billingOf, table: "charge", sql: "UPDATE charge SET amount = amount + 1 WHERE order_id = " + one, want: "is charged"},
	{what: "a ledger's row is changed", db: billingOf, table: "ledger", sql: "UPDATE ledger SET amount = amount + 1 WHERE id = (SELECT min(id) FROM ledger)", want: "the ledger sums to 1"},
	{what: "a charge's ledger is gone", db: billingOf, table: "ledger", sql: "DELETE FROM ledger WHERE charge_id = (SELECT id FROM charge WHERE order_id = " + one + ")", want: "billing holds"},
	{what: "an order's amount is changed", db: ordersOf, table: "orders", sql: "UPDATE orders SET amount = amount + 1 WHERE id = (SELECT min(id::text)::uuid FROM orders)", want: "was asked for"},
	{what: "an order's status is changed", db: ordersOf, table: "orders", sql: "UPDATE orders SET status = 'declined' WHERE id = (SELECT min(id::text)::uuid FROM orders WHERE status = 'paid')", want: "is {status:declined"},
	{what: "an order's version is changed", db: ordersOf, table: "orders", sql: "UPDATE orders SET version = version + 1 WHERE id = (SELECT min(id::text)::uuid FROM orders WHERE status = 'paid')", want: "version:3"},
	{what: "an order is gone", db: ordersOf, table: "orders", sql: "DELETE FROM orders WHERE id = (SELECT min(id::text)::uuid FROM orders)", want: "has 0 orders"},
	{what: "an order is nobody's", db: ordersOf, table: "orders", sql: "UPDATE orders SET idem_key = sha256('x') WHERE id = (SELECT min(id::text)::uuid FROM orders)", want: "is nobody's"},
	{what: "an order's event is gone", db: ordersOf, table: "oncebox.outbox", sql: "DELETE FROM oncebox.outbox WHERE seq = (SELECT min(seq) FROM oncebox.outbox)", want: "which is in no outbox"},
	{what: "an answer's event is gone", db: billingOf, table: "oncebox.outbox", sql: "DELETE FROM oncebox.outbox WHERE seq = (SELECT min(seq) FROM oncebox.outbox)", want: "0 events billing"},
	{what: "an event is of a transaction that was rolled back", db: ordersOf, table: "oncebox.outbox",
		sql: "UPDATE oncebox.outbox SET key = gen_random_uuid()::text WHERE seq = (SELECT min(seq) FROM oncebox.outbox)", want: "was rolled back"},
	{what: "an event was written twice", db: ordersOf, table: "oncebox.outbox", sql: `INSERT INTO oncebox.outbox (id, source, topic, key, version, tenant_id, headers, payload)
		SELECT gen_random_uuid(), source, topic, key, version, tenant_id, headers, payload FROM oncebox.outbox LIMIT 1`, want: "2 events orders"},
	{what: "an effect is forgotten", db: billingOf, table: "oncebox.inbox", sql: "DELETE FROM oncebox.inbox WHERE id = (SELECT min(id::text)::uuid FROM oncebox.inbox)", want: `is "" in the inbox of billing`},
	{what: "an effect is not done", db: ordersOf, table: "oncebox.inbox", sql: "UPDATE oncebox.inbox SET state = 'started' WHERE id = (SELECT min(id::text)::uuid FROM oncebox.inbox)", want: `is "started" in the inbox of orders`},
	{what: "a message died", db: billingOf, table: "oncebox.dead_letter", sql: `INSERT INTO oncebox.dead_letter (consumer, source, id, tenant_id, message_id, topic, key, version, seq, class, reason, attempts, headers, payload)
		VALUES ('billing', 'orders', gen_random_uuid(), 'default', 'm', 't', 'k', 1, 1, 'already_charged', 'r', 1, '{}', '')`, want: "is a dead letter of billing: already_charged"},
	{what: "an answer under its key is gone", db: ordersOf, table: "oncebox.idempotency_keys", sql: "DELETE FROM oncebox.idempotency_keys WHERE key_hash = (SELECT key_hash FROM oncebox.idempotency_keys ORDER BY 1 LIMIT 1)", want: "is gone"},
	{what: "an answer under its key is changed", db: ordersOf, table: "oncebox.idempotency_keys",
		sql: "UPDATE oncebox.idempotency_keys SET body = body || ' ' WHERE key_hash = (SELECT key_hash FROM oncebox.idempotency_keys ORDER BY 1 LIMIT 1)", want: "is not what was answered"},
	{what: "a second answer has other bytes", edit: secondAnswer(opOrder, func(t *try) { t.Body = hash(nil) }), want: "has other bytes"},
	{what: "a second answer is of another order", edit: secondAnswer(opOrder, func(t *try) { t.ID, t.Location = "x", "/v1/orders/x" }), want: "/v1/orders/x"},
	{what: "a second charge has another id", edit: secondAnswer(opCharge, func(t *try) { t.ID = "x" }), want: "and was 201"},
	{what: "a request was carried out twice", edit: secondAnswer(opOrder, func(t *try) { t.Replayed = false }), want: "not linearizable"},
	{what: "an answer is neither yes nor later", edit: secondAnswer(opOrder, func(t *try) { t.Status = 422 }), want: "was answered 422"},
	{what: "nobody was answered", edit: func(tries []try) []try {
		return slices.DeleteFunc(tries, func(t try) bool { return t.N == 0 })
	}, want: "intent 0 was never answered"},
}

// secondAnswer changes the last answer to a key that has more than one.
func secondAnswer(op string, change func(*try)) func([]try) []try {
	return func(tries []try) []try {
		times := map[int]int{}
		for i, t := range tries {
			if t.Op != op || !t.accepted() {
				continue
			}
			if times[t.N]++; times[t.N] == 2 {
				change(&tries[i])
				return tries
			}
		}
		panic("no key of " + op + " was answered twice")
	}
}

// A judge that cannot fail is worth nothing: each damage is seen, and without it all is well.
func TestTheJudgeSeesEachDamage(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	o := options{Seed: 7, Orders: 150, Clients: 8, Duration: time.Minute, Settle: 30 * time.Second, out: t.TempDir()}
	w := &world{fail: func(err error) { t.Error(err) }}
	t.Cleanup(func() {
		if err := w.stop(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	f, err := newFolder(o, newSchedule(o))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.start(ctx, o, f.path); err != nil {
		t.Fatal(err)
	}
	v, err := newRun(o, w, f, newSchedule(o)).all(ctx)
	if err != nil || len(v.problems) > 0 || v.linear == 0 || v.orders != o.Orders {
		t.Fatalf("a run without faults: %v, %+v", err, v)
	}
	for _, p := range w.programs { // nobody mends what is damaged now
		if err := p.end(ctx); err != nil {
			t.Fatal(err)
		}
	}
	history, err := readLines[try](filepath.Join(f.path, historyFile))
	if err != nil {
		t.Fatal(err)
	}
	judge := func(tries []try) string {
		t.Helper()
		v := &verdict{}
		if err := v.judge(ctx, o, w, tries); err != nil {
			t.Fatal(err)
		}
		return strings.Join(v.problems, "\n")
	}
	for _, d := range damages {
		tries := slices.Clone(history)
		if d.edit != nil {
			tries = d.edit(tries)
		} else {
			change(t, d.db(w), "CREATE TABLE kept AS TABLE "+d.table+"; "+d.sql)
		}
		if got := judge(tries); !strings.Contains(got, d.want) {
			t.Errorf("%s: the judge says %q, want %q", d.what, got, d.want)
		}
		if d.edit == nil {
			change(t, d.db(w), fmt.Sprintf("DELETE FROM %[1]s; INSERT INTO %[1]s OVERRIDING SYSTEM VALUE TABLE kept; DROP TABLE kept", d.table))
		}
	}
	if got := judge(history); got != "" {
		t.Errorf("with all damage undone the judge says %s", got)
	}
	seesMessages(t, w, judge, history)
	seesSecrets(t, w, judge, history)
}

// change is what a superuser does past all triggers.
func change(t *testing.T, db *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := db.Exec(t.Context(), "BEGIN; SET LOCAL session_replication_role = replica; "+sql+"; COMMIT"); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// seesMessages has a message in a stream that nobody wrote into an outbox.
func seesMessages(t *testing.T, w *world, judge func([]try) string, history []try) {
	if _, err := w.js.Publish(t.Context(), "orders.charge.requested.v1", nil); err != nil {
		t.Fatal(err)
	}
	if got := judge(history); !strings.Contains(got, "message ") || !strings.Contains(got, "which is in no outbox") {
		t.Errorf("a message that is no event's: the judge says %q", got)
	}
}

func seesSecrets(t *testing.T, w *world, judge func([]try) string, history []try) {
	for _, secret := range append([]string{intentOf(options{}, 1).key()}, w.secrets...) {
		p := w.programs[0]
		log, err := os.ReadFile(p.log)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p.log, append(slices.Clone(log), secret...), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := judge(history); !strings.Contains(got, "the log of "+p.name+" has") {
			t.Errorf("a secret in a log: the judge says %q", got)
		}
		if err := os.WriteFile(p.log, log, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheJudgeSeesWhatIsNotGivenBack(t *testing.T) {
	was := footprint{50, 30, 40 << 20}
	for what, is := range map[string]footprint{
		"goroutines": {was.goroutines + moreGoroutines + 1, was.files, was.bytes}, "open files": {was.goroutines, was.files + moreFiles + 1, was.bytes},
		"MiB": {was.goroutines, was.files, was.bytes + moreBytes + 1}, "tells nothing": {},
	} {
		v := &verdict{}
		v.judgeFootprints(map[string]footprint{"orders-1": was}, map[string]footprint{"orders-1": is})
		if len(v.problems) != 1 || !strings.Contains(v.problems[0], what) {
			t.Errorf("%s: %q", what, v.problems)
		}
	}
	v := &verdict{}
	v.judgeFootprints(map[string]footprint{"orders-1": was}, map[string]footprint{"orders-1": was})
	if len(v.problems) > 0 {
		t.Errorf("nothing more is taken: %q", v.problems)
	}
}
