package orders_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/internal/contract"
	"github.com/oncebox/oncebox/internal/service"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/orders"
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
	t         *testing.T
	pool      *pgxpool.Pool
	server    *httptest.Server
	service   *orders.Service
	store     *idempotency.Postgres
	described *contract.API // each answer is held to /openapi.json
	settle    func(oncebox.Event) error
}

const keepDeleted = time.Hour

func newRig(t *testing.T) *rig {
	t.Helper()
	pool := stacktest.Postgres(t, migrations.Outbox, migrations.Inbox, migrations.Idempotency, migrations.Orders)
	w, err := outbox.NewWriter(outbox.WriterConfig{Source: orders.Name})
	must(t, err)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	reg := prometheus.NewRegistry()
	s := orders.New(pool, w, orders.Config{Wake: func() {}, Registerer: reg, KeepDeleted: keepDeleted})
	store, err := idempotency.NewPostgres(pool, idempotency.PostgresConfig{Forget: s.Forget})
	must(t, err)
	keys, err := service.Keys(store, s.Keys(), func() {}, log, reg)
	must(t, err)
	server := httptest.NewServer(ofTenant(service.NewAPI(orders.Name, "test", log, reg, s.Routes, keys)))
	t.Cleanup(server.Close)
	described, err := contract.OpenAPI([]byte((&rig{t: t, server: server}).do("GET", "/openapi.json", "").body))
	must(t, err)
	in, err := inbox.New(pool, inbox.Config{Consumer: orders.Name, Logger: log})
	must(t, err)
	one, err := in.Group(s.GroupHandler(), inbox.GroupConfig{Max: 1})
	must(t, err)
	return &rig{t: t, pool: pool, server: server, service: s, store: store, described: described, settle: func(e oncebox.Event) error { return one(e.Message()) }}
}

// ofTenant takes the header Tenant for whose request it is, as authentication would tell.
func ofTenant(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if id := r.Header.Get("Tenant"); id != "" {
			r = r.WithContext(service.WithTenant(r.Context(), id))
		}
		api.ServeHTTP(w, r)
	})
}

// at is r for a test within the test.
func (r *rig) at(t *testing.T) *rig {
	inner := *r
	inner.t = t
	return &inner
}

type reply struct {
	status int
	header http.Header
	body   string
}

