package outbox_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

// TestAClusterWhoseLeaderChangesLosesNothing has three servers hold the stream, and its leader step down again and again while
// events are committed and sent.
func TestAClusterWhoseLeaderChangesLosesNothing(t *testing.T) {
	t.Parallel()
	stepDowns := 3
	if soaking() {
		stepDowns = 20
	}
	ctx := context.Background()
	servers, err := devstack.StartNATSCluster(ctx, 3, devstack.NATSConfig{})
	must(t, err)
	var urls []string
	for _, s := range servers {
		urls = append(urls, s.URL())
		t.Cleanup(func() { must(t, s.Remove()) })
	}
	for name, sync := range map[string]broker.Sync{"singles": broker.SyncInterval, "batches": broker.SyncAlways} {
		t.Run(name, func(t *testing.T) {
			r := rigOn(t, stacktest.Postgres(t, migrations.Outbox), servers[0])
			r.nc, err = broker.Connect(strings.Join(urls, ","), t.Name(), slog.New(slog.DiscardHandler), nats.ReconnectWait(10*time.Millisecond))
			must(t, err)
			t.Cleanup(r.nc.Close)
			r.js, err = jetstream.New(r.nc)
			must(t, err)
			r.declared.Replicas = 3
			r.declared.Duplicates = 100 * time.Millisecond
			t.Cleanup(func() { must(t, r.js.DeleteStream(ctx, stream)) }) // after the relay has stopped
			relay := r.relayOn(broker.SinkConfig{Sync: sync, Timeout: 2 * time.Second}, func(c *outbox.RelayConfig) { c.Lease, c.Page = 5*time.Second, 500 })
			leader := func() (string, error) {
				s, err := r.js.Stream(ctx, stream)
				if err != nil {
					return "", err
				}
				if s.CachedInfo().Cluster == nil {
					return "", fmt.Errorf("no cluster")
				}
				return s.CachedInfo().Cluster.Leader, nil
			}
			stacktest.Eventually(t, time.Minute, "the stream has a leader", func() (bool, error) {
				l, err := leader()
				return l != "", err
			})
			n := 0
			more := func() {
				r.fill(500)
				n += 500
			}
			more()
			stacktest.Eventually(t, time.Minute, "the first events are sent", func() (bool, error) { return relay.metric(t, "stored_total") >= 500, nil })
			for range stepDowns {
				was, err := leader()
				must(t, err)
				more() // and at once, while they are being sent
				stacktest.Eventually(t, 30*time.Second, "the leader steps down", func() (bool, error) {
					m, err := r.nc.Request("$JS.API.STREAM.LEADER.STEPDOWN."+stream, nil, time.Second)
					if err != nil {
						return false, err
					}
					var answer struct{ Success bool }
					err = json.Unmarshal(m.Data, &answer)
					return answer.Success, err
				})
				stacktest.Eventually(t, 30*time.Second, "another leads", func() (bool, error) {
					more()
					l, err := leader()
					return l != "" && l != was, err
				})
			}
			stacktest.Eventually(t, 2*time.Minute, "all is sent", func() (bool, error) { return reached(r.logged(), n) })
			rows, err := r.pool.Query(ctx, "SELECT id::text FROM oncebox.outbox ORDER BY seq")
			must(t, err)
			var want []string
			for rows.Next() {
				var id string
				must(t, rows.Scan(&id))
				want = append(want, id)
			}
			must(t, rows.Err())
			if got := ids(r.log()); !slices.Equal(got, want) {
				t.Errorf("%d events are in the stream, of %d, or not in their order", len(got), len(want))
			}
			t.Logf("%d events over %d step-downs: %v failures, %v refusals, %v skipped", n, stepDowns, relay.metric(t, "failures_total"),
				relay.metric(t, "refusals_total"), relay.metric(t, "skipped_total"))
		})
	}
}
