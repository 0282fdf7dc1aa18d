package redisstore_test

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/internal/stacktest"
)

func failedWithoutAGuard(r *rig) {
	url := r.process(false)
	if got := post(r.T, url, "Fail"); got.status != http.StatusInternalServerError {
		r.Errorf("got %+v", got)
	}
	wantRefused(r.T, post(r.T, url), 409, "outcome-unknown")
	wantEffects(r.T, r.pool, 1)
	guarded := r.process(true)
	must(r, r.client.FlushAll(r.Context()).Err())
	if got := post(r.T, guarded, "Fail"); got.status != http.StatusInternalServerError {
		r.Errorf("got %+v", got)
	}
	wantFirst(r.T, post(r.T, guarded))
	wantEffects(r.T, r.pool, 2)
}

func downAtReserve(r *rig) {
	url := r.process(true)
	must(r, r.server.Kill())
	for range 2 {
		got := post(r.T, url)
		wantRefused(r.T, got, 503, "store-unavailable")
		if n, err := strconv.Atoi(got.after); err != nil || n < 1 || n > 5 {
			r.Errorf("Retry-After is %q", got.after)
		}
	}
	wantEffects(r.T, r.pool, 0)
	r.restart()
	wantFirst(r.T, post(r.T, url))
	wantEffects(r.T, r.pool, 1)
}

func downAfterHandler(r *rig) {
	for _, guarded := range []bool{true, false} {
		must(r, r.client.FlushAll(r.Context()).Err())
		cfg := brisk
		cfg.KeepTrying = time.Millisecond // as if the process died with what it had to tell
		url := here(r.T, r.pool, store(r, r.client, cfg), guarded)
		before := count(r, r.pool, "effect") + count(r, r.pool, "guarded")
		release := hold(r.T, r.pool)
		answer := postInTheBackground(url, "After")
		waitGate(r.T, r.pool)
		must(r, r.server.Kill())
		release()
		got := <-answer
		must(r, got.err)
		first := wantFirst(r.T, got.reply)
		r.restart()
		again := r.afterLease(url)
		if guarded {
			wantSame(r.T, again, first)
		} else {
			wantRefused(r.T, again, 409, "outcome-unknown")
			wantRefused(r.T, post(r.T, url), 409, "outcome-unknown")
		}
		wantEffects(r.T, r.pool, before+1)
	}
	// A process that lives tells Redis as soon as it can.
	must(r, r.client.FlushAll(r.Context()).Err())
	url := r.process(false)
	release := hold(r.T, r.pool)
	answer := postInTheBackground(url, "After")
	waitGate(r.T, r.pool)
	must(r, r.server.Kill())
	release()
	got := <-answer
	must(r, got.err)
	r.restart()
	stacktest.Eventually(r, patience, "the answer is kept after all", func() (bool, error) {
		again, err := try(url, "k")
		return again.replayed && again.body == got.body, err
	})
}

func hangs(r *rig) {
	url := r.process(true)
	must(r, r.server.Pause())
	begun := time.Now()
	wantRefused(r.T, post(r.T, url), 503, "store-unavailable")
	if took := time.Since(begun); took > 10*brisk.CommandTimeout {
		r.Errorf("it took %s to say so", took)
	}
	must(r, r.server.Continue())
	wantEffects(r.T, r.pool, 0)
	stacktest.Eventually(r, patience, "the request that reached Redis after all is given back", func() (bool, error) {
		got, err := try(url, "k")
		return got.status == http.StatusCreated, err
	})
	wantEffects(r.T, r.pool, 1)
}

// A transition that is sent again, because its reply was lost, is the same one.
func lostReply(r *rig) {
	s := store(r, r.client, brisk)
	req := idempotency.Request{Tenant: "t", Key: idempotency.HashKey("twice"), Retention: time.Hour}
	first, second, err := s.ReserveTwice(r.Context(), req)
	if err != nil || first.State != idempotency.Fresh || second.State != idempotency.Fresh {
		r.Errorf("%+v, then %+v, %v", first, second, err)
	}
	req.Key = idempotency.HashKey("k")
	a, out, err := s.Begin(r.Context(), req)
	if err != nil || out.State != idempotency.Fresh {
		r.Fatalf("%+v, %v", out, err)
	}
	res := idempotency.Response{Status: 200, Header: http.Header{}}
	must(r, a.Complete(context.Background(), res))
	must(r, a.Complete(context.Background(), res))
	if _, out, err = s.Begin(r.Context(), req); err != nil || out.State != idempotency.Replay {
		r.Errorf("%+v, %v", out, err)
	}
}
