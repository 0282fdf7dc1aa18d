package redisstore_test

import (
	"context"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/oncebox/oncebox/internal/stacktest"
)

// TestCheckThenActChargesTwice is the lesson: to look whether a request was there before, and then to remember it, are two steps,
// and between them comes the other one. What does not charge twice does both in one.
func TestCheckThenActChargesTwice(t *testing.T) {
	t.Parallel()
	const requests = 10
	pool, client := stacktest.Postgres(t), connect(t, stacktest.Redis(t))
	_, err := pool.Exec(t.Context(), "CREATE TABLE seen (key text); CREATE TABLE claimed (key text PRIMARY KEY)")
	must(t, err)
	for _, way := range []struct {
		name string
		// claim says whether the request is the first of its key. It calls meet where another request may come in between.
		claim   func(ctx context.Context, key string, meet func()) (first bool, err error)
		charges int
	}{
		{"check then act", func(ctx context.Context, key string, meet func()) (bool, error) {
			var seen bool
			if err := pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM seen WHERE key = $1)", key).Scan(&seen); err != nil || seen {
				return false, err
			}
			meet() // all have looked, none has written
			_, err := pool.Exec(ctx, "INSERT INTO seen VALUES ($1)", key)
			return true, err
		}, requests},
		{"SET NX", func(ctx context.Context, key string, meet func()) (bool, error) {
			meet()
			answer, err := client.SetArgs(ctx, key, "1", redis.SetArgs{Mode: "NX"}).Result()
			if err == redis.Nil { //nolint:errorlint // go-redis returns it as it is
				return false, nil
			}
			return answer == "OK", err
		}, 1},
		{"Lua", func(ctx context.Context, key string, meet func()) (bool, error) {
			meet()
			return client.Eval(ctx, `if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
				redis.call('SET', KEYS[1], '1') return 1`, []string{"lua:" + key}).Bool()
		}, 1},
		{"unique constraint", func(ctx context.Context, key string, meet func()) (bool, error) {
			meet()
			tag, err := pool.Exec(ctx, "INSERT INTO claimed VALUES ($1) ON CONFLICT DO NOTHING", key)
			return tag.RowsAffected() == 1, err
		}, 1},
	} {
		t.Run(way.name, func(t *testing.T) {
			if got := charge(t, pool, requests, way.claim); got != way.charges {
				t.Errorf("%d requests with one key made %d charges, want %d", requests, got, way.charges)
			}
		})
	}
}

// charge sends that many requests with one key, which meet where claim says, and counts the charges that come of them.
func charge(t *testing.T, pool *pgxpool.Pool, requests int, claim func(context.Context, string, func()) (bool, error)) (charges int) {
	t.Helper()
	var all, met sync.WaitGroup
	var mu sync.Mutex
	met.Add(requests)
	for range requests {
		all.Go(func() {
			first, err := claim(context.Background(), t.Name(), func() { met.Done(); met.Wait() })
			if err != nil {
				t.Error(err)
			}
			if first {
				mu.Lock()
				charges++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if n := pool.Stat().AcquiredConns(); n != 0 {
		t.Errorf("%d connections are still taken", n)
	}
	return charges
}
