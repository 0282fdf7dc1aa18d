package storetest

import (
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const crowd = 100

var concurrencyCases = []Case{
	{"100-parallel-same-key-50-ms-handler", func(r *rig) {
		s := r.serve(required, func(w http.ResponseWriter, req *http.Request) {
			<-time.After(50 * time.Millisecond)
			r.charge(w, req)
		})
		r.crowd(func(int) *server { return s }, func(int) string { return "k" })
		r.wantEffects(1)
		r.wantRuns(1)
	}},
	{"100-with-handler-wait", func(r *rig) {
		started, release := make(chan struct{}), make(chan struct{})
		p := required
		p.Wait = 250 * time.Millisecond
		s := r.serve(p, func(w http.ResponseWriter, req *http.Request) {
			close(started)
			<-release
			r.charge(w, req)
		})
		first := make(chan reply)
		go func() { first <- s.post("k", body) }()
		<-started
		begun := time.Now()
		var wg sync.WaitGroup
		for range crowd - 1 {
			wg.Go(func() { r.wantInProgress(s.post("k", body)) })
		}
		wg.Wait()
		if took := time.Since(begun); took > 20*p.Wait { // a machine of two cores at work on a hundred connections
			r.Errorf("the refusals took %s", took)
		}
		close(release)
		got := r.wantFirst(<-first, 201)
		r.wantReplay(s.post("k", body), got)
		r.wantEffects(1)
	}},
	{"100-across-2-processes", func(r *rig) {
		h := func(w http.ResponseWriter, req *http.Request) {
			<-time.After(50 * time.Millisecond)
			r.charge(w, req)
		}
		servers := []*server{r.serve(required, h), r.serve(required, h)}
		r.crowd(func(i int) *server { return servers[i%2] }, func(int) string { return "k" })
		r.wantEffects(1)
		r.wantRuns(1)
	}},
	{"100-different-keys-in-parallel", func(r *rig) {
		// They are all inside at once before one may end, as far as the store has connections for them.
		const together = 8
		var inside atomic.Int64
		all := make(chan struct{})
		s := r.serve(required, func(w http.ResponseWriter, req *http.Request) {
			if inside.Add(1) == together {
				close(all)
			}
			<-all
			r.charge(w, req)
		})
		var wg sync.WaitGroup
		for i := range crowd {
			wg.Go(func() { r.wantFirst(s.post(fmt.Sprint("k", i), body), 201) })
		}
		wg.Wait()
		r.wantEffects(crowd)
	}},
	{"owner-commits-while-duplicate-waits", func(r *rig) {
		// In another process, so that only the store can tell.
		started, release := make(chan struct{}), make(chan struct{})
		owner := r.serve(required, func(w http.ResponseWriter, req *http.Request) {
			close(started)
			<-release
			r.charge(w, req)
		})
		other := r.serve(required, r.charge)
		first, second := make(chan reply), make(chan reply)
		go func() { first <- owner.post("k", body) }()
		<-started
		go func() { second <- other.post("k", body) }()
		<-time.After(50 * time.Millisecond) // it waits: nothing shows that but that no answer comes
		select {
		case got := <-second:
			r.Fatalf("a duplicate was answered before the first one: %s", got)
		default:
		}
		close(release)
		got := r.wantFirst(<-first, 201)
		r.wantReplay(<-second, got)
		r.wantEffects(1)
	}},
	{"another-request-under-a-key-in-flight", func(r *rig) {
		started, release := make(chan struct{}), make(chan struct{})
		s := r.serve(required, func(w http.ResponseWriter, req *http.Request) {
			close(started)
			<-release
			r.charge(w, req)
		})
		first := make(chan reply)
		go func() { first <- s.post("k", body) }()
		<-started
		r.wantProblem(s.post("k", `{"amount":101}`), 422, "key-reused") // 422 before 409
		close(release)
		got := r.wantFirst(<-first, 201)
		r.wantReplay(s.post("k", body), got)
	}},
	{"a-wrong-request-in-flight-does-not-refuse-the-right-one", func(r *rig) {
		s := r.serve(required, r.charge)
		first := r.wantFirst(s.post("k", body), 201)
		var wg sync.WaitGroup
		for i := range crowd {
			wg.Go(func() {
				if i%2 == 0 {
					r.wantProblem(s.post("k", `{"amount":101}`), 422, "key-reused")
				} else {
					r.wantReplay(s.post("k", body), first)
				}
			})
		}
		wg.Wait()
	}},
}

// crowd sends a hundred requests at once, each again until it has an answer, and checks that all of one key got the same.
func (r *rig) crowd(to func(i int) *server, key func(i int) string) {
	r.Helper()
	var mu sync.Mutex
	firsts, bodies := 0, map[string]bool{}
	deadline := time.Now().Add(30 * time.Second)
	var wg sync.WaitGroup
	for i := range crowd {
		wg.Go(func() {
			for time.Now().Before(deadline) {
				got := to(i).post(key(i), body)
				if got.status == http.StatusConflict {
					r.wantInProgress(got)
					continue
				}
				if got.status != 201 {
					r.Errorf("got %s", got)
				}
				mu.Lock()
				defer mu.Unlock()
				bodies[got.body] = true
				if got.header.Get("Idempotent-Replayed") == "" {
					firsts++
				}
				return
			}
			r.Error("no answer in 30 s")
		})
	}
	wg.Wait()
	if firsts != 1 || len(bodies) != 1 {
		r.Errorf("%d first answers and %d different bodies, want 1 and 1", firsts, len(bodies))
	}
}

func (r *rig) wantInProgress(got reply) {
	r.Helper()
	p := r.wantProblem(got, 409, "in-progress")
	if n, err := strconv.Atoi(got.header.Get("Retry-After")); err != nil || n < 1 || n > 15 || !p.Retryable || p.SafeToUseNewKey {
		r.Errorf("got %s", got)
	}
}
