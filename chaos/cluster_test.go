package chaos

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// election is how long the servers of a cluster may take to agree on a leader, or one of them to have what the others have, on a
// machine that does other things too.
const election = 3 * time.Minute

// A cluster is a system whose broker is three servers.
type cluster struct {
	*system
	servers []*devstack.NATS // server-1, server-2 and server-3
}

// newCluster returns one of which nothing but the broker runs. Orders publishes its events one by one, billing in batches.
func newCluster(t testing.TB) *cluster {
	t.Helper()
	var cfg devstack.NATSConfig
	asDeployed(t, tester)(&cfg)
	servers, err := devstack.StartNATSCluster(t.Context(), 3, cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range servers {
		t.Cleanup(func() {
			if err := s.Remove(); err != nil {
				t.Errorf("remove NATS: %v", err)
			}
		})
	}
	c := &cluster{&system{nats: servers[0]}, servers}
	nc, err := nats.Connect(c.urls(tester), append(as(tester), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if c.js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	_, pg := shared.get(t)
	c.orders, c.billing = newService(t, "orders", pg, c.nats, brisk), newService(t, "billing", pg, c.nats, brisk)
	for s, sync := range map[*service]string{c.orders: "interval", c.billing: "always"} {
		s.process = map[string]string{"NATS_URL": c.urls(s.name), "NATS_REPLICAS": "3", "NATS_SYNC": sync}
	}
	stacktest.Eventually(t, election, "the cluster has streams", func() (bool, error) {
		_, err := c.js.AccountInfo(t.Context())
		return err == nil, err
	})
	return c
}

func (c *cluster) urls(user string) string {
	var urls []string
	for _, s := range c.servers {
		urls = append(urls, strings.Replace(s.URL(), "nats://", "nats://"+user+":"+natsPassword(user)+"@", 1))
	}
	return strings.Join(urls, ",")
}

// leader is the index of the server that leads the stream.
func (c *cluster) leader(ctx context.Context, stream string) (int, error) {
	s, err := c.js.Stream(ctx, stream)
	if err != nil {
		return 0, err
	}
	var n int
	if of := s.CachedInfo().Cluster; of == nil || of.Leader == "" {
		return 0, fmt.Errorf("%s has no leader", stream)
	} else if _, err := fmt.Sscanf(of.Leader, "server-%d", &n); err != nil {
		return 0, fmt.Errorf("leader %q: %w", of.Leader, err)
	}
	return n - 1, nil
}

// awaitWhole returns when all three servers have all of both streams and of both durables: one of them can be lost again.
func (s *system) awaitWhole(t testing.TB) {
	t.Helper()
	for _, d := range []direction{toBilling, toOrders} {
		stacktest.Eventually(t, election, "three servers have "+d.stream, func() (bool, error) {
			stream, err := s.js.Stream(t.Context(), d.stream)
			if err != nil {
				return false, err
			}
			durable, err := s.consumer(t.Context(), d)
			return err == nil && whole(stream.CachedInfo().Cluster) && whole(durable.Cluster), err
		})
	}
}

func whole(of *jetstream.ClusterInfo) bool {
	return of != nil && of.Leader != "" && len(of.Replicas) == 2 &&
		!slices.ContainsFunc(of.Replicas, func(p *jetstream.PeerInfo) bool { return p.Offline || !p.Current })
}

// Invariant: of three servers that hold the streams one can be killed at a time, the streams' leader too, while events and
// acknowledgements are on their way. Orders are taken and charged without it, and each is charged once.
func TestAClusterWhoseServersAreKilledOneAtATimeChargesEachOrderOnce(t *testing.T) {
	t.Parallel()
	const servers, during, without = 3, 40, 20
	rounds := 1
	if os.Getenv("ONCEBOX_SOAK") != "" {
		rounds = 10
	}
	c := newCluster(t)
	c.start(t)
	c.dropChargeGuards(t)
	leaders, orders := 0, 0
	for round := range rounds {
		left := []int{0, 1, 2}
		for len(left) > 0 {
			c.awaitWhole(t)
			release := c.billing.hold(t, "LOCK TABLE charge IN SHARE MODE")
			waitForClients := c.clients(t, fmt.Sprintf("during-%d-%d", round, len(left)), during)
			stacktest.Eventually(t, patience, "messages are in billing's hands, and not acknowledged", func() (bool, error) {
				m, err := c.consumer(t.Context(), toBilling)
				return err == nil && m.NumAckPending > 0 && c.billing.blocked(t, "%INSERT INTO charge%") > 0, err
			})
			// The leader, and one that is left where the leader was killed before.
			killed, err := c.leader(t.Context(), events.OrdersStream)
			if err != nil {
				t.Fatal(err)
			}
			leads := slices.Contains(left, killed)
			if leads {
				leaders++
			} else {
				killed = left[0]
			}
			left = slices.DeleteFunc(left, func(i int) bool { return i == killed })
			if err := c.servers[killed].Kill(); err != nil {
				t.Fatal(err)
			}
			release()
			waitForClients()
			if leads {
				stacktest.Eventually(t, election, "another server leads", func() (bool, error) {
					now, err := c.leader(t.Context(), events.OrdersStream)
					return err == nil && now != killed, err
				})
			}
			c.clients(t, fmt.Sprintf("without-%d-%d", round, len(left)), without)()
			orders += during + without
			stacktest.Eventually(t, election, "all orders are paid without it", func() (bool, error) {
				return one[int](t, c.orders.db, "SELECT count(*) FROM orders WHERE status = 'paid'") == orders, nil
			})
			if err := c.servers[killed].Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if leaders < rounds {
		t.Errorf("%d of %d servers that were killed led the stream", leaders, rounds*servers)
	}
	c.awaitWhole(t)
	c.settle(t)
	c.checkOnce(t, orders)
	t.Logf("%d orders; %d servers killed, of which %d led; %v and %v redeliveries had no effect", orders, rounds*servers, leaders,
		c.orders.metric(t, "oncebox_inbox_noops_total"), c.billing.metric(t, "oncebox_inbox_noops_total"))
}

// Invariant: a service never changes how many servers hold its stream. It says what differs, keeps the events, and publishes
// them once an operator has changed it; the durable follows its stream.
func TestAnOperatorGivesAStreamItsReplicas(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for _, s := range []*service{c.orders, c.billing} {
		s.process["NATS_REPLICAS"] = "1"
	}
	c.start(t)
	c.order(t, "on-one-server")
	c.settle(t)
	c.orders.terminate(t)()
	c.orders.process["NATS_REPLICAS"] = "3"
	c.orders.start(t)
	c.order(t, "on-none-yet")
	stacktest.Eventually(t, patience, "orders says what differs", func() (bool, error) {
		log, err := os.ReadFile(c.orders.log.Name())
		return strings.Contains(string(log), "stream differs from its declaration: replicas is 1, not 3"), err
	})
	if n := c.published(t); n != 1 {
		t.Errorf("the stream ends at %d, want 1: what was not agreed on was published", n)
	}
	s, err := c.js.Stream(t.Context(), events.OrdersStream)
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	cfg.Replicas = 3
	if _, err := c.js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	stacktest.Eventually(t, election, "three servers have the stream and its durable", func() (bool, error) {
		s, err := c.js.Stream(t.Context(), events.OrdersStream)
		if err != nil {
			return false, err
		}
		durable, err := c.consumer(t.Context(), toBilling)
		return err == nil && whole(s.CachedInfo().Cluster) && whole(durable.Cluster), err
	})
	c.settle(t)
	c.checkOnce(t, 2)
}
