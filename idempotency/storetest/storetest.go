// Package storetest is the suite that a store of idempotency keys has to pass, over real HTTP. A store's own test hands it a
// [Backend]; what a store promises beyond it (bytes over a crash, a lease) its own tests show.
package storetest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/oncebox/oncebox/idempotency"
)

// A Backend is a store under test and the place where its handlers' effects go. Each case gets a fresh one.
type Backend struct {
	// Store returns a store on the backend's records, each time another, as two processes have.
	Store func(t testing.TB) idempotency.Store
	// Effect makes one effect and returns its id, as a handler does under this store: in its transaction, or under a guard of its
	// own, which makes a second one of the same request return the first one's id.
	Effect func(ctx context.Context) (id string, err error)
	// Effects counts the effects that are there, Records the records.
	Effects, Records func(t testing.TB) int
	// Guarded is Effect under a guard, Undoes a store that takes back what a failed handler wrote.
	Guarded, Undoes bool
}

// A Case is one of the suite's.
type Case struct {
	// Slug names it, as in idempotency/testdata/cases.txt.
	Slug string
	run  func(*rig)
}

// Cases returns the suite's cases.
func Cases() []Case {
	return slices.Concat(headerCases, identityCases, fidelityCases, concurrencyCases, errorCases, expiryCases, securityCases)
}

// Run runs each case, or only those of the given names, against a backend of its own, as a parallel subtest of the case's name.
func Run(t *testing.T, open func(t testing.TB) Backend, only ...string) {
	for _, c := range Cases() {
		if len(only) > 0 && !slices.Contains(only, c.Slug) {
			continue
		}
		t.Run(c.Slug, func(t *testing.T) {
			t.Parallel()
			c.run(&rig{T: t, Backend: open(t)})
		})
	}
}

// A rig is a case at work.
type rig struct {
	*testing.T
	Backend
	runs atomic.Int64 // of charge
}

// A server is a process with the route /charges behind the keys.
type server struct {
	*rig
	url      string
	requests *prometheus.Registry
	log      *safeBuffer
}

// client opens a connection for each request: Go sends one with an Idempotency-Key again by itself when a kept one dies.
var client = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true},
	Timeout:       time.Minute,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// serve starts a server with h behind the keys, at every path.
func (r *rig) serve(p idempotency.Policy, h http.HandlerFunc, change ...func(*idempotency.Config)) *server {
	r.Helper()
	s := &server{rig: r, log: &safeBuffer{}, requests: prometheus.NewRegistry()}
	cfg := idempotency.Config{Scope: scope, Logger: slog.New(slog.NewTextHandler(s.log, nil)), Registerer: s.requests}
	for _, c := range change {
		c(&cfg)
	}
	keys, err := idempotency.New(r.Store(r), cfg)
	if err != nil {
		r.Fatal(err)
	}
	p.Guarded = r.Guarded
	route, err := keys.Wrap(h, p)
	if err != nil {
		r.Fatal(err)
	}
	web := httptest.NewServer(route)
	r.Cleanup(web.Close)
	s.url = web.URL
	return s
}

// required is the policy of most cases.
var required = idempotency.Policy{Required: true, Wait: 5 * time.Second}

// scope reads who it is from "Authorization: Bearer principal-token" and X-Tenant.
func scope(r *http.Request) (idempotency.Scope, bool) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	principal, _, _ := strings.Cut(token, "-")
	return idempotency.Scope{Tenant: r.Header.Get("X-Tenant"), Principal: principal}, ok
}

