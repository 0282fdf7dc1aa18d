package storetest

import (
	"encoding/binary"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/oncebox/oncebox/idempotency"
)

var headerCases = []Case{
	{"required-route-no-key", func(r *rig) {
		s := r.serve(required, r.charge)
		if p := r.wantProblem(s.do("POST", "/charges", body), 400, "key-missing"); p.Retryable || !p.SafeToUseNewKey {
			r.Errorf("%+v", p)
		}
		r.wantRecords(0)
		r.wantEffects(0)
	}},
	{"empty-string", func(r *rig) {
		s := r.serve(required, r.charge)
		r.wantProblem(s.post(`""`, body), 400, "key-invalid")
		r.wantEffects(0)
	}},
	{"abc-then-raw-abc-lenient-same-body", func(r *rig) {
		s := r.serve(required, r.charge)
		first := r.wantFirst(s.post(`"abc"`, body), 201)
		if echo := first.header.Get("Idempotency-Key"); echo != `"abc"` {
			r.Errorf("the key comes back as %s", echo)
		}
		r.wantReplay(s.post(`abc`, body), first)
		r.wantReplay(s.post(`"abc";p=1`, body), first)
		r.wantEffects(1)
	}},
	{"strict-mode-raw-uuid-starting-8-and-raw-uuid-starting-a", func(r *rig) {
		p := required
		p.Strict = true
		s := r.serve(p, r.charge)
		r.wantProblem(s.post("8e03978e-40d5-43e8-bc93-6894a57f9324", body), 400, "key-invalid")
		r.wantProblem(s.post("ae03978e-40d5-43e8-bc93-6894a57f9324", body), 400, "key-invalid")
		r.wantFirst(s.post(`"8e03978e-40d5-43e8-bc93-6894a57f9324"`, body), 201)
	}},
	{"two-field-lines-equal-or-different", func(r *rig) {
		s := r.serve(required, r.charge)
		for _, second := range []string{"abc", "abd"} {
			r.wantProblem(s.do("POST", "/charges", body, "Idempotency-Key", "abc", "Idempotency-Key", second), 400, "key-invalid")
		}
		r.wantProblem(s.post(`"abc", "abd"`, body), 400, "key-invalid")
		r.wantEffects(0)
	}},
	{"255-chars-ok-256", func(r *rig) {
		s := r.serve(required, r.charge)
		r.wantFirst(s.post(strings.Repeat("k", 255), body), 201)
		r.wantFirst(s.post(`"`+strings.Repeat("l", 255)+`"`, body), 201)
		for _, n := range []int{256, 10_000} {
			r.wantProblem(s.post(strings.Repeat("k", n), body), 400, "key-invalid")
			r.wantProblem(s.post(`"`+strings.Repeat("k", n)+`"`, body), 400, "key-invalid")
		}
		r.wantEffects(2)
	}},
	{"abc-vs-abc", func(r *rig) {
		s := r.serve(required, r.charge)
		r.wantFirst(s.post(`"ABC"`, body), 201)
		r.wantFirst(s.post(`"abc"`, body), 201)
		r.wantEffects(2)
	}},
	{"get-head-options-with-key", func(r *rig) {
		s := r.serve(required, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
		for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
			for range 2 {
				r.wantFirst(s.do(method, "/charges", "", "Idempotency-Key", "abc"), 204)
			}
		}
		r.wantRecords(0)
	}},
	{"patch-put-delete-with-key", func(r *rig) {
		s := r.serve(required, r.charge)
		for i, method := range []string{"PATCH", "PUT", "DELETE"} {
			first := r.wantFirst(s.do(method, "/charges", body, "Idempotency-Key", method), 201)
			r.wantReplay(s.do(method, "/charges", body, "Idempotency-Key", method), first)
			r.wantEffects(i + 1)
		}
		r.wantFirst(s.do("PUT", "/charges", body), 201) // honoured where it is sent, not asked for
		r.wantRecords(3)
	}},
	{"uuidv7-policy-v4-key", func(r *rig) {
		p := required
		p.Kind = idempotency.UUIDv7Key
		s := r.serve(p, r.charge, func(c *idempotency.Config) { c.Retention = time.Hour })
		r.wantProblem(s.post(uuid.NewString(), body), 400, "key-invalid")
		r.wantProblem(s.post("{"+uuid.NewString()+"}", body), 400, "key-invalid")
		if p := r.wantProblem(s.post(uuidv7(time.Now().Add(-61*time.Minute)), body), 400, "key-expired"); p.SafeToUseNewKey {
			r.Error("a new key for a request that nobody knows the fate of is called safe")
		}
		r.wantProblem(s.post(uuidv7(time.Now().Add(10*time.Minute)), body), 400, "key-invalid")
		r.wantEffects(0)
		key := uuidv7(time.Now().Add(-59 * time.Minute))
		first := r.wantFirst(s.post(key, body), 201)
		r.wantReplay(s.post(key, body), first)
		r.wantEffects(1)
	}},
}

// uuidv7 is a version 7 UUID of that time.
func uuidv7(at time.Time) string {
	id := uuid.New()
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(at.UnixMilli()))
	copy(id[:6], ms[2:])
	id[6] = 0x70 | id[6]&0x0f
	return id.String()
}
