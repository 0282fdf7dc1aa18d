package orders_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/orders"
)

// What is another tenant's is not there: neither to look at, nor to change, nor by its key or its cursor, nor for an answer.
func TestATenantSeesItsOwnOrdersOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, first := r.post("key-1")
	_, o := r.post("key-2")
	path, theirs := "/v1/orders/"+o.ID, []string{"Tenant", "globex"}
	as := func(headers ...string) []string { return append(headers, theirs...) }
	r.wantProblem(r.do("GET", path, "", theirs...), http.StatusNotFound, "not-found")
	r.wantProblem(r.do("PUT", path, changed, as("If-Match", "*")...), http.StatusNotFound, "not-found")
	r.wantProblem(r.do("PUT", path, changed, as("If-None-Match", "*")...), http.StatusNotFound, "not-found")
	r.wantProblem(r.do("DELETE", path, "", theirs...), http.StatusNotFound, "not-found")
	cursor := r.list("limit=1").NextCursor
	for _, query := range []string{"", "?show_deleted=true", "?status=pending", "?limit=1&cursor=" + cursor} {
		if got := r.do("GET", "/v1/orders"+query, "", theirs...); got.body != `{"orders":[]}`+"\n" {
			t.Errorf("%s lists %s", query, got.body)
		}
	}
	r.wantRows(2, 2)

	// The same key is another one's.
	made := r.do("POST", "/v1/orders", body, as("Idempotency-Key", "key-1")...)
	var other orders.Order
	must(t, json.Unmarshal([]byte(made.body), &other))
	if made.status != http.StatusCreated || made.header.Get("Idempotent-Replayed") != "" || other.ID == first.ID {
		t.Errorf("another tenant's key: %d %v %s", made.status, made.header, made.body)
	}
	r.wantRows(3, 3)
	var tenants string
	must(t, r.pool.QueryRow(context.Background(), "SELECT string_agg(tenant_id, ' ' ORDER BY seq) FROM oncebox.outbox").Scan(&tenants))
	if tenants != "default default globex" {
		t.Errorf("the events are of %s", tenants)
	}

	forged := answer(events.ChargeSucceeded{OrderID: o.ID, ChargeID: uuid.NewString(), Amount: 10000, Currency: "USD"})
	forged.TenantID = "globex"
	must(t, r.settle(forged))
	if now := r.get(o.ID); now != o || strings.Contains(r.topics(), "cancelled") {
		t.Errorf("another tenant made %+v of %+v", now, o)
	}
}
