package main

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/oncebox/oncebox/cmd/demo/page"
)

// A recorder stands in for orders: it remembers each execution.
type recorder struct {
	mu     sync.Mutex
	keys   []string
	leaked []string // headers of the demo's that came through
	tries  []page.Try
	status int
}

func (s *recorder) see(t page.Try) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tries = append(s.tries, t)
}

// seen are the tries that the link has told of.
func (s *recorder) seen() []page.Try {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.tries)
}

func (s *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = append(s.keys, r.Header.Get("Idempotency-Key"))
	for name := range r.Header {
		if strings.HasPrefix(name, "Demo-") {
			s.leaked = append(s.leaked, name)
		}
	}
	_, _ = io.Copy(io.Discard, r.Body)
	w.WriteHeader(s.status)
	_, _ = w.Write([]byte(strings.Repeat("answer ", 1000)))
}

// executed are the keys of all executions.
func (s *recorder) executed() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.keys)
}

func (s *recorder) leaks() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.leaked)
}

func linked(t *testing.T, loss float64) (*recorder, *link) {
	t.Helper()
	service := &recorder{status: http.StatusCreated}
	upstream := httptest.NewServer(service)
	t.Cleanup(upstream.Close)
	l, listener, err := newLink(upstream.URL, fate{seed: 42, loss: loss}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	l.observe = func(t page.Try) { service.see(t) }
	served := make(chan error, 1)
	go func() { served <- l.serve(listener) }()
	t.Cleanup(func() {
		if err := errors.Join(l.server.Close(), <-served); err != nil {
			t.Error(err)
		}
	})
	return service, l
}

// One try is one execution, whether its reply is lost or not; also for a client that keeps connections, whose transport would
// send a POST with a key again when a used connection dies.
func TestReplyIsLostAfterOneExecution(t *testing.T) {
	t.Parallel()
	const tries = 200
	for name, transport := range map[string]*http.Transport{
		"the demo's client":              {DisableKeepAlives: true},
		"a client with kept connections": {},
	} {
		t.Run(name, func(t *testing.T) {
			service, l := linked(t, 0.5)
			t.Cleanup(transport.CloseIdleConnections)
			c := newClient(keyedPrefix, false, "run", l.url)
			c.http = &http.Client{Transport: transport}
			lost := 0
			for intent := range tries {
				err := c.try(t.Context(), []byte("{}"), "a-key", intent, 1)
				if want := l.fate.Load().lost(keyedPrefix, intent, 1); want != (err != nil) {
					t.Fatalf("intent %d: lost is %t, and the client got %v", intent, want, err)
				}
				if err != nil {
					lost++
					if !errors.Is(err, syscall.ECONNRESET) {
						t.Errorf("intent %d: %v, want a connection reset", intent, err)
					}
				}
				came := page.Try{Client: keyedPrefix, Run: "run", Intent: intent, Attempt: 1, Key: "a-key"}
				ended := came
				ended.Status, ended.Lost = http.StatusCreated, err != nil
				if got := service.seen(); !slices.Equal(got[2*intent:], []page.Try{came, ended}) {
					t.Fatalf("intent %d: the link told %+v", intent, got[2*intent:])
				}
				if n := len(service.executed()); n != intent+1 {
					t.Fatalf("after %d tries the service has executed %d", intent+1, n)
				}
			}
			if lost == 0 || lost == tries || int(l.cut.Load()) != lost {
				t.Errorf("%d of %d replies lost, and the link counted %d", lost, tries, l.cut.Load())
			}
			if leaked := service.leaks(); len(leaked) > 0 {
				t.Errorf("the service saw %v", leaked)
			}
		})
	}
}

func TestWithoutLossNothingIsCut(t *testing.T) {
	t.Parallel()
	service, l := linked(t, 0)
	c := newClient(naivePrefix, true, "run", l.url)
	for intent := range 50 {
		if err := c.order(t.Context(), intent); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(service.executed()); n != 50 || l.cut.Load() != 0 {
		t.Errorf("%d executions and %d lost replies", n, l.cut.Load())
	}
}

func TestFateIsAFunctionOfSeedAndTry(t *testing.T) {
	t.Parallel()
	decisions := func(f fate, client string) (out []bool) {
		for intent := range 1000 {
			out = append(out, f.lost(client, intent, 1), f.lost(client, intent, 2))
		}
		return out
	}
	f := fate{seed: 7, loss: 0.4}
	first := decisions(f, keyedPrefix)
	if !slices.Equal(first, decisions(f, keyedPrefix)) {
		t.Error("one seed decides in two ways")
	}
	for what, other := range map[string][]bool{
		"seed": decisions(fate{seed: 8, loss: 0.4}, keyedPrefix), "client": decisions(f, naivePrefix),
	} {
		if slices.Equal(first, other) {
			t.Errorf("another %s decides alike", what)
		}
	}
	lost := 0
	for _, l := range first {
		if l {
			lost++
		}
	}
	if lost < 700 || lost > 900 { // 800 ± 5 standard deviations
		t.Errorf("%d of 2000 are lost at 0.4", lost)
	}
}

func TestOneClientKeepsItsKeyAndTheOtherDoesNot(t *testing.T) {
	t.Parallel()
	const intents = 100
	for _, freshKeys := range []bool{false, true} {
		service, l := linked(t, 0.5)
		c := newClient(keyedPrefix, freshKeys, "run", l.url)
		for intent := range intents {
			if err := c.order(t.Context(), intent); err != nil {
				t.Fatal(err)
			}
		}
		keys := service.executed()
		tries := len(keys)
		slices.Sort(keys)
		different := len(slices.Compact(keys))
		want := intents
		if freshKeys {
			want = tries
		}
		if different != want || tries <= intents {
			t.Errorf("fresh keys %t: %d different keys in %d tries of %d intents, want %d", freshKeys, different, tries, intents, want)
		}
		if answered := tries - int(l.cut.Load()); answered != intents {
			t.Errorf("fresh keys %t: %d answers for %d intents", freshKeys, answered, intents)
		}
	}
}

func TestRefusalIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	service, l := linked(t, 0)
	service.status = http.StatusUnprocessableEntity
	err := newClient(keyedPrefix, false, "run", l.url).order(t.Context(), 0)
	if n := len(service.executed()); err == nil || n != 1 {
		t.Errorf("%d tries, error %v", n, err)
	}
}
