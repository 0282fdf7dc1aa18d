package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// Invariant: whatever happens, at whatever level, no log has a request's or an event's content, an idempotency key, an API key or
// a password in it. Each is a canary here, and goes ways on which something fails.
func TestLogsTellNoSecrets(t *testing.T) {
	t.Parallel()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("canary-admin-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{"AUTH": "keys", "API_KEYS_FILE": keysFile(t, "canary"), "LOG_LEVEL": "DEBUG", "ADMIN_TOKEN_FILE": token}
	s := startSystem(t, settings, settings)
	body := func(amount string) string {
		return fmt.Sprintf(`{"customer_id":"canary-customer","amount":%s,"currency":"EUR","description":"canary-description"}`, amount)
	}
	canaries := []string{"canary-customer", "canary-description", "canary-idem", "key-of-canary", "canary-wrong-key", "canary-in-query",
		"canary-payload", "canary-header", "canary-admin-token", natsPassword("orders"), natsPassword("billing")}
	for _, role := range []string{s.orders.owner, s.orders.app, s.orders.relay, s.billing.owner, s.billing.app, s.billing.relay} {
		u, err := url.Parse(role)
		if err != nil {
			t.Fatal(err)
		}
		password, _ := u.User.Password()
		canaries = append(canaries, password)
	}

	post := func(want int, path, body, key, idem string) {
		t.Helper()
		a, err := s.orders.ask(t.Context(), http.MethodPost, path, body, "Authorization", "Bearer "+key, "Idempotency-Key", idem, "X-Other", "canary-header")
		if err != nil || a.status != want {
			t.Errorf("%d %s (%v), want %d", a.status, a.body, err, want)
		}
	}
	post(201, "/v1/orders", body("4200"), "key-of-canary", "canary-idem")
	post(422, "/v1/orders", body("4300"), "key-of-canary", "canary-idem")
	post(422, "/v1/orders", body(`"canary-payload"`), "key-of-canary", "canary-idem-2")
	post(400, "/v1/orders", body("4200"), "key-of-canary", "canary-idem with spaces")
	post(401, "/v1/orders", body("4200"), "canary-wrong-key", "canary-idem-3")
	post(400, "/v1/orders?token=canary-in-query", body("4200"), "key-of-canary", "canary-idem-4")
	post(404, "/v1/nowhere", body("4200"), "key-of-canary", "canary-idem-5")
	s.settle(t)

	// Events that cannot be handled: no JSON, no sense, no event.
	nc := stacktest.Connect(t, s.nats, as(tester)...)
	for i, data := range []string{`canary-payload`, `{"order_id":"canary-payload"}`, `{"order_id":"k","amount":0,"customer_id":"canary-customer"}`,
		`{"order_id":"01900000-0000-7000-8000-000000000000","amount":0,"customer_id":"canary-customer","currency":"canary-payload"}`} {
		m := &nats.Msg{Subject: events.TypeChargeRequested, Data: []byte(data), Header: nats.Header{
			"ce-id": {fmt.Sprintf("01900000-0000-7000-8000-00000000000%d", i)}, "ce-source": {"orders"}, "ce-specversion": {"1.0"},
			"ce-type": {events.TypeChargeRequested}, "ce-partitionkey": {"01900000-0000-7000-8000-000000000000"}, "x-other": {"canary-header"}}}
		if i == 0 {
			m.Header = nats.Header{"x-other": {"canary-header"}}
		}
		if _, err := s.js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	nc.Close()
	stacktest.Eventually(t, patience, "they are dead letters", func() (bool, error) {
		return one[int](t, s.billing.db, "SELECT count(*) FROM oncebox.dead_letter") == 4, nil
	})
	// Outages of both servers in the middle of a request.
	release := s.orders.hold(t, "LOCK TABLE orders IN SHARE MODE")
	cut := make(chan answer, 1)
	go func() {
		a, err := s.orders.ask(context.WithoutCancel(t.Context()), http.MethodPost, "/v1/orders", body("4400"),
			"Authorization", "Bearer key-of-canary", "Idempotency-Key", "canary-idem-6")
		if err != nil {
			a.body = []byte(err.Error())
		}
		cut <- a
	}()
	stacktest.Eventually(t, patience, "the request waits for the lock", func() (bool, error) {
		return s.orders.blocked(t, "%INSERT INTO orders%") == 1, nil
	})
	s.orders.endSessions(t)
	if a := <-cut; a.status != http.StatusServiceUnavailable {
		t.Errorf("the request that was cut is answered %d %s", a.status, a.body)
	}
	release()
	if err := s.nats.Restart(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	s.waitConnected(t, true)
	for _, svc := range []*service{s.orders, s.billing} {
		svc.terminate(t)()
		for name, value := range map[string]string{"DATABASE_URL": svc.app + "&connect_timeout=never", "LANES": "many"} {
			was := maps.Clone(svc.env)
			svc.set(map[string]string{name: value})
			out, err := svc.run(t)
			if err == nil || !strings.Contains(out, "error") {
				t.Errorf("%s starts with %s=%s", svc.name, name, value)
			}
			if _, err := svc.log.WriteString(out); err != nil {
				t.Fatal(err)
			}
			svc.env = was
		}
	}

	for _, svc := range []*service{s.orders, s.billing} {
		log, err := os.ReadFile(svc.log.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, canary := range canaries {
			if i := strings.Index(string(log), canary); i >= 0 {
				t.Errorf("%s's log has %q: %s", svc.name, canary, log[max(0, i-200):min(len(log), i+100)])
			}
		}
		lines := strings.Split(strings.TrimSpace(string(log)), "\n")
		if len(lines) < 20 {
			t.Errorf("%s's log has %d lines: the run was not logged", svc.name, len(lines))
		}
		for _, line := range lines {
			if !json.Valid([]byte(line)) && !strings.HasPrefix(line, svc.name+": error: ") {
				t.Errorf("%s's log has a line that is no JSON: %s", svc.name, line)
			}
		}
	}
}
