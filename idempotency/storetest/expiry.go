package storetest

import (
	"time"

	"github.com/oncebox/oncebox/idempotency"
)

// keep sets how long answers are kept.
func keep(d time.Duration) func(*idempotency.Config) {
	return func(c *idempotency.Config) { c.Retention = d }
}

var expiryCases = []Case{
	{"retry-at-retention", func(r *rig) {
		const retention = 2 * time.Second
		p := required
		p.Kind = idempotency.UUIDv7Key
		dated := r.serve(p, r.charge, keep(retention))
		anyKey := r.serve(required, r.charge, keep(retention))
		key := uuidv7(time.Now())
		first, second := r.wantFirst(anyKey.post("k", body), 201), r.wantFirst(dated.post(key, body), 201)
		r.wantReplay(anyKey.post("k", body), first)
		r.wantReplay(dated.post(key, body), second)
		r.eventually("the record expires, and the key is a new request's", func() bool {
			got := anyKey.post("k", body)
			return got.status == 201 && got.header.Get("Idempotent-Replayed") == ""
		})
		r.eventually("the key is too old to be executed", func() bool { return dated.post(key, body).status == 400 })
		r.wantProblem(dated.post(key, body), 400, "key-expired")
		want := 3
		if r.Guarded { // and nobody has cleared the guard
			want = 2
		}
		r.wantEffects(want)
	}},
	{"50-concurrent-on-an-expired-key", func(r *rig) {
		r.wantFirst(r.serve(required, r.charge, keep(time.Millisecond)).post("k", "other"), 201)
		<-time.After(10 * time.Millisecond)
		s := r.serve(required, r.charge)
		r.crowd(func(int) *server { return s }, func(int) string { return "k" })
		r.wantRuns(2)
	}},
}
