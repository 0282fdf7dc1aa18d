package redisstore_test

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/oncebox/oncebox/internal/stacktest"
)

// afterLease returns the first answer that is not in-progress, which has to come within the lease and not within the retention.
func (r *rig) afterLease(url string) reply {
	r.Helper()
	var got reply
	stacktest.Eventually(r, 10*brisk.Lease, "the lease is over", func() (bool, error) {
		var err error
		got, err = try(url, "k")
		return err == nil && !strings.Contains(got.body, "in-progress"), err
	})
	return got
}

func slowHandler(r *rig) {
	url, other := r.process(true), r.process(true)
	release := hold(r.T, r.pool)
	answer := postInTheBackground(url, "Gate", "Slow="+(3*brisk.Lease).String())
	waitGate(r.T, r.pool)
	release()
	for begun := time.Now(); time.Since(begun) < 2*brisk.Lease; {
		wantRefused(r.T, post(r.T, other), 409, "in-progress")
	}
	got := <-answer
	must(r, got.err)
	first := wantFirst(r.T, got.reply)
	if again := post(r.T, other); !again.replayed || again.body != first.body {
		r.Errorf("got %+v, want the replay of %+v", again, first)
	}
	wantEffects(r.T, r.pool, 1)
}

func paused(r *rig) {
	a := startServer(r.T, r.pool, r.server)
	b := r.process(true)
	release := hold(r.T, r.pool)
	late := postInTheBackground(a.url, "Gate")
	waitGate(r.T, r.pool)
	must(r, a.Pause())
	wantRefused(r.T, post(r.T, b), 409, "in-progress")
	first := wantFirst(r.T, r.afterLease(b)) // B has taken over
	release()                                // the lock is A's backend's now: it is A that will write, when it goes on
	must(r, a.Continue())
	got := <-late
	must(r, got.err)
	// A found B's effect, or was told in time that it had lost its lease.
	if got.status == http.StatusCreated {
		wantSame(r.T, got.reply, first)
	} else if got.status < 500 {
		r.Errorf("A answers %+v", got.reply)
	}
	if again := post(r.T, b); !again.replayed || again.body != first.body {
		r.Errorf("got %+v, want the replay of B's %+v", again, first)
	}
	wantEffects(r.T, r.pool, 1)
	if n := r.client.HGet(r.Context(), r.onlyKey(), "n").Val(); n != "2" {
		r.Errorf("%s attempts, want 2", n)
	}
}

// onlyKey is the name of the only record.
func (r *rig) onlyKey() string {
	r.Helper()
	keys, err := r.client.Keys(r.Context(), "*").Result()
	must(r, err)
	if len(keys) != 1 {
		r.Fatalf("the keys are %q, want one", keys)
	}
	return keys[0]
}

func crashed(r *rig) {
	a := startServer(r.T, r.pool, r.server)
	b := r.process(true)
	release := hold(r.T, r.pool)
	lost := postInTheBackground(a.url, "Gate")
	waitGate(r.T, r.pool)
	must(r, a.Kill())
	<-lost
	release()
	got := post(r.T, b)
	wantRefused(r.T, got, 409, "in-progress")
	wantFirst(r.T, r.afterLease(b))
	wantEffects(r.T, r.pool, 1)
}

// The server's clock cannot be set here, but all that the scripts do with it is to compare it with a lease: a lease that ends an
// hour earlier is a clock that is an hour ahead.
func skewed(r *rig) {
	shift := func(d time.Duration) {
		must(r, r.client.HIncrBy(r.Context(), r.onlyKey(), "lease", d.Milliseconds()).Err())
	}
	for _, guarded := range []bool{true, false} {
		must(r, r.client.FlushAll(r.Context()).Err())
		cfg := brisk
		cfg.Lease, cfg.Margin = 3*time.Second, time.Second // no beat in between
		a := here(r.T, r.pool, store(r, r.client, cfg), guarded)
		b := here(r.T, r.pool, store(r, r.client, cfg), guarded)
		before := count(r, r.pool, "effect") + count(r, r.pool, "guarded")
		release := hold(r.T, r.pool)
		answer := postInTheBackground(a, "Gate")
		waitGate(r.T, r.pool)
		shift(time.Hour) // an hour behind
		got := post(r.T, b)
		wantRefused(r.T, got, 409, "in-progress")
		if n, err := strconv.Atoi(got.after); err != nil || n < 1 || n > 3 {
			r.Errorf("Retry-After is %q, want at most the lease", got.after)
		}
		shift(-2 * time.Hour) // an hour ahead
		if guarded {
			first := wantFirst(r.T, post(r.T, b))
			release()
			late := <-answer
			must(r, late.err)
			if late.status == http.StatusCreated {
				wantSame(r.T, late.reply, first)
			}
			if again := post(r.T, b); !again.replayed || again.body != first.body {
				r.Errorf("got %+v, want the replay of B's %+v", again, first)
			}
		} else {
			wantRefused(r.T, post(r.T, b), 409, "outcome-unknown")
			release()
			late := <-answer
			must(r, late.err)
			if late.status == http.StatusCreated { // A comes late, and makes it known
				if again := post(r.T, b); !again.replayed || again.body != late.body {
					r.Errorf("got %+v, want the replay of A's %+v", again, late.reply)
				}
			} else {
				r.Errorf("A answers %+v", late.reply)
			}
		}
		wantEffects(r.T, r.pool, before+1)
	}
}
