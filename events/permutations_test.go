package events_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/internal/service"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/orders"
	"github.com/oncebox/oncebox/outbox"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

// What happens to an order that its client deletes.
const (
	deleted   = 'D' // by the client
	requested = 'Q' // the request for its charge comes to billing
	cancelled = 'C' // its cancellation comes to billing
	succeeded = 'S' // billing's first answer comes to orders: yes, or no
	refunded  = 'R' // billing's second answer comes to orders
)

func (k kind) topic(what rune) string {
	if what == succeeded && k.declines {
		return events.TypeChargeDeclined
	}
	return map[rune]string{requested: events.TypeChargeRequested, cancelled: events.TypeOrderCancelled,
		succeeded: events.TypeChargeSucceeded, refunded: events.TypeChargeRefunded}[what]
}

const (
	maxDeliveries = 6
	chargeLimit   = 50000
)

// A kind is how billing decides, and what guards against repetitions.
type kind struct {
	declines bool // billing's first answer is no, and there is no second one
	freshIDs bool // a repetition has an id of its own, so that no inbox knows it and what is behind the inbox guards alone
	changed  bool // the client changes the order before it deletes it: the versions have gaps
}

func before(story string, first, second rune) bool {
	i, j := strings.IndexRune(story, first), strings.IndexRune(story, second)
	return i >= 0 && (j < 0 || i < j)
}

// stories are all in which the order is deleted once, each event comes after it was sent, at least once, and at most six events
// come: in each order, with each repetition that there is.
func (k kind) stories() (all []string) {
	var tell func(story string)
	tell = func(story string) {
		has := func(what rune) bool { return strings.ContainsRune(story, what) }
		next := []rune{requested}
		if !has(deleted) {
			next = append(next, deleted)
		} else if !k.declines || before(story, deleted, succeeded) { // nothing asks for the refund of what was declined
			next = append(next, cancelled)
		}
		if before(story, requested, cancelled) {
			next = append(next, succeeded)
			if has(cancelled) && !k.declines {
				next = append(next, refunded)
			}
		}
		missing := slices.ContainsFunc(next, func(what rune) bool { return !has(what) })
		if !missing {
			all = append(all, story)
		}
		for _, what := range next {
			if what == deleted || len(strings.ReplaceAll(story, string(deleted), "")) < maxDeliveries {
				tell(story + string(what))
			}
		}
	}
	tell("")
	return all
}

// A world is both services on their databases, without a broker: the test decides what comes when.
type world struct {
	ordersDB, billingDB *pgxpool.Pool
	api                 http.Handler
	handle              map[rune]func(oncebox.Event) error
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		ordersDB:  stacktest.Postgres(t, migrations.Outbox, migrations.Inbox, migrations.Idempotency, migrations.Orders),
		billingDB: stacktest.Postgres(t, migrations.Outbox, migrations.Inbox, migrations.Billing),
	}
	log := slog.New(slog.DiscardHandler)
	writer := func(db *pgxpool.Pool, name string) *outbox.Writer {
		_, err := db.Exec(t.Context(), "CREATE INDEX ON oncebox.outbox (key)") // for the test's own look at it
		must(t, err)
		writer, err := outbox.NewWriter(outbox.WriterConfig{Source: name})
		must(t, err)
		return writer
	}
	reg := prometheus.NewRegistry()
	o := orders.New(w.ordersDB, writer(w.ordersDB, orders.Name), orders.Config{Wake: func() {}, Registerer: reg})
	store, err := idempotency.NewPostgres(w.ordersDB, idempotency.PostgresConfig{})
	must(t, err)
	keys, err := service.Keys(store, o.Keys(), func() {}, log, reg)
	must(t, err)
	w.api = service.NewAPI(orders.Name, "test", log, reg, o.Routes, keys)
	b, err := billing.New(w.billingDB, writer(w.billingDB, billing.Name), billing.Config{ChargeLimit: chargeLimit})
	must(t, err)
	consumer := func(db *pgxpool.Pool, name string, h inbox.GroupHandler) func(oncebox.Event) error {
		in, err := inbox.New(db, inbox.Config{Consumer: name, Logger: log})
		must(t, err)
		one, err := in.Group(h, inbox.GroupConfig{Max: 1})
		must(t, err)
		return func(e oncebox.Event) error { return one(e.Message()) }
	}
	toOrders, toBilling := consumer(w.ordersDB, orders.Name, o.GroupHandler()), consumer(w.billingDB, billing.Name, b.GroupHandler())
	w.handle = map[rune]func(oncebox.Event) error{requested: toBilling, cancelled: toBilling, succeeded: toOrders, refunded: toOrders}
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) do(method, path, body string) (orders.Order, string, error) {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Idempotency-Key", uuid.NewString())
	if method == http.MethodPut {
		r.Header.Set("If-Match", "*")
	}
	answer := httptest.NewRecorder()
	w.api.ServeHTTP(answer, r)
	var o orders.Order
	if answer.Code >= 300 {
		return o, "", fmt.Errorf("%s %s: %d %s", method, path, answer.Code, answer.Body)
	}
	return o, answer.Body.String(), json.Unmarshal(answer.Body.Bytes(), &o)
}