func (r *rig) do(method, path, body string, header ...string) reply {
	r.t.Helper()
	req, err := http.NewRequest(method, r.server.URL+path, strings.NewReader(body))
	must(r.t, err)
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	must(r.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	must(r.t, err)
	got := reply{res.StatusCode, res.Header, string(b)}
	r.wantDescribed(method, path, got)
	return got
}

// wantDescribed holds an answer to the API's own description.
func (r *rig) wantDescribed(method, path string, got reply) {
	r.t.Helper()
	if r.described == nil {
		return
	}
	for _, wrong := range r.described.Check(method, path, got.status, got.header, []byte(got.body)) {
		r.t.Errorf("%s %s is not as it is described: %s\n%s", method, path, wrong, got.body)
	}
}

const body = `{"customer_id":"customer-1","amount":10000,"currency":"USD","description":"two tickets"}`

func (r *rig) post(key string) (reply, orders.Order) {
	r.t.Helper()
	got := r.do("POST", "/v1/orders", body, "Idempotency-Key", key)
	var o orders.Order
	must(r.t, json.Unmarshal([]byte(got.body), &o))
	return got, o
}

// counts are the numbers of orders and of events in the outbox.
func (r *rig) wantRows(orders, events int) {
	r.t.Helper()
	var o, e int
	must(r.t, r.pool.QueryRow(context.Background(), "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM oncebox.outbox)").Scan(&o, &e))
	if o != orders || e != events {
		r.t.Errorf("%d orders and %d events, want %d and %d", o, e, orders, events)
	}
}

func TestAnOrderAndItsEventAreMadeTogether(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	made, o := r.post("key-1")
	if made.status != http.StatusCreated || made.header.Get("Location") != "/v1/orders/"+o.ID || made.header.Get("Idempotent-Replayed") != "" {
		t.Errorf("got %+v", made)
	}
	if got := r.do("GET", "/v1/orders/"+o.ID, ""); got.status != http.StatusOK || got.body != made.body {
		t.Errorf("GET answers %d %s, POST answered %s", got.status, got.body, made.body)
	}
	r.wantRows(1, 1)
	var topic, key, tenant string
	var version int64
	var payload []byte
	must(t, r.pool.QueryRow(context.Background(), "SELECT topic, key, tenant_id, version, payload FROM oncebox.outbox").Scan(&topic, &key, &tenant, &version, &payload))
	var data events.ChargeRequested
	must(t, json.Unmarshal(payload, &data))
	want := events.ChargeRequested{OrderID: o.ID, CustomerID: "customer-1", Amount: 10000, Currency: "USD", Description: "two tickets"}
	if topic != events.TypeChargeRequested || key != o.ID || tenant != "default" || version != 1 || data != want {
		t.Errorf("the event is %s of %s, tenant %s, version %d: %+v", topic, key, tenant, version, data)
	}
}

func TestARetryGetsTheFirstAnswerByteForByte(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first, o := r.post(`"key-1"`)
	must(t, r.settle(answer(events.ChargeSucceeded{OrderID: o.ID, ChargeID: uuid.NewString(), Amount: 10000, Currency: "USD"})))
	for _, key := range []string{`"key-1"`, "key-1", `"key-1";a=1`} { // the same key, however it is written
		again, _ := r.post(key)
		if again.status != first.status || again.body != first.body || again.header.Get("Location") != first.header.Get("Location") {
			t.Errorf("the retry with %s got %d %s, the first %d %s", key, again.status, again.body, first.status, first.body)
		}
		if again.header.Get("Idempotent-Replayed") != "true" {
			t.Error("the retry is not marked")
		}
	}
	r.wantRows(1, 1)
}

func TestAKeyWithAnotherRequestIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.post("key-1")
	got := r.do("POST", "/v1/orders", strings.Replace(body, "10000", "20000", 1), "Idempotency-Key", "key-1")
	r.wantProblem(got, http.StatusUnprocessableEntity, "key-reused")
	r.wantRows(1, 1)
}

func TestOneKeyAtOnceMakesOneOrder(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var wg sync.WaitGroup
	bodies := make([]string, 50)
	for i := range bodies {
		wg.Go(func() {
			got := r.do("POST", "/v1/orders", body, "Idempotency-Key", "key-1")
			for got.status == http.StatusConflict && t.Context().Err() == nil { // the first one takes longer than a duplicate waits
				r.wantProblem(got, http.StatusConflict, "in-progress")
				if got.header.Get("Retry-After") == "" {
					t.Error("it is not said when to come back")
				}
				got = r.do("POST", "/v1/orders", body, "Idempotency-Key", "key-1")
			}
			bodies[i] = fmt.Sprint(got.status, got.body)
		})
	}
	wg.Wait()
	for _, b := range bodies {
		if b != bodies[0] || !strings.HasPrefix(b, "201") {
			t.Errorf("got %s and %s", b, bodies[0])
		}
	}
	r.wantRows(1, 1)
}

func (r *rig) wantProblem(got reply, status int, slug string) {
	r.t.Helper()
	var p struct {
		Type   string
		Status int
	}
	if strings.Contains(got.body, "Go struct") || strings.Contains(got.body, "99999999999999999999") {
		r.t.Errorf("the problem tells of the inside, or repeats what was sent: %s", got.body)
	}
	if err := json.Unmarshal([]byte(got.body), &p); err != nil || got.status != status || p.Status != status ||
		p.Type != "urn:oncebox:problem:"+slug || got.header.Get("Content-Type") != "application/problem+json" {
		r.t.Errorf("got %d %s %s, want %d and a problem of type %s", got.status, got.header.Get("Content-Type"), got.body, status, slug)
	}
}

func TestBadKeysAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.wantProblem(r.do("POST", "/v1/orders", body), http.StatusBadRequest, "key-missing")
	for _, key := range []string{`""`, `"a`, `a"`, `"a"b`, "a b", "ü", strings.Repeat("k", 256), `"` + strings.Repeat("k", 256) + `"`, `"a\b"`, `"a b"`} {
		r.wantProblem(r.do("POST", "/v1/orders", body, "Idempotency-Key", key), http.StatusBadRequest, "key-invalid")
	}
	r.wantProblem(r.do("POST", "/v1/orders", body, "Idempotency-Key", "a", "Idempotency-Key", "a"), http.StatusBadRequest, "key-invalid")
	r.wantRows(0, 0)
	for i, key := range []string{strings.Repeat("k", 255), `"a,b"`, `"say\"a\""`, "8e03978e-40d5-43dd-bc93-6894a57f9324"} {
		if got := r.do("POST", "/v1/orders", body, "Idempotency-Key", key); got.status != http.StatusCreated {
			t.Errorf("key %s: %d %s", key, got.status, got.body)
		}
		r.wantRows(i+1, i+1)
	}
}

func TestBadOrdersAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for name, c := range map[string]struct {
		body   string
		status int
		slug   string
	}{
		"empty":                  {"", 400, "malformed"},
		"truncated":              {`{"customer_id":"c"`, 400, "malformed"},
		"null":                   {"null", 422, "invalid"},
		"array":                  {"[]", 422, "invalid"},
		"no amount":              {`{"customer_id":"c","currency":"USD"}`, 422, "invalid"},
		"zero":                   {`{"customer_id":"c","amount":0,"currency":"USD"}`, 422, "invalid"},
		"negative":               {`{"customer_id":"c","amount":-1,"currency":"USD"}`, 422, "invalid"},
		"fraction":               {`{"customer_id":"c","amount":1.5,"currency":"USD"}`, 422, "invalid"},
		"overflow":               {`{"customer_id":"c","amount":99999999999999999999,"currency":"USD"}`, 422, "invalid"},
		"text for a number":      {`{"customer_id":"c","amount":"1","currency":"USD"}`, 422, "invalid"},
		"currency in lower case": {`{"customer_id":"c","amount":1,"currency":"usd"}`, 422, "invalid"},
		"no customer":            {`{"customer_id":"","amount":1,"currency":"USD"}`, 422, "invalid"},
		"unknown field":          {`{"customer_id":"c","amount":1,"currency":"USD","x":1}`, 422, "invalid"},
		"too large":              {`{"customer_id":"c","amount":1,"currency":"USD","description":"` + strings.Repeat("x", 100_000) + `"}`, 413, "body-too-large"},
		"another case at once":   {`{"customer_id":"c","amount":1,"Amount":-5,"currency":"USD"}`, 422, "invalid"},
		"another case":           {`{"CUSTOMER_ID":"a\u0000b","amount":1,"currency":"USD"}`, 422, "invalid"},
		"NUL":                    {`{"customer_id":"a\u0000b","amount":1,"currency":"USD"}`, 422, "invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			r := r.at(t)
			r.wantProblem(r.do("POST", "/v1/orders", c.body, "Idempotency-Key", "key-"+uuid.NewString()), c.status, c.slug)
		})
	}
	r.wantRows(0, 0)
	r.wantProblem(r.do("GET", "/v1/orders/"+uuid.NewString(), ""), http.StatusNotFound, "not-found")
	r.wantProblem(r.do("GET", "/v1/orders/17", ""), http.StatusUnprocessableEntity, "invalid")
	r.wantProblem(r.do("GET", "/v1/orders/urn:uuid:"+uuid.NewString(), ""), http.StatusNotFound, "not-found")
	r.wantProblem(r.do("GET", "/nowhere", ""), http.StatusNotFound, "not-found")
	other := r.do("DELETE", "/v1/orders", "")
	r.wantProblem(other, http.StatusMethodNotAllowed, "method-not-allowed")
	if allow := other.header.Get("Allow"); allow != "GET, HEAD, POST" {
		t.Errorf("Allow is %q", allow)
	}
}

