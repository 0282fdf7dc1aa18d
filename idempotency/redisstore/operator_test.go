package redisstore_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/oncebox/oncebox/idempotency"
)

func resolved(r *rig) {
	s := store(r, r.client, brisk)
	url := here(r.T, r.pool, s, false)
	unknown := func() {
		if got := post(r.T, url, "Fail"); got.status != http.StatusInternalServerError {
			r.Errorf("got %+v", got)
		}
		wantRefused(r.T, post(r.T, url), 409, "outcome-unknown")
		rec, state, err := s.Lookup(r.Context(), "default", idempotency.HashKey("k"))
		if err != nil || state != idempotency.Unknown || rec.Method != http.MethodPost || rec.Path != "/charges" || time.Since(rec.CreatedAt) > time.Hour {
			r.Errorf("looked up %+v, %v, %v", rec, state, err)
		}
	}
	if _, state, err := s.Lookup(r.Context(), "default", idempotency.HashKey("k")); err != nil || state != 0 {
		r.Errorf("looked up %v, %v", state, err)
	}
	unknown()
	admin := idempotency.Admin(s)
	ask := func(method, body string) (int, string) {
		req := httptest.NewRequest(method, "/?tenant=default", strings.NewReader(body))
		req.Header.Set("Idempotency-Key", "k")
		res := httptest.NewRecorder()
		admin.ServeHTTP(res, req)
		return res.Code, res.Body.String()
	}
	if status, body := ask("GET", ""); status != 200 || !strings.Contains(body, `"state":"outcome-unknown"`) || !strings.Contains(body, `"path":"/charges"`) {
		r.Errorf("the operator is told %d %s", status, body)
	}
	if status, body := ask("PUT", `{"status":500}`); status != 400 {
		r.Errorf("got %d %s", status, body)
	}
	if status, body := ask("PUT", `{"status":201,"location":"/charges/7","body":"charge 7\n"}`); status != 204 {
		r.Errorf("got %d %s", status, body)
	}
	if status, body := ask("DELETE", ""); status != 409 {
		r.Errorf("got %d %s", status, body)
	}
	if got := post(r.T, url); !got.replayed || got.location != "/charges/7" || got.body != "charge 7\n" {
		r.Errorf("got %+v", got)
	}
	if err := s.Resolve(r.Context(), "default", idempotency.HashKey("k"), nil); err == nil {
		r.Error("a known outcome was resolved")
	}
	must(r, r.client.FlushAll(r.Context()).Err())
	unknown()
	must(r, s.Resolve(r.Context(), "default", idempotency.HashKey("k"), nil))
	wantFirst(r.T, post(r.T, url))
	wantEffects(r.T, r.pool, 3)
}
