package billing_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/oncebox/oncebox/billing"
)

const direct = `{"customer_id":"customer-1","amount":2500,"currency":"USD","description":"a book"}`

// named is a direct charge that its client calls ref.
func named(ref string) string {
	return strings.Replace(direct, "}", fmt.Sprintf(`,"ref_id":%q}`, ref), 1)
}

func (r *rig) wantCharge(got reply) (c billing.Charge) {
	r.t.Helper()
	must(r.t, json.Unmarshal([]byte(got.body), &c))
	if got.status != http.StatusCreated || got.header.Get("Location") != "/v1/charges/"+c.ID {
		r.t.Errorf("got %d %v %s", got.status, got.header, got.body)
	}
	return c
}

func (r *rig) wantSlug(got reply, status int, slug string) {
	r.t.Helper()
	if got.status != status || !strings.Contains(got.body, `"type":"urn:oncebox:problem:`+slug+`"`) {
		r.t.Errorf("got %d %s, want %d %s", got.status, got.body, status, slug)
	}
}

func (r *rig) wantReplay(first, again reply) {
	r.t.Helper()
	if again.status != first.status || again.body != first.body || again.header.Get("Location") != first.header.Get("Location") ||
		again.header.Get("Idempotent-Replayed") != "true" || first.header.Get("Idempotent-Replayed") != "" {
		r.t.Errorf("first %d %v %s, again %d %v %s", first.status, first.header, first.body, again.status, again.header, again.body)
	}
}

var oneCharge = []string{"customer:customer-1 -2500 USD", "revenue 2500 USD"}

func TestADirectChargeIsMadeOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.send("POST", "/v1/charges", direct, "Idempotency-Key", "key-1")
	c := r.wantCharge(first)
	r.wantReplay(first, r.send("POST", "/v1/charges", direct, "Idempotency-Key", `"key-1"`))
	r.wantSlug(r.send("POST", "/v1/charges", strings.Replace(direct, "2500", "2600", 1), "Idempotency-Key", "key-1"),
		http.StatusUnprocessableEntity, "key-reused")
	r.want("ledger", ledgerSQL, oneCharge...)
	r.want("outbox", outboxSQL) // events tell of orders
	if got := r.send("GET", "/v1/charges/"+c.ID, ""); got.body != first.body || c.Status != billing.StatusSucceeded || c.OrderID != "" {
		t.Errorf("GET shows %s, POST answered %s", got.body, first.body)
	}
}

func TestTheReferenceInABodyIsItsKey(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.send("POST", "/v1/charges", named("invoice-7"))
	if c := r.wantCharge(first); c.RefID != "invoice-7" {
		t.Errorf("the charge is %+v", c)
	}
	r.wantReplay(first, r.send("POST", "/v1/charges", named("invoice-7")))
	r.wantReplay(first, r.send("POST", "/v1/charges", named("invoice-7"), "Idempotency-Key", `"invoice-7"`)) // both, and the same
	r.wantSlug(r.send("POST", "/v1/charges", named("invoice-7"), "Idempotency-Key", "invoice-8"), http.StatusBadRequest, "key-invalid")
	r.wantSlug(r.send("POST", "/v1/charges", named("invoice 7")), http.StatusBadRequest, "key-invalid")
	r.wantSlug(r.send("POST", "/v1/charges", named(strings.Repeat("7", 256))), http.StatusBadRequest, "key-invalid")
	r.wantSlug(r.send("POST", "/v1/charges", direct), http.StatusBadRequest, "key-missing")
	r.wantSlug(r.send("POST", "/v1/charges", named("")), http.StatusBadRequest, "key-missing")
	r.want("ledger", ledgerSQL, oneCharge...)
}

func TestDirectChargesAtOnceAreOne(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var wg sync.WaitGroup
	got := make([]reply, 20)
	for i := range got {
		wg.Go(func() {
			for got[i].status == 0 || got[i].status == http.StatusConflict && t.Context().Err() == nil { // in progress
				got[i] = r.send("POST", "/v1/charges", named("invoice-7"))
			}
		})
	}
	wg.Wait()
	for _, g := range got {
		if g.status != http.StatusCreated || g.body != got[0].body {
			t.Errorf("got %d %s and %s", g.status, g.body, got[0].body)
		}
	}
	r.want("ledger", ledgerSQL, oneCharge...)
}

func TestADeclinedDirectChargeIsDeclinedAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	above := strings.Replace(direct, "2500", fmt.Sprint(limit+1), 1)
	first := r.send("POST", "/v1/charges", above, "Idempotency-Key", "key-1")
	r.wantSlug(first, http.StatusPaymentRequired, "declined")
	r.wantReplay(first, r.send("POST", "/v1/charges", above, "Idempotency-Key", "key-1"))
	r.want("charges", "SELECT status FROM charge")
	r.want("ledger", ledgerSQL)
}

// The unique key on the charge is what stops a second one where the store of keys has forgotten the first.
func TestAKeyThatTheStoreForgotStillMakesNoSecondCharge(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	forget := func() {
		t.Helper()
		_, err := r.pool.Exec(t.Context(), "TRUNCATE oncebox.idempotency_keys")
		must(t, err)
	}
	first := r.send("POST", "/v1/charges", direct, "Idempotency-Key", "key-1")
	forget()
	r.wantReplay(first, r.send("POST", "/v1/charges", direct, "Idempotency-Key", "key-1"))
	forget()
	r.wantSlug(r.send("POST", "/v1/charges", strings.Replace(direct, "2500", "2600", 1), "Idempotency-Key", "key-1"),
		http.StatusUnprocessableEntity, "key-reused")
	r.want("ledger", ledgerSQL, oneCharge...)
}

func TestAnExpiredKeyChargesAnewAndAReferenceNever(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.send("POST", "/v1/charges", direct, "Idempotency-Key", "key-1")
	ref := r.send("POST", "/v1/charges", named("invoice-7"))
	_, err := r.pool.Exec(t.Context(), "UPDATE oncebox.idempotency_keys SET expires_at = clock_timestamp()")
	must(t, err)
	if n, err := r.store.Clean(t.Context()); err != nil || n != 2 {
		t.Errorf("%d keys were cleaned away: %v", n, err)
	}
	if c := r.wantCharge(r.send("POST", "/v1/charges", direct, "Idempotency-Key", "key-1")); first.header.Get("Location") == "/v1/charges/"+c.ID {
		t.Errorf("an expired key is answered with %+v", c)
	}
	r.wantReplay(ref, r.send("POST", "/v1/charges", named("invoice-7")))
	r.want("charges", "SELECT count(*)::text FROM charge", "3")
}
