package orders_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/orders"
)

// forgotten is a store of keys that was lost, as Redis may be.
func (r *rig) forgotten() {
	r.t.Helper()
	_, err := r.pool.Exec(r.t.Context(), "TRUNCATE oncebox.idempotency_keys")
	must(r.t, err)
}

func TestAKeyThatTheStoreForgotStillMakesNoSecondOrder(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	made, o := r.post("key-1")
	r.do("PUT", "/v1/orders/"+o.ID, changed, "If-Match", "*")
	must(t, r.settle(answer(events.ChargeSucceeded{OrderID: o.ID, ChargeID: uuid.NewString(), Amount: 10000, Currency: "USD"})))
	r.forgotten()
	again, _ := r.post("key-1")
	if again.status != made.status || again.body != made.body || again.header.Get("Location") != made.header.Get("Location") ||
		again.header.Get("ETag") != made.header.Get("ETag") || again.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("the retry got %d %v %s, the first %d %s", again.status, again.header, again.body, made.status, made.body)
	}
	r.forgotten()
	r.wantProblem(r.do("POST", "/v1/orders", strings.Replace(body, "10000", "20000", 1), "Idempotency-Key", "key-1"),
		http.StatusUnprocessableEntity, "key-reused")
	r.wantRows(1, 1)
}

// A retry may come to this release for an order that the one before took, and the other way round.
func TestAnOrderOfTheReleaseBeforeIsFoundByItsKey(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	made, _ := r.post("key-1")
	r.forgotten()
	tag, err := r.pool.Exec(t.Context(), `UPDATE orders SET idem_request = NULL
		WHERE idem_fingerprint = sha256($1) AND idem_key = sha256('key-1')`, []byte(body)) // what that release wrote
	must(t, err)
	if tag.RowsAffected() != 1 {
		t.Fatal("the release before would not know the order by its key")
	}
	if again, _ := r.post("key-1"); again.status != http.StatusCreated || again.body != made.body {
		t.Errorf("the retry got %d %s", again.status, again.body)
	}
	r.forgotten()
	r.wantProblem(r.do("POST", "/v1/orders", body+" ", "Idempotency-Key", "key-1"), http.StatusUnprocessableEntity, "key-reused")
	r.wantRows(1, 1)
}

func TestAnExpiredKeyNamesAnotherOrder(t *testing.T) {
	t.Parallel()
	for name, clean := range map[string]bool{"cleaned": true, "found expired": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			_, first := r.post("key-1")
			_, err := r.pool.Exec(t.Context(), "UPDATE oncebox.idempotency_keys SET expires_at = clock_timestamp()")
			must(t, err)
			if clean {
				n, err := r.store.Clean(t.Context())
				must(t, err)
				if n != 1 {
					t.Errorf("%d keys were cleaned away", n)
				}
			}
			made, second := r.post("key-1")
			if made.status != http.StatusCreated || second.ID == first.ID || made.header.Get("Idempotent-Replayed") != "" {
				t.Errorf("got %d %s", made.status, made.body)
			}
			r.wantRows(2, 2)
		})
	}
}

// A refusal that is kept has done nothing, and one that is not kept neither.
func TestAPutAndADeleteUnderAKeyAreDoneOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, o := r.post("key-1")
	path := "/v1/orders/" + o.ID
	same := func(first, again reply) {
		t.Helper()
		if again.status != first.status || again.body != first.body || again.header.Get("ETag") != first.header.Get("ETag") ||
			again.header.Get("Idempotent-Replayed") != "true" || first.header.Get("Idempotent-Replayed") != "" {
			t.Errorf("first %d %v %s, again %d %v %s", first.status, first.header, first.body, again.status, again.header, again.body)
		}
	}
	put := func() reply { return r.do("PUT", path, changed, "If-Match", `"1"`, "Idempotency-Key", "put-1") }
	first := put()
	r.do("PUT", path, strings.Replace(changed, "three", "four", 1), "If-Match", `"2"`)
	same(first, put()) // though its condition does not hold any more, and the order is another by now
	stale := func() reply { return r.do("PUT", path, changed, "If-Match", `"1"`, "Idempotency-Key", "put-2") }
	refused := stale()
	r.wantProblem(refused, http.StatusPreconditionFailed, "precondition-failed")
	same(refused, stale())
	r.wantProblem(r.do("PUT", path, changed, "If-Match", `"3"`, "Idempotency-Key", "put-2"), http.StatusUnprocessableEntity, "key-reused")
	r.wantProblem(r.do("PUT", path, changed, "Idempotency-Key", "put-3"), http.StatusPreconditionRequired, "precondition-required")

	remove := func() reply { return r.do("DELETE", path, "", "Idempotency-Key", "delete-1") }
	removed := remove()
	same(removed, remove())
	var now orders.Order
	must(t, json.Unmarshal([]byte(removed.body), &now))
	if now.Version != 4 || now.Description != "four tickets" || now.DeletedAt == nil {
		t.Errorf("in the end the order is %+v", now)
	}
	if topics := r.topics(); topics != "orders.charge.requested.v1 1, orders.order.cancelled.v1 4" {
		t.Errorf("the events are %s", topics)
	}
}