// answer is billing's, as it comes from the stream.
func answer(p events.Payload) oncebox.Event {
	e, err := events.New("default", 1, p)
	if err != nil {
		panic(err)
	}
	e.ID, e.Source = uuid.NewString(), "billing"
	return e
}

func TestAnswersSettleAnOrderOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	get := func(id string) (o orders.Order) {
		must(t, json.Unmarshal([]byte(r.do("GET", "/v1/orders/"+id, "").body), &o))
		return o
	}
	_, paid := r.post("key-1")
	charge := uuid.NewString()
	succeeded := answer(events.ChargeSucceeded{OrderID: paid.ID, ChargeID: charge, Amount: 10000, Currency: "USD"})
	late := answer(events.ChargeDeclined{OrderID: paid.ID, ChargeID: charge, Amount: 10000, Currency: "USD", Reason: "late"})
	for _, e := range []oncebox.Event{succeeded, succeeded, late} {
		must(t, r.settle(e))
	}
	if o := get(paid.ID); o.Status != orders.StatusPaid || o.Version != 2 || o.ChargeID != charge || o.DeclineReason != "" {
		t.Errorf("the paid order is %+v", o)
	}
	_, declined := r.post("key-2")
	must(t, r.settle(answer(events.ChargeDeclined{OrderID: declined.ID, ChargeID: charge, Amount: 10000, Currency: "USD", Reason: "too much"})))
	if o := get(declined.ID); o.Status != orders.StatusDeclined || o.Version != 2 || o.DeclineReason != "too much" {
		t.Errorf("the declined order is %+v", o)
	}
	must(t, r.settle(answer(events.ChargeSucceeded{OrderID: uuid.NewString(), ChargeID: charge})))
	must(t, r.settle(answer(events.ChargeSucceeded{OrderID: paid.ID, ChargeID: "17"})))
	rows, err := r.pool.Query(context.Background(), "SELECT class FROM oncebox.dead_letter ORDER BY first_seen")
	must(t, err)
	classes, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(t, err)
	if diff := cmp.Diff([]string{"no_such_order", "malformed"}, classes); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
}

// An answer that names another amount than the order's is a dead letter: it neither pays nor declines, and the right one still does.
func TestAnAnswerAboutAnotherAmountSettlesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, o := r.post("key-1")
	charge := uuid.NewString()
	for _, wrong := range []events.Payload{
		events.ChargeSucceeded{OrderID: o.ID, ChargeID: charge, Amount: 1, Currency: "USD"},
		events.ChargeSucceeded{OrderID: o.ID, ChargeID: charge, Amount: 10000, Currency: "EUR"},
		events.ChargeDeclined{OrderID: o.ID, ChargeID: charge, Amount: 10001, Currency: "USD", Reason: "no"},
		events.ChargeRefunded{OrderID: o.ID, ChargeID: charge, Amount: -10000, Currency: "USD"},
	} {
		must(t, r.settle(answer(wrong)))
	}
	if now := r.get(o.ID); now != o {
		t.Errorf("the order is %+v, want it as it was made", now)
	}
	rows, err := r.pool.Query(t.Context(), "SELECT class FROM oncebox.dead_letter")
	must(t, err)
	classes, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(t, err)
	if diff := cmp.Diff([]string{"other_amount", "other_amount", "other_amount", "other_amount"}, classes); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
	must(t, r.settle(answer(events.ChargeSucceeded{OrderID: o.ID, ChargeID: charge, Amount: 10000, Currency: "USD"})))
	if now := r.get(o.ID); now.Status != orders.StatusPaid {
		t.Errorf("the order is %s behind the right answer, want paid", now.Status)
	}
}