// charge is a handler with one effect, whose answer tells the effect's id and the request.
func (r *rig) charge(w http.ResponseWriter, req *http.Request) {
	r.runs.Add(1)
	body, err := io.ReadAll(req.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	id, err := r.Effect(req.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Location", "/charges/"+id)
	h.Set("ETag", `"`+id+`"`)
	h.Set("X-Request-Id", fmt.Sprint(r.runs.Load()))
	http.SetCookie(w, &http.Cookie{Name: "session", Value: id})
	w.WriteHeader(http.StatusCreated)
	answer, err := json.Marshal(map[string]string{"id": id, "tenant": req.Header.Get("X-Tenant"), "request": string(body)})
	if err != nil {
		r.Error(err)
	}
	_, _ = w.Write(answer)
}

// A reply is what a client got.
type reply struct {
	status int
	header http.Header
	body   string
}

func (r reply) String() string { return fmt.Sprintf("%d %v %.300s", r.status, r.header, r.body) }

// try sends a request. Headers come in pairs; an Authorization is added when there is none.
func (s *server) try(method, path, body string, header ...string) (reply, error) {
	req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	req.Header.Set("Authorization", "Bearer alice-1")
	req.Header.Set("Content-Type", "application/json")
	seen := map[string]bool{}
	for i := 0; i < len(header); i += 2 {
		if !seen[header[i]] {
			req.Header.Del(header[i])
		}
		seen[header[i]] = true
		if header[i+1] != "" {
			req.Header.Add(header[i], header[i+1])
		}
	}
	res, err := client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header, string(b)}, err
}

func (s *server) do(method, path, body string, header ...string) reply {
	s.Helper()
	got, err := s.try(method, path, body, header...)
	if err != nil {
		s.Fatal(err)
	}
	return got
}

// post sends body to /charges under key.
func (s *server) post(key, body string, header ...string) reply {
	s.Helper()
	return s.do("POST", "/charges", body, append([]string{"Idempotency-Key", key}, header...)...)
}

const body = `{"amount":100}`

// wantFirst checks an answer that was not given before.
func (r *rig) wantFirst(got reply, status int) reply {
	r.Helper()
	if got.status != status || got.header.Get("Idempotent-Replayed") != "" {
		r.Errorf("got %s, want %d, not replayed", got, status)
	}
	return got
}

// wantReplay checks that got is first, given again.
func (r *rig) wantReplay(got, first reply) {
	r.Helper()
	if got.status != first.status || got.body != first.body || got.header.Get("Idempotent-Replayed") != "true" {
		r.Errorf("got %s, want the replay of %s", got, first)
	}
	for _, name := range []string{"Content-Type", "Location", "ETag"} {
		if g, f := got.header.Get(name), first.header.Get(name); g != f {
			r.Errorf("the replay's %s is %q, the first one's %q", name, g, f)
		}
	}
}

// A problem is the part of a problem document that clients decide by.
type problem struct {
	Type, Code      string
	Status          int
	Retryable       bool
	SafeToUseNewKey bool `json:"safe_to_use_new_key"`
	OriginalStatus  int  `json:"original_status"`
	Location        string
}

// wantProblem checks a refusal of the middleware's.
func (r *rig) wantProblem(got reply, status int, code string) problem {
	r.Helper()
	var p problem
	if err := json.Unmarshal([]byte(got.body), &p); err != nil {
		r.Errorf("got %s, want %d %s", got, status, code)
		return p
	}
	if got.status != status || p.Code != code || p.Status != status || p.Type != "urn:oncebox:problem:"+code ||
		got.header.Get("Content-Type") != "application/problem+json" || got.header.Get("Cache-Control") != "no-store" ||
		!strings.Contains(got.header.Get("Link"), `rel="describedby"`) || got.header.Get("Idempotent-Replayed") != "" {
		r.Errorf("got %s, want %d %s", got, status, code)
	}
	return p
}

func (r *rig) wantEffects(want int) {
	r.Helper()
	if got := r.Effects(r); got != want {
		r.Errorf("%d effects, want %d", got, want)
	}
}

func (r *rig) wantRecords(want int) {
	r.Helper()
	if got := r.Records(r); got != want {
		r.Errorf("%d records, want %d", got, want)
	}
}

func (r *rig) wantRuns(want int64) {
	r.Helper()
	if got := r.runs.Load(); got != want {
		r.Errorf("the handler ran %d times, want %d", got, want)
	}
}

// eventually waits until cond is true.
func (r *rig) eventually(what string, cond func() bool) {
	r.Helper()
	for giveUp := time.Now().Add(30 * time.Second); !cond(); {
		if time.Now().After(giveUp) {
			r.Fatalf("not within 30 s: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}
