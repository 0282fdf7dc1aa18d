package service

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

func TestAWrongKeyStoreIsNamed(t *testing.T) {
	t.Parallel()
	must(t, KeyStore{Store: "postgres"}.validate())
	must(t, KeyStore{Store: "redis", RedisURL: "redis://x", Lease: time.Second}.validate())
	for name, k := range map[string]KeyStore{
		"REDIS_URL":         {Store: "redis", Lease: time.Second},
		"IDEMPOTENCY_LEASE": {Store: "redis", RedisURL: "redis://x", Lease: time.Millisecond},
	} {
		if err := k.validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want an error that names %s", err, name)
		}
	}
	_, _, _, err := KeyStore{Store: "redis", RedisURL: "http://user:secret@x"}.open(t.Context(), "orders", nil, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "REDIS_URL") || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}

func TestARedisThatMayForgetIsRefused(t *testing.T) {
	t.Parallel()
	server := stacktest.Redis(t, func(c *devstack.RedisConfig) { c.Settings = map[string]string{"maxmemory-policy": "allkeys-lru"} })
	k := KeyStore{Store: "redis", RedisURL: server.URL(), Lease: time.Second}
	if _, _, _, err := k.open(t.Context(), "orders", nil, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "noeviction") {
		t.Errorf("got %v", err)
	}
}

// An operator asks about a key without the token, and says what became of its request with it.
func TestAnOperatorResolvesAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	pool, err := pgxpool.New(t.Context(), "postgres://127.0.0.1:1/none") // nobody asks it
	must(t, err)
	t.Cleanup(pool.Close)
	k := KeyStore{Store: "redis", RedisURL: stacktest.Redis(t).URL(), Lease: time.Second}
	store, ping, closed, err := k.open(t.Context(), "billing", nil, log)
	must(t, err)
	must(t, ping(t.Context()))
	t.Cleanup(func() { must(t, closed(context.Background())) })
	keys, err := Keys(store, map[string]idempotency.Policy{http.MethodPost: {Required: true}}, func() {}, log, nil)
	must(t, err)
	ran := 0
	api := httptest.NewServer(keys(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		ran++
		http.Error(w, "nobody knows", http.StatusInternalServerError)
	})))
	t.Cleanup(api.Close)
	h := &health{pool: pool, keys: ping}
	admin := httptest.NewServer(writesNeed("the-admin-token!", h.routes(nil, nil, nil, store, &healer{})))
	t.Cleanup(admin.Close)

	const name, token = "Idempotency-Key", "Bearer the-admin-token!"
	state := func() string {
		t.Helper()
		_, _, body := ask(t, "GET", admin.URL+"/keys/?tenant=default", name, "key-1")
		var s struct{ State string }
		must(t, json.Unmarshal([]byte(body), &s))
		return s.State
	}
	if s := state(); s != "none" {
		t.Errorf("before the request its key is %s", s)
	}
	ask(t, "POST", api.URL, name, "key-1")
	if status, _, slug := ask(t, "POST", api.URL, name, "key-1"); status != http.StatusConflict || slug != "outcome-unknown" || ran != 1 {
		t.Errorf("the retry got %d %s, and %d ran", status, slug, ran)
	}
	if s := state(); s != "outcome-unknown" {
		t.Errorf("the key is %s", s)
	}
	put := func(header ...string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, admin.URL+"/keys/?tenant=default",
			strings.NewReader(`{"status":201,"location":"/v1/charges/7","body":"made"}`))
		must(t, err)
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := http.DefaultClient.Do(req)
		must(t, errors.Join(err, res.Body.Close()))
		return res.StatusCode
	}
	if status := put(name, "key-1"); status != http.StatusUnauthorized {
		t.Errorf("without the token: %d", status)
	}
	if status := put(name, "key-1", "Authorization", token); status != http.StatusNoContent {
		t.Errorf("with the token: %d", status)
	}
	if status, header, body := ask(t, "POST", api.URL, name, "key-1"); status != http.StatusCreated || body != "made" ||
		header.Get("Location") != "/v1/charges/7" || ran != 1 {
		t.Errorf("resolved, the retry got %d %v %s, and %d ran", status, header, body, ran)
	}
	if status := put(name, "key-1", "Authorization", token); status != http.StatusConflict {
		t.Errorf("what is known was resolved: %d", status)
	}
}
