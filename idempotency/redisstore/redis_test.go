package redisstore_test

import (
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// A rig is a Redis of the test's own, a database for effects, and a client of both.
type rig struct {
	*testing.T
	server *devstack.Redis
	client *redis.Client
	pool   *pgxpool.Pool
}

// durable lets no write be lost by a kill.
func durable(cfg *devstack.RedisConfig) {
	cfg.Settings = map[string]string{"appendfsync": "always"}
}

func TestRedis(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		test func(*rig)
	}{
		{"same-on-redis-unguarded", failedWithoutAGuard},
		{"store-down-at-reserve", downAtReserve},
		{"down-after-handler", downAfterHandler},
		{"handler-3-lease-with-heartbeat", slowHandler},
		{"heartbeat-blocked-sigstop-lease-b-takes-over-a-resumes", paused},
		{"crash-in-flight", crashed},
		{"flushall-between-request-and-retry", flushed},
		{"failover-dropping-last-write", failedOver},
		{"maxmemory-policy-noeviction", forgetful},
		{"server-clock-1-h", skewed},
		{"flushall-under-load", flushedUnderLoad},
		{"operator-resolves-an-unknown-outcome", resolved},
		{"server-that-hangs", hangs},
		{"transition-whose-reply-was-lost", lostReply},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := &rig{T: t, server: stacktest.Redis(t, durable), pool: stacktest.Postgres(t)}
			r.client = connect(t, r.server)
			effects(t, r.pool)
			c.test(r)
		})
	}
}

// process serves in the test's process, with a store of its own.
func (r *rig) process(guarded bool) string {
	r.Helper()
	return here(r.T, r.pool, store(r, r.client, brisk), guarded)
}
