package redisstore_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/idempotency/redisstore"
	"github.com/oncebox/oncebox/idempotency/storetest"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

func TestRedisPassesTheSuite(t *testing.T) {
	t.Parallel()
	client := connect(t, stacktest.Redis(t))
	for _, guarded := range []bool{true, false} {
		t.Run(fmt.Sprintf("guarded=%t", guarded), func(t *testing.T) { storetest.Run(t, backends(client, guarded)) })
	}
}

// Each script touches one slot: a cluster refuses one that does not.
func TestRedisClusterPassesTheSuite(t *testing.T) {
	t.Parallel()
	t.Run("cluster-scripts-touch-one-slot", func(t *testing.T) {
		server := stacktest.Redis(t, func(cfg *devstack.RedisConfig) {
			cfg.Settings = map[string]string{"cluster-enabled": "yes", "cluster-node-timeout": "1000"}
		})
		one := connect(t, server)
		must(t, one.Do(t.Context(), "CLUSTER", "ADDSLOTSRANGE", 0, 16383).Err())
		stacktest.Eventually(t, patience, "the cluster is up", func() (bool, error) {
			info, err := one.ClusterInfo(t.Context()).Result()
			return len(info) > 0 && info[:len("cluster_state:ok")] == "cluster_state:ok", err
		})
		cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{one.Options().Addr}, ContextTimeoutEnabled: true})
		t.Cleanup(func() { cluster.Close() })
		for _, guarded := range []bool{true, false} {
			t.Run(fmt.Sprintf("guarded=%t", guarded), func(t *testing.T) {
				storetest.Run(t, backends(cluster, guarded), "201-create-2", "same-key-other-body", "handler-500-pg", "100-across-2-processes",
					"statuses-that-are-not-kept", "retry-at-retention")
			})
		}
	})
}

// prefixes keep the cases apart on one server.
var prefixes atomic.Int64

func backends(client redis.UniversalClient, guarded bool) func(testing.TB) storetest.Backend {
	return func(t testing.TB) storetest.Backend {
		pool := stacktest.Postgres(t)
		effects(t, pool)
		cfg := redisstore.Config{Prefix: fmt.Sprintf("case-%d:", prefixes.Add(1))}
		effect := unguardedEffect
		if guarded {
			effect = guardedEffect
		}
		return storetest.Backend{
			Store:   func(t testing.TB) idempotency.Store { return store(t, client, cfg) },
			Effect:  func(ctx context.Context) (string, error) { return effect(ctx, pool) },
			Effects: func(t testing.TB) int { return count(t, pool, "effect") + count(t, pool, "guarded") },
			Records: func(t testing.TB) int {
				keys, err := client.Keys(context.Background(), cfg.Prefix+"*").Result()
				must(t, err)
				return len(keys)
			},
			Guarded: guarded,
		}
	}
}
