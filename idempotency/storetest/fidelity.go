package storetest

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/oncebox/oncebox/idempotency"
)

var fidelityCases = []Case{
	{"201-create-2", func(r *rig) {
		s := r.serve(required, r.charge)
		first := r.wantFirst(s.post("k", body), 201)
		again := s.post("k", body)
		r.wantReplay(again, first)
		if first.header.Get("Set-Cookie") == "" || again.header.Get("Set-Cookie") != "" {
			r.Error("a cookie belongs to the first answer only")
		}
		if first.header.Get("X-Request-Id") == "" || again.header.Get("X-Request-Id") != "" {
			r.Error("a request's id belongs to the first answer only")
		}
		r.wantEffects(1)
		r.wantRuns(1)
	}},
	{"204-and-303-replay-empty-body-location", func(r *rig) {
		s := r.serve(required, func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/none" {
				w.WriteHeader(http.StatusNoContent)
				return
			}
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(http.StatusSeeOther)
		})
		for path, status := range map[string]int{"/none": 204, "/see": 303} {
			first := r.wantFirst(s.do("POST", path, body, "Idempotency-Key", path), status)
			r.wantReplay(s.do("POST", path, body, "Idempotency-Key", path), first)
			if first.body != "" || status == 303 && first.header.Get("Location") != "/elsewhere" {
				r.Errorf("%s", first)
			}
		}
	}},
	{"bytes-of-every-value-and-headers-of-every-kind", func(r *rig) {
		all := make([]byte, 256)
		for i := range all {
			all[i] = byte(i)
		}
		p := required
		p.Headers = []string{"X-Ratio"}
		s := r.serve(p, func(w http.ResponseWriter, _ *http.Request) {
			h := w.Header()
			h.Set("Content-Type", "application/octet-stream")
			h.Set("Content-Disposition", "attachment; filename=\"\xe9t\xe9\"")
			h.Add("Link", "</a>; rel=next")
			h.Add("Link", "</b>; rel=prev")
			h.Set("X-Ratio", "1/2")
			h.Set("X-Other", "stays here")
			_, _ = w.Write(all)
		})
		first, again := r.wantFirst(s.post("k", body), 200), s.post("k", body)
		r.wantReplay(again, first)
		if first.body != string(all) {
			r.Errorf("the first answer is %q", first.body)
		}
		for _, name := range []string{"Content-Disposition", "Link", "X-Ratio"} {
			if f, a := first.header[name], again.header[name]; len(f) == 0 || !slices.Equal(f, a) {
				r.Errorf("%s: first %q, then %q", name, f, a)
			}
		}
		if again.header.Get("X-Other") != "" {
			r.Error("a header that is not listed was kept")
		}
	}},
	{"gzip-client-first-identity-client-on-retry", func(r *rig) {
		// Compression is around the keys, so they keep what it is made from.
		inner := r.serve(required, r.charge)
		outer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			b, err := io.ReadAll(req.Body)
			if err != nil {
				r.Error(err)
			}
			got := inner.post(req.Header.Get("Idempotency-Key"), string(b))
			w.Header().Set("Idempotent-Replayed", got.header.Get("Idempotent-Replayed"))
			if !strings.Contains(req.Header.Get("Accept-Encoding"), "gzip") {
				_, _ = io.WriteString(w, got.body)
				return
			}
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = io.WriteString(z, got.body)
			_ = z.Close()
		}))
		r.Cleanup(outer.Close)
		zipped := (&server{rig: r, url: outer.URL}).post("k", body, "Accept-Encoding", "gzip")
		z, err := gzip.NewReader(bytes.NewReader([]byte(zipped.body)))
		if err != nil {
			r.Fatal(err)
		}
		plain, err := io.ReadAll(z)
		if err != nil {
			r.Fatal(err)
		}
		again := (&server{rig: r, url: outer.URL}).post("k", body, "Accept-Encoding", "identity")
		if again.body != string(plain) || again.header.Get("Idempotent-Replayed") != "true" {
			r.Errorf("%q, then %s", plain, again)
		}
		r.wantEffects(1)
	}},
	{"resource-updated-between", func(r *rig) { r.changedBetween("name=new") }},
	{"resource-soft-deleted-between", func(r *rig) { r.changedBetween("deleted_at=now") }},
	{"cors-idempotent-replayed-in-access-control-expose-headers", func(r *rig) {
		s := r.serve(required, r.charge)
		for range 2 {
			got := s.post("k", body, "Origin", "https://shop.example")
			if !strings.Contains(got.header.Get("Access-Control-Expose-Headers"), "Idempotent-Replayed") {
				r.Errorf("%s", got)
			}
		}
		if got := s.post("k", body); got.header.Get("Access-Control-Expose-Headers") != "" {
			r.Errorf("%s", got)
		}
	}},
	{"replay-does-not-consume-business-quota", func(r *rig) {
		var quota atomic.Int64
		s := r.serve(required, func(w http.ResponseWriter, req *http.Request) {
			quota.Add(1)
			r.charge(w, req)
		})
		first := r.wantFirst(s.post("k", body), 201)
		for range 10 {
			r.wantReplay(s.post("k", body), first)
		}
		if n := quota.Load(); n != 1 {
			r.Errorf("%d were counted, want 1", n)
		}
		r.wantEffects(1)
	}},
	{"what-is-around-the-middleware-keeps-its-headers", func(r *rig) {
		keys, err := idempotency.New(r.Store(r), idempotency.Config{Scope: scope})
		if err != nil {
			r.Fatal(err)
		}
		route, err := keys.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Vary", "Accept") }), required)
		if err != nil {
			r.Fatal(err)
		}
		outer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Vary", "Origin")
			w.Header().Set("X-Request-Id", "7")
			route.ServeHTTP(w, req)
		}))
		r.Cleanup(outer.Close)
		s := &server{rig: r, url: outer.URL}
		for range 3 {
			got := s.post("k", body)
			if v := got.header["Vary"]; !slices.Equal(v, []string{"Origin", "Accept"}) || got.header.Get("X-Request-Id") != "7" {
				r.Errorf("%s", got)
			}
		}
	}},
}

// changedBetween checks that a replay is of the answer, not of the resource.
func (r *rig) changedBetween(change string) {
	state := "name=old"
	s := r.serve(required, func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodPut {
			state = change
		}
		_, _ = io.WriteString(w, state)
	})
	first := r.wantFirst(s.post("k", body), 200)
	if got := r.wantFirst(s.do("PUT", "/charges", body, "Idempotency-Key", "l"), 200); got.body != change {
		r.Errorf("%s", got)
	}
	r.wantReplay(s.post("k", body), first)
}
