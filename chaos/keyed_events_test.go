package chaos

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/contract"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// messages are all of a stream.
func (s *system) messages(t testing.TB, name string) (all []*jetstream.RawStreamMsg) {
	t.Helper()
	stream, err := s.js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(1); seq <= stream.CachedInfo().State.LastSeq; seq++ {
		m, err := stream.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	return all
}

// ofType are the messages of one type.
func ofType(all []*jetstream.RawStreamMsg, typ string) (some []*jetstream.RawStreamMsg) {
	for _, m := range all {
		if m.Subject == typ {
			some = append(some, m)
		}
	}
	return some
}

const aboveTheLimit = `{"customer_id":"ada","amount":1000000000000,"currency":"EUR","description":"an island"}`

// Invariant: a request under a key has the events of one request, each as the contract has it, however often it is sent, and one
// that is rolled back has none.
func TestARequestUnderAKeyHasItsEventsOnce(t *testing.T) {
	t.Parallel()
	s := startSystem(t, nil, nil)
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	send := func(t testing.TB, body string) answer {
		t.Helper()
		a, err := s.orders.ask(t.Context(), http.MethodPost, "/v1/orders", body, "Idempotency-Key", t.Name(),
			"traceparent", "00-"+trace+"-00f067aa0ba902b7-01")
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	settled := func(t testing.TB) (toBilling, toOrders []*jetstream.RawStreamMsg) {
		t.Helper()
		stacktest.Eventually(t, patience, "no order is pending, and all is published", func() (bool, error) {
			return !one[bool](t, s.orders.db, "SELECT EXISTS (SELECT FROM orders WHERE status = 'pending')") &&
				s.lastSeq(t, events.OrdersStream) == outboxRows(t, s.orders) && s.lastSeq(t, events.BillingStream) == outboxRows(t, s.billing), nil
		})
		return s.messages(t, events.OrdersStream), s.messages(t, events.BillingStream)
	}
	t.Run("one-create", func(t *testing.T) {
		first := send(t, anOrder)
		for range 3 {
			if again := send(t, anOrder); again.header.Get("Idempotent-Replayed") != "true" || string(again.body) != string(first.body) {
				t.Errorf("again: %d %s", again.status, again.body)
			}
		}
		toBilling, _ := settled(t)
		ids := all(t, s.orders.db, "SELECT id::text FROM oncebox.outbox", pgx.RowTo[string])
		if len(toBilling) != 1 || len(ids) != 1 {
			t.Fatalf("%d messages of %d outbox rows, want 1 of 1", len(toBilling), len(ids))
		}
		h := toBilling[0].Header // by exact names: Get would, too, but for the case of a letter
		if h["ce-id"] == nil || h["ce-id"][0] != ids[0] || h.Get(jetstream.MsgIDHeader) != ids[0] {
			t.Errorf("the ids are %v and %s, want %s", h["ce-id"], h.Get(jetstream.MsgIDHeader), ids[0])
		}
		for name := range h {
			if strings.HasPrefix(strings.ToLower(name), "ce-") && name != strings.ToLower(name) {
				t.Errorf("the header %s is not in lower case", name)
			}
		}
	})
	t.Run("charge-declined-published-for-retried-http-replay", func(t *testing.T) {
		send(t, aboveTheLimit)
		settled(t)
		for range 3 {
			if again := send(t, aboveTheLimit); again.header.Get("Idempotent-Replayed") != "true" {
				t.Errorf("again: %d %s", again.status, again.body)
			}
		}
		toBilling, toOrders := settled(t)
		if n := len(ofType(toOrders, events.TypeChargeDeclined)); n != 1 || len(toBilling) != 2 {
			t.Errorf("%d declined charges of %d requests, want 1 of 2", n, len(toBilling))
		}
	})
	t.Run("rollback-of-the-http-tx", func(t *testing.T) {
		// The last moment at which a transaction can fail: when its handler has answered, and the answer is being kept.
		const on = `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
			CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()`
		exec := func(sql string) {
			t.Helper()
			if _, err := s.orders.db.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		rows := outboxRows(t, s.orders)
		exec(on)
		if a := send(t, anOrder); a.status < 500 {
			t.Errorf("a request that cannot be committed is answered %d %s", a.status, a.body)
		}
		exec("DROP TRIGGER refuse ON orders")
		if n := outboxRows(t, s.orders); n != rows {
			t.Errorf("it left %d events", n-rows)
		}
		if a := send(t, anOrder); a.status != http.StatusCreated || a.header.Get("Idempotent-Replayed") != "" {
			t.Errorf("its retry is answered %d %s", a.status, a.body)
		}
		toBilling, _ := settled(t)
		if n := uint64(len(toBilling)); n != rows+1 {
			t.Errorf("%d messages, want %d: the second try's and no more", n, rows+1)
		}
	})
	toBilling, toOrders := settled(t)
	every := append(toBilling, toOrders...)
	if len(every) != 6 {
		t.Fatalf("%d messages, want three requests and their answers", len(every))
	}
	t.Run("all-required-ce-present", func(t *testing.T) {
		printable := regexp.MustCompile(`^[!-~]+$`) // what is not is escaped
		for _, m := range every {
			for _, name := range []string{"ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time", "ce-partitionkey", "ce-tenantid", "ce-sequence"} {
				if v := m.Header[name]; len(v) != 1 || !printable.MatchString(v[0]) {
					t.Errorf("%s of %s is %q", name, m.Subject, v)
				}
			}
			at := m.Header.Get("ce-time")
			if when, err := time.Parse(time.RFC3339Nano, at); err != nil || !strings.HasSuffix(at, "Z") || time.Since(when).Abs() > time.Hour {
				t.Errorf("ce-time of %s is %s", m.Subject, at)
			}
		}
	})
	t.Run("traceparent-of-http-request", func(t *testing.T) {
		for _, m := range every {
			if p := m.Header.Get("ce-traceparent"); !strings.HasPrefix(p, "00-"+trace+"-") {
				t.Errorf("ce-traceparent of %s is %s, want the request's trace", m.Subject, p)
			}
		}
	})
	t.Run("every-message-validates-against-asyncapi-json-schema", func(t *testing.T) {
		text, err := os.ReadFile("../events/asyncapi.yaml")
		if err != nil {
			t.Fatal(err)
		}
		doc, err := contract.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		types := map[string]string{} // names of messages by what they are of
		for name := range doc.Map("components", "messages") {
			types[fmt.Sprint(doc.At("components", "messages", name, "name"))] = name
		}
		for _, m := range every {
			headers := map[string]string{}
			for name, values := range m.Header {
				if !strings.HasPrefix(name, "Nats-") { // the broker's own
					headers[name] = values[0]
				}
			}
			h, err := json.Marshal(headers)
			if err != nil {
				t.Fatal(err)
			}
			name := types[m.Subject]
			for _, wrong := range append(doc.Check(doc.At("components", "messages", name, "headers"), h),
				doc.Check(doc.At("components", "messages", name, "payload"), m.Data)...) {
				t.Errorf("%s: %s", m.Subject, wrong)
			}
		}
	})
}
