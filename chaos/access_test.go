package chaos

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oncebox/oncebox/internal/stacktest"
)

const anOrder = `{"customer_id":"ada","amount":4200,"currency":"EUR","description":"tea"}`

// keysFile lets a key of each tenant in, which is named after it.
func keysFile(t testing.TB, tenants ...string) string {
	t.Helper()
	var lines strings.Builder
	for _, tenant := range tenants {
		fmt.Fprintf(&lines, "%s:shop:%x\n", tenant, sha256.Sum256([]byte("key-of-"+tenant)))
	}
	file := filepath.Join(t.TempDir(), "api-keys")
	if err := os.WriteFile(file, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Invariant: a tenant's orders and charges are nobody else's, and without a key there is nothing to be had.
func TestATenantSeesItsOwnOnly(t *testing.T) {
	t.Parallel()
	settings := map[string]string{"AUTH": "keys", "API_KEYS_FILE": keysFile(t, "acme", "bolt")}
	s := startSystem(t, settings, settings)
	as := func(tenant string) []string { return []string{"Authorization", "Bearer key-of-" + tenant} }
	ask := func(svc *service, method, path, body string, header ...string) answer {
		t.Helper()
		a, err := svc.ask(t.Context(), method, path, body, header...)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	made := ask(s.orders, http.MethodPost, "/v1/orders", anOrder, append(as("acme"), "Idempotency-Key", "same")...)
	if made.status != http.StatusCreated {
		t.Fatalf("acme's order: %d %s", made.status, made.body)
	}
	path := made.header.Get("Location")
	var order struct{ ID string }
	if err := json.Unmarshal(made.body, &order); err != nil {
		t.Fatal(err)
	}
	s.settle(t)

	if a := ask(s.orders, http.MethodGet, path, "", as("acme")...); a.status != http.StatusOK || !strings.Contains(string(a.body), "paid") {
		t.Errorf("acme sees its order as %d %s", a.status, a.body)
	}
	foreign, unknown := ask(s.orders, http.MethodGet, path, "", as("bolt")...), ask(s.orders, http.MethodGet,
		"/v1/orders/01900000-0000-7000-8000-000000000000", "", as("bolt")...)
	if foreign.status != http.StatusNotFound || string(foreign.body) != string(unknown.body) {
		t.Errorf("bolt asks for acme's order and gets %d %s; for one that is not there %s", foreign.status, foreign.body, unknown.body)
	}
	charges := "/v1/charges?order_id=" + order.ID
	if a := ask(s.billing, http.MethodGet, charges, "", as("acme")...); !strings.Contains(string(a.body), order.ID) {
		t.Errorf("acme sees its charges as %d %s", a.status, a.body)
	}
	if a := ask(s.billing, http.MethodGet, charges, "", as("bolt")...); strings.Contains(string(a.body), order.ID) {
		t.Errorf("bolt sees acme's charges: %d %s", a.status, a.body)
	}
	// The same Idempotency-Key is another tenant's own.
	if a := ask(s.orders, http.MethodPost, "/v1/orders", anOrder, append(as("bolt"), "Idempotency-Key", "same")...); a.status != http.StatusCreated ||
		strings.Contains(string(a.body), order.ID) || a.header.Get("Idempotent-Replayed") != "" {
		t.Errorf("bolt's order with acme's Idempotency-Key: %d %s", a.status, a.body)
	}
	for name, a := range map[string]answer{
		"no key":         ask(s.orders, http.MethodPost, "/v1/orders", anOrder, "Idempotency-Key", "none"),
		"a wrong key":    ask(s.orders, http.MethodGet, path, "", "Authorization", "Bearer key-of-nobody"),
		"no key there":   ask(s.billing, http.MethodGet, charges, ""),
		"key in the URL": ask(s.orders, http.MethodGet, path+"?api_key=key-of-acme", ""),
	} {
		if a.status != http.StatusUnauthorized && a.status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	if n := one[int](t, s.orders.db, "SELECT count(*) FROM orders"); n != 2 {
		t.Errorf("%d orders, want acme's and bolt's", n)
	}
	for _, admin := range []string{"/metrics", "/readyz", "/healthz", "/debug/pprof/"} {
		if a := ask(s.orders, http.MethodGet, admin, "", as("acme")...); a.status != http.StatusNotFound {
			t.Errorf("%s on the public listener: %d", admin, a.status)
		}
	}
	s.settle(t)
	stacktest.Eventually(t, patience, "bolt's order is bolt's charge", func() (bool, error) {
		return one[int](t, s.billing.db, "SELECT count(*) FROM charge WHERE tenant_id = 'bolt'") == 1, nil
	})
}