// sent is an order's event as a relay would publish it.
func (w *world) sent(order string, what rune, topic string) (oncebox.Event, error) {
	db, source := w.ordersDB, orders.Name
	if what == succeeded || what == refunded {
		db, source = w.billingDB, billing.Name
	}
	e := oncebox.Event{Source: source}
	err := db.QueryRow(context.Background(), `SELECT id::text, topic, key, version, tenant_id, time, seq, payload FROM oncebox.outbox
		WHERE key = $1 AND topic = $2`, order, topic).Scan(&e.ID, &e.Type, &e.Key, &e.Version, &e.TenantID, &e.Time, &e.Seq, &e.Data)
	if err != nil {
		return e, fmt.Errorf("the event %s of %s: %w", topic, order, err)
	}
	return e, nil
}

// play lets a story happen to a new order, and returns what is wrong in the end.
func (w *world) play(k kind, story string) error {
	amount := 10000
	if k.declines {
		amount = chargeLimit + 1
	}
	o, _, err := w.do("POST", "/v1/orders", fmt.Sprintf(`{"customer_id":%q,"amount":%d,"currency":"USD"}`, uuid.NewString(), amount))
	if err != nil {
		return err
	}
	path := "/v1/orders/" + o.ID
	var deletion string
	for i, what := range story {
		if what == deleted {
			if k.changed {
				if _, _, err := w.do("PUT", path, `{"customer_id":"another","description":""}`); err != nil {
					return err
				}
			}
			if _, deletion, err = w.do("DELETE", path, ""); err != nil {
				return err
			}
			continue
		}
		e, err := w.sent(o.ID, what, k.topic(what))
		if err != nil {
			return err
		}
		if k.freshIDs && strings.ContainsRune(story[:i], what) {
			e.ID = uuid.NewString()
		}
		if err := w.handle[what](e); err != nil {
			return fmt.Errorf("step %d, %c: %w", i, what, err)
		}
	}
	end, _, err := w.do("GET", path, "")
	if err != nil {
		return err
	}
	_, again, err := w.do("DELETE", path, "")
	if err != nil {
		return err
	}
	if again != deletion {
		return fmt.Errorf("the deletion was answered with %sand then with %s", deletion, again)
	}
	is, err := w.outcome(end)
	if want := k.outcome(story); err == nil && is != want {
		return fmt.Errorf("the end is %+v, want %+v", is, want)
	}
	return err
}

// An outcome is what is left of an order on both sides.
type outcome struct {
	order, charge       string
	ordersSent, answers string
	ledgerRows          int
	unbalanced          int // accounts with money of it
}

// outcome is how a story has to end. Whether the order was paid, or declined, when its client deleted it decides what it is; whatever
// came in which order, nothing is kept of its money.
func (k kind) outcome(story string) outcome {
	o := outcome{order: orders.StatusCancelled, charge: billing.StatusCancelled,
		ordersSent: events.TypeChargeRequested + " " + events.TypeOrderCancelled}
	first := before(story, succeeded, deleted)
	charged := before(story, requested, cancelled)
	switch {
	case k.declines && first:
		o.order, o.ordersSent = orders.StatusDeclined, events.TypeChargeRequested
	case first:
		o.order = orders.StatusRefunded
	}
	switch {
	case k.declines && charged:
		o.charge, o.answers = billing.StatusDeclined, events.TypeChargeDeclined
	case charged:
		o.charge, o.answers, o.ledgerRows = billing.StatusRefunded, events.TypeChargeSucceeded+" "+events.TypeChargeRefunded, 4
	}
	return o
}

func (w *world) outcome(order orders.Order) (outcome, error) {
	const sent = "(SELECT COALESCE(string_agg(topic, ' ' ORDER BY seq), '') FROM oncebox.outbox WHERE key = $1)"
	o := outcome{order: order.Status}
	err := w.ordersDB.QueryRow(context.Background(), "SELECT "+sent, order.ID).Scan(&o.ordersSent)
	if err != nil {
		return o, err
	}
	err = w.billingDB.QueryRow(context.Background(), `SELECT status, `+sent+`, (SELECT count(*) FROM ledger WHERE charge_id = charge.id),
			(SELECT count(*) FROM (SELECT FROM ledger WHERE charge_id = charge.id GROUP BY account HAVING sum(amount) <> 0) AS x)
		FROM charge WHERE order_id = $1::text::uuid`, order.ID).Scan(&o.charge, &o.answers, &o.ledgerRows, &o.unbalanced)
	return o, err
}

// TestWhateverComesInWhateverOrder plays each story to both services on real databases.
func TestWhateverComesInWhateverOrder(t *testing.T) {
	t.Parallel()
	for name, k := range map[string]kind{
		"charged":                 {},
		"charged, with fresh ids": {freshIDs: true, changed: true},
		"declined":                {declines: true, freshIDs: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := k.stories()
			if len(all) < 100 {
				t.Fatalf("only %d stories", len(all))
			}
			w := newWorld(t)
			next := make(chan string)
			var players sync.WaitGroup
			for range 4 {
				players.Go(func() {
					for story := range next {
						if err := w.play(k, story); err != nil {
							t.Errorf("%s: %v", story, err)
						}
					}
				})
			}
			for _, story := range all {
				if t.Failed() { // the first few tell enough
					break
				}
				next <- story
			}
			close(next)
			players.Wait()
			// A second request under an id of its own is what the last guard tells of.
			const dead = "SELECT count(*) FROM oncebox.dead_letter WHERE NOT ($1 AND class = $2)"
			for db, told := range map[*pgxpool.Pool]bool{w.ordersDB: false, w.billingDB: k.freshIDs} {
				var n int
				must(t, db.QueryRow(t.Context(), dead, told, billing.ClassAlreadyCharged).Scan(&n))
				if n != 0 {
					t.Errorf("%d dead letters", n)
				}
			}
			t.Logf("%d stories", len(all))
		})
	}
}
