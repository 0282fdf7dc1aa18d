package billing_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/inbox"
)

// cancellation is orders' of the order of a request.
func cancellation(request oncebox.Event, version int64) oncebox.Event {
	e, err := events.New("default", version, events.OrderCancelled{OrderID: request.Key, CustomerID: "customer-1", Amount: 10000, Currency: "USD"})
	if err != nil {
		panic(err)
	}
	e.ID, e.Source, e.Time = uuid.NewString(), "orders", time.Now()
	return e
}

const chargesSQL = "SELECT status || ' ' || (refunded_at IS NOT NULL) FROM charge"

func TestACancelledChargeIsRefundedOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	asked := request()
	cancelled := cancellation(asked, 3)
	another := cancellation(asked, 3) // under an id of its own, as no inbox would let it come
	for _, e := range []oncebox.Event{asked, cancelled, cancelled, another} {
		must(t, r.handle(e))
	}
	r.want("charges", chargesSQL, "refunded true")
	r.want("ledger", "SELECT kind || ' ' || account || ' ' || amount FROM ledger ORDER BY id",
		"charge customer:customer-1 -10000", "charge revenue 10000", "refund customer:customer-1 10000", "refund revenue -10000")
	r.want("outbox", outboxSQL, "billing.charge.succeeded.v1 1", "billing.charge.refunded.v1 3")
	r.want("dead letters", deadSQL)
	id := r.column("SELECT id::text FROM charge")[0]
	var refund events.ChargeRefunded
	must(t, json.Unmarshal([]byte(r.column("SELECT convert_from(payload, 'UTF8') FROM oncebox.outbox WHERE version = 3")[0]), &refund))
	if want := (events.ChargeRefunded{OrderID: asked.Key, ChargeID: id, Amount: 10000, Currency: "USD"}); refund != want {
		t.Errorf("the refund is %+v, want %+v", refund, want)
	}
	var c billing.Charge
	if status := r.read("/v1/charges/"+id, &c); status != http.StatusOK || c.ID != id || c.OrderID != asked.Key ||
		c.Status != billing.StatusRefunded || c.RefundedAt == nil || c.RefundedAt.Before(c.CreatedAt) {
		t.Errorf("the API shows %d %+v", status, c)
	}
}

func TestACancellationBeforeItsChargeLeavesATombstone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	asked := request()
	cancelled := cancellation(asked, 2)
	for _, e := range []oncebox.Event{cancelled, asked, cancelled, asked} {
		must(t, r.handle(e))
	}
	r.want("charges", chargesSQL, "cancelled false")
	r.want("ledger", ledgerSQL)
	r.want("outbox", outboxSQL)
	r.want("dead letters", deadSQL)
	r.want("inbox", "SELECT state FROM oncebox.inbox", "done", "done")
}

func TestACancellationLeavesADeclinedChargeAsItIs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	asked := request(func(p *events.ChargeRequested) { p.Amount = limit + 1 })
	must(t, r.handle(asked))
	must(t, r.handle(cancellation(asked, 2)))
	r.want("charges", chargesSQL, "declined false")
	r.want("ledger", ledgerSQL)
	r.want("outbox", outboxSQL, "billing.charge.declined.v1 1")
}

// A request and its cancellation on two lanes at once: one waits for the other's charge row, and either order is right.
func TestARequestAndItsCancellationAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var wg sync.WaitGroup
	for range 30 {
		asked := request()
		for _, e := range []oncebox.Event{asked, cancellation(asked, 2)} {
			wg.Go(func() {
				if err := r.handle(e); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	r.want("charges that are left", "SELECT status FROM charge WHERE status NOT IN ('refunded', 'cancelled')")
	r.want("orders", "SELECT count(*)::text FROM charge", "30")
	r.want("balances", "SELECT account || ' ' || sum(amount) FROM ledger GROUP BY account HAVING sum(amount) <> 0")
	r.want("refunds without their event", `SELECT id::text FROM charge WHERE status = 'refunded'
		AND (SELECT count(*) FROM oncebox.outbox WHERE key = order_id::text) <> 2`)
	r.want("dead letters", deadSQL)
}

// A request died, its order was cancelled, and then somebody retries the letter: nothing is charged.
func TestARetryOfADeadRequestAfterItsCancellationChargesNothing(t *testing.T) {
	t.Parallel()
	var (
		in *inbox.Inbox
		s  *billing.Service
	)
	r := rigOf(t, func(i *inbox.Inbox, b *billing.Service) (message.NoPublishHandlerFunc, error) {
		in, s = i, b
		return i.One(b.Handler()), nil
	})
	asked := request()
	dies := in.One(func(context.Context, pgx.Tx, oncebox.Event) error {
		return inbox.Permanent("died", errors.New("of a fault that is mended"))
	})
	must(t, dies(asked.Message()))
	must(t, r.handle(cancellation(asked, 2)))
	letters := in.Dead(inbox.Each(s.Handler()))
	all, err := letters.List(t.Context(), inbox.Filter{State: "dead"}, 10)
	if must(t, err); len(all) != 1 {
		t.Fatalf("%d dead letters", len(all))
	}
	must(t, letters.Retry(t.Context(), all[0].N))
	r.want("charges", chargesSQL, "cancelled false")
	r.want("ledger", ledgerSQL)
	r.want("outbox", outboxSQL)
	r.want("dead letters", "SELECT state FROM oncebox.dead_letter", "retried")
}

// What the database itself refuses, whoever asks.
func TestTheLedgerStaysInBalance(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	asked := request()
	must(t, r.handle(asked))
	const insert = "INSERT INTO ledger (tenant_id, charge_id, kind, account, amount, currency) SELECT tenant_id, id, 'refund', a, n, cur FROM charge, "
	for sql, guard := range map[string]string{
		insert + "(VALUES ('revenue', -10000, 'USD')) AS v (a, n, cur)":                                                      "ledger_in_balance",
		insert + "(VALUES ('revenue', -10000, 'USD'), ('customer:x', 9999, 'USD')) AS v (a, n, cur)":                         "ledger_in_balance",
		insert + "(VALUES ('revenue', -10000, 'USD'), ('customer:x', 10000, 'EUR')) AS v (a, n, cur)":                        "ledger_in_balance",
		strings.ReplaceAll(insert, "refund", "charge") + "(VALUES ('revenue', 1, 'USD'), ('x', -1, 'USD')) AS v (a, n, cur)": "ledger_once",
		"UPDATE ledger SET amount = amount * 2":                                                                              "ledger_append_only",
		"UPDATE ledger SET account = 'x' WHERE false":                                                                        "ledger_append_only",
		"DELETE FROM ledger": "ledger_append_only",
		"TRUNCATE ledger":    "ledger_append_only",
	} {
		_, err := r.pool.Exec(t.Context(), sql)
		if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.ConstraintName != guard {
			t.Errorf("%s: %v, want it refused by %s", sql, err, guard)
		}
	}
	r.want("ledger", ledgerSQL, "customer:customer-1 -10000 USD", "revenue 10000 USD")
}

// BenchmarkLedgerTrigger is what a request costs, with and without the trigger that holds the ledger in balance.
func BenchmarkLedgerTrigger(b *testing.B) {
	for _, trigger := range []string{"ENABLE", "DISABLE"} {
		b.Run(trigger, func(b *testing.B) {
			r := newRig(b)
			_, err := r.pool.Exec(b.Context(), fmt.Sprintf("ALTER TABLE ledger %s TRIGGER ledger_in_balance", trigger))
			must(b, err)
			for b.Loop() {
				must(b, r.handle(request()))
			}
		})
	}
}
