package outbox_test

import (
	"context"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

// soaking says that the tests run at real times and sizes: make soak.
func soaking() bool { return os.Getenv("ONCEBOX_SOAK") != "" }

// fill commits n events of 350 bytes, of a thousand keys.
func (r *rig) fill(n int) {
	r.t.Helper()
	for left := n; left > 0; left -= 20_000 {
		_, err := r.pool.Exec(context.Background(), `INSERT INTO oncebox.outbox (id, source, topic, key, version, tenant_id, headers, payload)
			SELECT gen_random_uuid(), 'test', 'test.happened.v1', 'k' || g % 1000, g, '', '{}', convert_to(repeat('x', 350), 'UTF8')
			FROM generate_series(1, $1) g`, min(left, 20_000))
		must(r.t, err)
	}
}

// TestABacklogIsDrainedInBoundedMemory is not parallel: it measures the process.
func TestABacklogIsDrainedInBoundedMemory(t *testing.T) {
	n := 200_000
	if soaking() {
		n = 1_000_000
	}
	if given := os.Getenv("ONCEBOX_DRAIN"); given != "" {
		var err error
		n, err = strconv.Atoi(given)
		must(t, err)
	}
	for name, sync := range map[string]broker.Sync{"singles": broker.SyncInterval, "batches, synced always": broker.SyncAlways} {
		t.Run(name, func(t *testing.T) {
			server := stacktest.NATS(t, func(c *devstack.NATSConfig) { c.SyncAlways = sync == broker.SyncAlways })
			r := rigOn(t, stacktest.Postgres(t, migrations.Outbox), server)
			r.fill(n)
			runtime.GC()
			var before, now runtime.MemStats
			runtime.ReadMemStats(&before)
			var peak atomic.Uint64
			began := time.Now()
			relay := r.relayOn(broker.SinkConfig{Sync: sync, Timeout: 30 * time.Second}, func(c *outbox.RelayConfig) {
				*c = outbox.RelayConfig{Name: c.Name, Registerer: c.Registerer, Logger: c.Logger}
			})
			stacktest.Eventually(t, 5*time.Minute, "all is sent", func() (bool, error) {
				runtime.ReadMemStats(&now)
				peak.Store(max(peak.Load(), now.HeapInuse))
				return relay.metric(t, "stored_total") == float64(n), nil
			})
			took := time.Since(began)
			relay.stop()
			grown := (int64(peak.Load()) - int64(before.HeapInuse)) >> 20
			t.Logf("%d rows in %s, %.0f/s; the heap grew by %d MiB", n, took.Round(time.Millisecond), float64(n)/took.Seconds(), grown)
			if grown > 64 {
				t.Errorf("the heap grew by %d MiB, more than 64", grown)
			}
			var inserted, dead int
			stacktest.Eventually(t, 20*time.Second, "the statistics are in", func() (bool, error) {
				err := r.pool.QueryRow(context.Background(), `SELECT sum(n_tup_ins) FILTER (WHERE relname ~ '^outbox_[0-9]'), sum(n_dead_tup + n_tup_upd + n_tup_del)
					FROM pg_stat_user_tables WHERE relname ~ '^outbox(_tick)?_[0-9]'`).Scan(&inserted, &dead)
				return inserted >= n, err
			})
			if dead > 0 {
				t.Errorf("%d tuples of the outbox or the ticks are dead", dead)
			}
			if got := r.logged(); got != n {
				t.Errorf("%d in the stream, want %d", got, n)
			}
		})
	}
}
