package storetest

import (
	"errors"
	"net/http"

	"github.com/oncebox/oncebox/idempotency"
)

var identityCases = []Case{
	{"same-key-other-body", func(r *rig) {
		s := r.serve(required, r.charge)
		first := r.wantFirst(s.post("k", body), 201)
		if p := r.wantProblem(s.post("k", `{"amount":101}`), 422, "key-reused"); p.Retryable || !p.SafeToUseNewKey {
			r.Errorf("%+v", p)
		}
		r.wantReplay(s.post("k", body), first)
		r.wantEffects(1)
	}},
	{"same-key-other-path", func(r *rig) { r.reused("POST", "/refunds", body) }},
	{"same-key-other-method", func(r *rig) { r.reused("PUT", "/charges", body) }},
	{"same-key-dry-1-vs-no-query", func(r *rig) {
		r.reused("POST", "/charges?dry=1", body)
	}},
	{"charset-whitespace-in-content-type-params-only", func(r *rig) {
		s := r.serve(required, r.charge)
		first := r.wantFirst(s.post("k", body, "Content-Type", "application/json"), 201)
		r.wantReplay(s.post("k", body, "Content-Type", "Application/JSON ;  charset=utf-8"), first)
		r.wantProblem(s.post("k", body, "Content-Type", "text/plain"), 422, "key-reused")
	}},
	{"json-keys-reordered-raw-mode", func(r *rig) {
		one, two := `{"amount":100,"to":"ada"}`, `{ "to" : "\u0061da", "amount" : 100 }`
		raw := r.serve(required, r.charge)
		r.wantFirst(raw.post("k", one), 201)
		r.wantProblem(raw.post("k", two), 422, "key-reused")
		p := required
		p.Body = idempotency.JSONBody
		asJSON := r.serve(p, r.charge)
		first := r.wantFirst(asJSON.post("l", one), 201)
		r.wantReplay(asJSON.post("l", two), first)
	}},
	{"json-mode-9007199254740992-vs-993-1-0-vs-1-duplicate-names", func(r *rig) {
		p := required
		p.Body = idempotency.JSONBody
		s := r.serve(p, r.charge)
		r.wantFirst(s.post("big", `{"amount":9007199254740992}`), 201)
		r.wantProblem(s.post("big", `{"amount":9007199254740993}`), 422, "key-reused")
		r.wantFirst(s.post("one", `{"amount":1.0}`), 201)
		r.wantProblem(s.post("one", `{"amount":1}`), 422, "key-reused")
		r.wantProblem(s.post("twice", `{"amount":1,"amount":2}`), 400, "body-invalid")
		r.wantEffects(2)
	}},
	{"new-authorization-token-same-principal", func(r *rig) {
		s := r.serve(required, r.charge)
		first := r.wantFirst(s.post("k", body, "Authorization", "Bearer alice-1"), 201)
		r.wantReplay(s.post("k", body, "Authorization", "Bearer alice-2"), first)
	}},
	{"tenant-b-same-key-body-as-a", func(r *rig) {
		s := r.serve(required, r.charge)
		a := r.wantFirst(s.post("k", body, "X-Tenant", "a"), 201)
		b := r.wantFirst(s.post("k", body, "X-Tenant", "b"), 201)
		if a.body == b.body {
			r.Errorf("both tenants got %s", a)
		}
		r.wantReplay(s.post("k", body, "X-Tenant", "a"), a)
		r.wantReplay(s.post("k", body, "X-Tenant", "b"), b)
		r.wantEffects(2)
	}},
	{"unauthenticated-with-a-s-key", func(r *rig) {
		s := r.serve(required, r.charge)
		first := r.wantFirst(s.post("k", body), 201)
		got := s.post("k", body, "Authorization", "")
		r.wantProblem(got, 401, "unauthenticated")
		if got.header.Get("Idempotency-Key") != "" {
			r.Error("the key was read before the caller was known")
		}
		r.wantReplay(s.post("k", body), first)
	}},
	{"a-loses-permission-retries", func(r *rig) {
		allowed := true
		p := required
		p.AuthorizeReplay = func(_ *http.Request, rec idempotency.Record) error {
			if rec.Principal != "alice" || rec.Path != "/charges" || rec.Method != http.MethodPost || rec.Response.Status != 201 {
				r.Errorf("asked about %+v", rec)
			}
			if !allowed {
				return errors.New("no longer")
			}
			return nil
		}
		s := r.serve(p, r.charge)
		first := r.wantFirst(s.post("k", body), 201)
		r.wantReplay(s.post("k", body), first)
		allowed = false
		r.wantProblem(s.post("k", body), 403, "forbidden")
		r.wantEffects(1)
	}},
	{"two-principals-of-one-tenant-same-key-and-body", func(r *rig) {
		s := r.serve(required, r.charge)
		r.wantFirst(s.post("k", body, "Authorization", "Bearer alice-1"), 201)
		r.wantProblem(s.post("k", body, "Authorization", "Bearer bob-1"), 422, "key-reused")
		p := required
		p.TenantWide = true
		wide := r.serve(p, r.charge)
		first := r.wantFirst(wide.post("l", body, "Authorization", "Bearer alice-1"), 201)
		r.wantReplay(wide.post("l", body, "Authorization", "Bearer bob-1"), first)
		r.wantEffects(2)
	}},
	{"test-vs-live-environment-same-key", func(r *rig) {
		s := r.serve(required, r.charge)
		r.wantFirst(s.post("k", body, "X-Tenant", "acme/live"), 201)
		r.wantFirst(s.post("k", body, "X-Tenant", "acme/test"), 201)
		r.wantEffects(2)
	}},
}

// reused checks that a request under the key of another is refused, in both orders, and that the other's record stays.
func (r *rig) reused(method, path, body string) {
	r.Helper()
	s := r.serve(required, r.charge)
	first := r.wantFirst(s.post("k", body), 201)
	r.wantProblem(s.do(method, path, body, "Idempotency-Key", "k"), 422, "key-reused")
	r.wantReplay(s.post("k", body), first)
	other := r.wantFirst(s.do(method, path, body, "Idempotency-Key", "l"), 201)
	r.wantProblem(s.post("l", body), 422, "key-reused")
	r.wantReplay(s.do(method, path, body, "Idempotency-Key", "l"), other)
	r.wantEffects(2)
}
