package billing_test

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
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/internal/contract"
	"github.com/oncebox/oncebox/internal/service"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type rig struct {
	t         testing.TB
	pool      *pgxpool.Pool
	store     *idempotency.Postgres
	tenant    string // whose the requests are, as authentication would tell
	server    *httptest.Server
	described *contract.API // each answer is held to /openapi.json
	handle    func(oncebox.Event) error
}

// A way is one of handling billing's events.
type way func(*inbox.Inbox, *billing.Service) (message.NoPublishHandlerFunc, error)

var ways = map[string]way{
	"one by one": func(in *inbox.Inbox, s *billing.Service) (message.NoPublishHandlerFunc, error) {
		return in.One(s.Handler()), nil
	},
	"each of a group": func(in *inbox.Inbox, s *billing.Service) (message.NoPublishHandlerFunc, error) {
		return in.Group(inbox.Each(s.Handler()), inbox.GroupConfig{})
	},
	"a group as a set": func(in *inbox.Inbox, s *billing.Service) (message.NoPublishHandlerFunc, error) {
		return in.Group(s.GroupHandler(), inbox.GroupConfig{})
	},
}

// eachWay runs f for every way of handling events: all of them are to do the same.
func eachWay(t *testing.T, f func(*rig)) {
	for name, handling := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(rigOf(t, handling))
		})
	}
}

// together hands events in at once, so that they come in groups.
func (r *rig) together(events ...oncebox.Event) {
	r.t.Helper()
	var wg sync.WaitGroup
	for _, e := range events {
		wg.Go(func() {
			if err := r.handle(e); err != nil {
				r.t.Error(err)
			}
		})
	}
	wg.Wait()
}

const limit = 50000

// newRig is one whose events are handled one by one.
func newRig(t testing.TB) *rig { return rigOf(t, ways["one by one"]) }

func rigOf(t testing.TB, handling way) *rig {
	t.Helper()
	pool := stacktest.Postgres(t, migrations.Outbox, migrations.Inbox, migrations.Idempotency, migrations.Billing)
	w, err := outbox.NewWriter(outbox.WriterConfig{Source: billing.Name})
	must(t, err)
	s, err := billing.New(pool, w, billing.Config{ChargeLimit: limit})
	must(t, err)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	store, err := idempotency.NewPostgres(pool, idempotency.PostgresConfig{Forget: s.Forget})
	must(t, err)
	keys, err := service.Keys(store, s.Keys(), func() {}, log, nil)
	must(t, err)
	api := service.NewAPI(billing.Name, "test", log, prometheus.NewRegistry(), s.Routes, keys)
	r := &rig{t: t, pool: pool, store: store, tenant: service.DefaultTenant}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		api.ServeHTTP(w, req.WithContext(service.WithTenant(req.Context(), r.tenant)))
	}))
	t.Cleanup(server.Close)
	in, err := inbox.New(pool, inbox.Config{Consumer: billing.Name, Logger: log})
	must(t, err)
	handle, err := handling(in, s)
	must(t, err)
	r.server, r.handle = server, func(e oncebox.Event) error { return handle(e.Message()) }
	var document json.RawMessage
	r.read("/openapi.json", &document)
	r.described, err = contract.OpenAPI(document)
	must(t, err)
	return r
}

// request is orders', as it comes from the stream.
func request(change ...func(*events.ChargeRequested)) oncebox.Event {
	p := events.ChargeRequested{OrderID: uuid.NewString(), CustomerID: "customer-1", Amount: 10000, Currency: "USD"}
	for _, f := range change {
		f(&p)
	}
	e, err := events.New("default", 1, p)
	if err != nil {
		panic(err)
	}
	e.ID, e.Source, e.Time = uuid.NewString(), "orders", time.Now()
	return e
}

// column reads one column of text.
func (r *rig) column(sql string) []string {
	r.t.Helper()
	rows, err := r.pool.Query(context.Background(), sql)
	must(r.t, err)
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(r.t, err)
	return got
}

