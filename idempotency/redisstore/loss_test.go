package redisstore_test

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/oncebox/oncebox/idempotency/redisstore"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

func (r *rig) restart() {
	r.Helper()
	must(r, r.server.Restart(r.Context()))
	stacktest.Eventually(r, patience, "Redis is back", func() (bool, error) {
		err := r.client.Ping(r.Context()).Err()
		return err == nil, err
	})
}

func flushed(r *rig) {
	url := r.process(true)
	first := wantFirst(r.T, post(r.T, url))
	must(r, r.client.FlushAll(r.Context()).Err())
	wantSame(r.T, post(r.T, url), first)
	wantEffects(r.T, r.pool, 1)
}

// The replica is cut off before the last write, and then promoted.
func failedOver(r *rig) {
	replica := stacktest.Redis(r)
	promoted := connect(r, replica)
	host, port, _ := strings.Cut(r.client.Options().Addr, ":")
	must(r, promoted.Do(r.Context(), "REPLICAOF", host, port).Err())
	url := r.process(true)
	kept, err := try(url, "kept")
	must(r, err)
	stacktest.Eventually(r, patience, "the replica has what was written until now", func() (bool, error) {
		n, err := promoted.DBSize(r.Context()).Result()
		return n == 1, err
	})
	must(r, promoted.Do(r.Context(), "REPLICAOF", "NO", "ONE").Err())
	first := wantFirst(r.T, post(r.T, url))
	must(r, r.server.Kill())
	after := here(r.T, r.pool, store(r, promoted, brisk), true)
	wantSame(r.T, post(r.T, after), first)
	again, err := try(after, "kept")
	must(r, err)
	if !again.replayed || again.body != kept.body {
		r.Errorf("got %+v, want the replay of %+v", again, kept)
	}
	wantEffects(r.T, r.pool, 2)
}

func forgetful(r *rig) {
	for name, value := range map[string]string{"maxmemory-policy": "volatile-lru", "appendonly": "no"} {
		server := stacktest.Redis(r, func(cfg *devstack.RedisConfig) { cfg.Settings = map[string]string{name: value} })
		if _, err := redisstore.New(r.Context(), connect(r, server), brisk); err == nil || !strings.Contains(err.Error(), name) {
			r.Errorf("got %v, want an error that names %s", err, name)
		}
	}
	o := *r.client.Options()
	o.ContextTimeoutEnabled = false
	hanging := redis.NewClient(&o)
	defer hanging.Close()
	if _, err := redisstore.New(r.Context(), hanging, brisk); err == nil || !strings.Contains(err.Error(), "ContextTimeoutEnabled") {
		r.Errorf("got %v, want an error that names ContextTimeoutEnabled", err)
	}
	for _, cfg := range []redisstore.Config{{Lease: -1}, {Margin: time.Minute}, {KeepTrying: -1}, {CommandTimeout: -1}} {
		if _, err := redisstore.New(r.Context(), r.client, cfg); err == nil || !strings.Contains(err.Error(), "Config.") {
			r.Errorf("%+v: got %v", cfg, err)
		}
	}
}

// Invariant: whatever Redis forgets, an order is there once. FLUSHALL comes every 250 ms, and in make soak every 5 s.
func flushedUnderLoad(r *rig) {
	urls := []string{r.process(true), r.process(true)}
	workers, keys, every := 8, 200, 250*time.Millisecond
	if os.Getenv("ONCEBOX_SOAK") != "" {
		keys, every = 20*keys, 20*every
	}
	var next, lost atomic.Int64
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				i := next.Add(1)
				if i > int64(keys) {
					return
				}
				key, location := fmt.Sprint("key-", i), ""
				for n := range 6 { // six retries, at either process, after the first answer
					got, err := try(urls[n%2], key)
					switch {
					case err != nil || got.status != http.StatusCreated && got.status != http.StatusConflict:
						r.Errorf("got %+v, %v", got, err)
					case got.status == http.StatusConflict:
					case location == "":
						location = got.location
					case location != got.location:
						r.Errorf("%s is %s, and was %s", key, got.location, location)
					case !got.replayed:
						lost.Add(1) // the record was gone, and the answer rebuilt
					}
				}
			}
		})
	}
	go func() { wg.Wait(); close(done) }()
	flushes := 0
	for tick := time.NewTicker(every); ; {
		select {
		case <-tick.C:
			must(r, r.client.FlushAll(r.Context()).Err())
			flushes++
			continue
		case <-done:
		}
		break
	}
	if flushes == 0 || lost.Load() == 0 {
		r.Errorf("%d flushes, and %d answers had to be rebuilt: the fault did not fire", flushes, lost.Load())
	}
	r.Logf("%d flushes, %d answers rebuilt", flushes, lost.Load())
	wantEffects(r.T, r.pool, keys)
	if n := count(r, r.pool, "(SELECT idem_key FROM guarded GROUP BY 1 HAVING count(*) > 1) d"); n != 0 {
		r.Errorf("%d keys have two effects", n)
	}
}