// What PUT and DELETE promise without a key, since the resource itself says what was done.
func TestPutAndDeleteAreIdempotentByThemselves(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	order := func(t *testing.T) (*rig, orders.Order) {
		r := r.at(t)
		_, o := r.post(t.Name())
		return r, o
	}
	events := func(o orders.Order) (n int) {
		must(t, r.pool.QueryRow(t.Context(), "SELECT count(*) FROM oncebox.outbox WHERE key = $1", o.ID).Scan(&n))
		return n
	}
	t.Run("delete-2", func(t *testing.T) {
		r, o := order(t)
		first, again := r.do("DELETE", "/v1/orders/"+o.ID, ""), r.do("DELETE", "/v1/orders/"+o.ID, "")
		if first.status != http.StatusOK || again.status != http.StatusOK || again.body != first.body || !strings.Contains(first.body, "deleted_at") {
			t.Errorf("first %d %s, again %d %s", first.status, first.body, again.status, again.body)
		}
		if n := events(o); n != 2 {
			t.Errorf("%d events, want the request for the charge and one cancellation", n)
		}
	})
	t.Run("delete-unknown", func(t *testing.T) {
		r, o := order(t)
		unknown := r.do("DELETE", "/v1/orders/"+uuid.NewString(), "")
		r.wantProblem(unknown, http.StatusNotFound, "not-found")
		// Who may do nothing with it is told the same as if it were not there: which of the two it is, is not for them to know.
		foreign := r.do("DELETE", "/v1/orders/"+o.ID, "", "Tenant", "globex")
		if foreign.status != unknown.status || foreign.body != unknown.body || r.get(o.ID).DeletedAt != nil {
			t.Errorf("of another tenant's order: %d %s", foreign.status, foreign.body)
		}
	})
	t.Run("get-deleted", func(t *testing.T) {
		r, o := order(t)
		deleted := r.do("DELETE", "/v1/orders/"+o.ID, "")
		if got := r.do("GET", "/v1/orders/"+o.ID, ""); got.status != http.StatusOK || got.body != deleted.body || r.get(o.ID).DeletedAt == nil {
			t.Errorf("GET shows %d %s", got.status, got.body)
		}
		if list := r.do("GET", "/v1/orders?limit=200", ""); strings.Contains(list.body, o.ID) {
			t.Error("the list shows a deleted order")
		}
		if list := r.do("GET", "/v1/orders?limit=200&show_deleted=true", ""); !strings.Contains(list.body, o.ID) {
			t.Error("the list of all does not show it")
		}
	})
	t.Run("put-same-body-2", func(t *testing.T) {
		r, o := order(t)
		first := r.do("PUT", "/v1/orders/"+o.ID, changed, "If-Match", `"1"`)
		again := r.do("PUT", "/v1/orders/"+o.ID, changed, "If-Match", `"1"`)
		if first.status != http.StatusOK || again.status != http.StatusOK || again.body != first.body || again.header.Get("ETag") != `"2"` {
			t.Errorf("first %d %s, again %d %s", first.status, first.body, again.status, again.body)
		}
		if n := events(o); n != 1 {
			t.Errorf("%d events, want the request for the charge alone", n)
		}
		r.wantProblem(r.do("PUT", "/v1/orders/"+o.ID, changed, "If-None-Match", "*"), http.StatusPreconditionFailed, "precondition-failed")
	})
	t.Run("stale-if-match", func(t *testing.T) {
		r, o := order(t)
		r.wantProblem(r.do("PUT", "/v1/orders/"+o.ID, changed, "If-Match", `"9"`), http.StatusPreconditionFailed, "precondition-failed")
		r.wantProblem(r.do("PUT", "/v1/orders/"+o.ID, changed), http.StatusPreconditionRequired, "precondition-required")
		if now := r.get(o.ID); now != o {
			t.Errorf("the order is %+v, was %+v", now, o)
		}
	})
}