func (r *rig) want(what, sql string, want ...string) {
	r.t.Helper()
	if diff := cmp.Diff(strings.Join(want, "\n"), strings.Join(r.column(sql), "\n")); diff != "" {
		r.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

const (
	ledgerSQL = "SELECT account || ' ' || amount || ' ' || currency FROM ledger ORDER BY id"
	deadSQL   = "SELECT class FROM oncebox.dead_letter ORDER BY first_seen"
	outboxSQL = "SELECT topic || ' ' || version FROM oncebox.outbox ORDER BY seq"
)

func TestARequestIsChargedOnceAndAnswered(t *testing.T) { eachWay(t, aRequestIsChargedOnceAndAnswered) }

func aRequestIsChargedOnceAndAnswered(r *rig) {
	t := r.t
	e := request()
	for range 3 {
		must(t, r.handle(e))
	}
	r.want("ledger", ledgerSQL, "customer:customer-1 -10000 USD", "revenue 10000 USD")
	r.want("charges", "SELECT status || ' ' || amount FROM charge", "succeeded 10000")
	r.want("outbox", outboxSQL, "billing.charge.succeeded.v1 1")
	r.want("dead letters", deadSQL)
	var payload []byte
	var key, cause string
	must(t, r.pool.QueryRow(context.Background(), "SELECT payload, key, headers->>'ce-causationid' FROM oncebox.outbox").Scan(&payload, &key, &cause))
	var answer events.ChargeSucceeded
	must(t, json.Unmarshal(payload, &answer))
	if answer.OrderID != e.Key || key != e.Key || cause != e.ID || answer.Amount != 10000 {
		t.Errorf("the answer is %+v, key %s, cause %s", answer, key, cause)
	}
	r.want("charge ids", "SELECT id::text FROM charge", answer.ChargeID)

	var list struct{ Charges []billing.Charge }
	r.read("/v1/charges?order_id="+e.Key, &list)
	if len(list.Charges) != 1 || list.Charges[0].ID != answer.ChargeID || list.Charges[0].Status != billing.StatusSucceeded {
		t.Errorf("the API lists %+v", list)
	}
}

func TestAboveTheLimitIsDeclinedAndCostsNothing(t *testing.T) {
	eachWay(t, aboveTheLimitIsDeclinedAndCostsNothing)
}

func aboveTheLimitIsDeclinedAndCostsNothing(r *rig) {
	t := r.t
	must(t, r.handle(request(func(p *events.ChargeRequested) { p.Amount = limit })))
	must(t, r.handle(request(func(p *events.ChargeRequested) { p.Amount = limit + 1 })))
	r.want("charges", "SELECT status || ' ' || amount || ' ' || reason FROM charge ORDER BY amount",
		"succeeded 50000 ", "declined 50001 the amount is above the limit")
	r.want("ledger", ledgerSQL, "customer:customer-1 -50000 USD", "revenue 50000 USD")
	r.want("outbox", outboxSQL, "billing.charge.succeeded.v1 1", "billing.charge.declined.v1 1")
}

// Two requests of one order under two ids: the inbox cannot know, the last guard does, and says so.
func TestASecondRequestOfAnOrderIsADeadLetter(t *testing.T) {
	eachWay(t, aSecondRequestOfAnOrderIsADeadLetter)
}

func aSecondRequestOfAnOrderIsADeadLetter(r *rig) {
	t := r.t
	first := request()
	second := first
	second.ID = uuid.NewString()
	for _, e := range []oncebox.Event{first, second, second} {
		must(t, r.handle(e))
	}
	r.want("ledger", ledgerSQL, "customer:customer-1 -10000 USD", "revenue 10000 USD")
	r.want("outbox", outboxSQL, "billing.charge.succeeded.v1 1")
	r.want("dead letters", deadSQL, billing.ClassAlreadyCharged)
}

func TestAMalformedRequestIsADeadLetter(t *testing.T) { eachWay(t, aMalformedRequestIsADeadLetter) }

func aMalformedRequestIsADeadLetter(r *rig) {
	t := r.t
	bad := []oncebox.Event{
		request(func(p *events.ChargeRequested) { p.OrderID = "17" }),
		request(func(p *events.ChargeRequested) { p.Amount = 0 }),
		request(func(p *events.ChargeRequested) { p.Amount = -5 }),
		request(func(p *events.ChargeRequested) { p.Currency = "dollars" }),
		request(func(p *events.ChargeRequested) { p.CustomerID = "" }),
		request(func(p *events.ChargeRequested) { p.CustomerID = "a\x00b" }),
		request(), request(),
	}
	bad[6].Key = uuid.NewString()
	bad[7].Data = []byte(`{"amount": 1.5}`)
	want := make([]string, len(bad))
	for i, e := range bad {
		must(t, r.handle(e))
		want[i] = "malformed"
	}
	r.want("dead letters", deadSQL, want...)
	r.want("charges", "SELECT id::text FROM charge")
	r.want("outbox", outboxSQL)
}

func TestAGroupOfGoodAndBadOnes(t *testing.T) { eachWay(t, aGroupOfGoodAndBadOnes) }

func aGroupOfGoodAndBadOnes(r *rig) {
	var all, letters, ledger, tombstones []string
	var es []oncebox.Event
	for i := range 60 {
		e := request(func(p *events.ChargeRequested) { p.CustomerID, p.Amount = fmt.Sprintf("c%02d", i), int64(1+i) })
		all = append(all, fmt.Sprint("succeeded ", 1+i))
		ledger = append(ledger, fmt.Sprintf("customer:c%02d %d USD", i, -1-i), fmt.Sprintf("revenue %d USD", 1+i))
		es = append(es, e)
		if i%10 == 0 {
			bad, twice := request(func(p *events.ChargeRequested) { p.Amount = -1 }), e
			twice.ID = uuid.NewString()
			must(r.t, r.handle(e))
			es = append(es, bad, twice, e)
			letters = append(letters, billing.ClassAlreadyCharged, "malformed")
			tooLate := request()
			must(r.t, r.handle(cancellation(tooLate, 2)))
			es, tombstones = append(es, tooLate), append(tombstones, "cancelled 10000")
		}
	}
	r.together(es...)
	slices.Sort(letters)
	r.want("charges", "SELECT status || ' ' || amount FROM charge ORDER BY amount", append(all, tombstones...)...)
	r.want("ledger", "SELECT account || ' ' || amount || ' ' || currency FROM ledger ORDER BY abs(amount), account", ledger...)
	r.want("dead letters", "SELECT class FROM oncebox.dead_letter ORDER BY class", letters...)
	r.want("answers", "SELECT count(*)::text || topic FROM oncebox.outbox GROUP BY topic", "60"+events.TypeChargeSucceeded)
}

// The good ones of a group do not run again for the bad ones among them.
func TestEachOfAGroupIsHandedOverOnce(t *testing.T) {
	t.Parallel()
	var handed atomic.Int64
	r := rigOf(t, func(in *inbox.Inbox, s *billing.Service) (message.NoPublishHandlerFunc, error) {
		h := s.GroupHandler()
		return in.Group(func(ctx context.Context, tx pgx.Tx, es []oncebox.Event) []error {
			handed.Add(int64(len(es)))
			return h(ctx, tx, es)
		}, inbox.GroupConfig{Lanes: 1})
	})
	const n = 200
	es := make([]oncebox.Event, n)
	for i := range es {
		es[i] = request()
		switch i % 10 {
		case 1:
			es[i] = request(func(p *events.ChargeRequested) { p.Amount = -1 })
		case 2: // charged already
			must(t, r.handle(es[i]))
			es[i].ID = uuid.NewString()
		case 3: // cancelled already
			must(t, r.handle(cancellation(es[i], 2)))
		}
	}
	handed.Store(0)
	r.together(es...)
	if handed.Load() != n {
		t.Errorf("%d events were handed over for %d messages", handed.Load(), n)
	}
	r.want("charges", "SELECT status || ' ' || count(*) FROM charge GROUP BY status ORDER BY status", "cancelled 20", "succeeded 160")
	r.want("dead letters", "SELECT class || ' ' || count(*) FROM oncebox.dead_letter GROUP BY class ORDER BY class", "already_charged 20", "malformed 20")
	r.want("answers", "SELECT count(*)::text FROM oncebox.outbox", "160")
}

func TestAnotherServicesEventIsDone(t *testing.T) { eachWay(t, anotherServicesEventIsDone) }

func anotherServicesEventIsDone(r *rig) {
	t := r.t
	e := request()
	e.Type = events.TypeChargeSucceeded
	must(t, r.handle(e))
	r.want("dead letters", deadSQL)
	r.want("inbox", "SELECT state FROM oncebox.inbox", "done")
}

func TestTheLimitIsRequired(t *testing.T) {
	t.Parallel()
	if _, err := billing.New(nil, nil, billing.Config{}); err == nil {
		t.Error("New took a Config without a limit")
	}
}

// The ledger's foreign key is looked up for each row. On tables whose statistics say nothing yet it goes by an index of its own:
// one that begins with the tenant would walk all of the tenant's charges each time.
func TestAChargeReadsNoOtherOnes(t *testing.T) {
	t.Parallel()
	r := rigOf(t, ways["a group as a set"])
	for _, table := range []string{"charge", "ledger"} {
		_, err := r.pool.Exec(t.Context(), "ALTER TABLE "+table+" SET (autovacuum_enabled = false)")
		must(t, err)
	}
	const n, groups = 200, 10
	for range groups {
		es := make([]oncebox.Event, n)
		for i := range es {
			es[i] = request()
		}
		r.together(es...)
	}
	var scans, read int
	stacktest.Eventually(t, time.Minute, "the sessions have told what they read", func() (bool, error) {
		err := r.pool.QueryRow(t.Context(), `SELECT COALESCE(sum(idx_scan), 0), COALESCE(sum(idx_tup_read), 0) FROM pg_stat_user_indexes WHERE relname = 'charge'`).Scan(&scans, &read)
		return scans >= 2*n*groups, err
	})
	if read > 3*scans {
		t.Errorf("%d rows of charge's indexes were read in %d look-ups for %d charges", read, scans, n*groups)
	}
}
