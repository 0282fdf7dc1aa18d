package chaos

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox/internal/stacktest"
)

// recovery is how long containers may take until all is paid that was asked for while one of them was away. A connection into a
// container that is paused or cut off stays open, and its client has to find that out: that takes most of it.
const recovery = 3 * time.Minute

// A strike is what the engine does to a container, and how that is seen and undone.
type strike struct {
	what string
	do   func(c *containers, id string) []string // docker's arguments
	undo func(c *containers, id, service string) []string
	look string // docker inspect's template
	want string // what it shows while the container is away
}

var strikes = []strike{
	{
		what: "killed", look: "{{.State.Status}}", want: "exited",
		do:   func(_ *containers, id string) []string { return []string{"kill", id} },
		undo: func(_ *containers, id, _ string) []string { return []string{"start", id} },
	},
	{
		what: "paused", look: "{{.State.Status}}", want: "paused",
		do:   func(_ *containers, id string) []string { return []string{"pause", id} },
		undo: func(_ *containers, id, _ string) []string { return []string{"unpause", id} },
	},
	{
		what: "cut off", look: "{{len .NetworkSettings.Networks}}", want: "0",
		do: func(c *containers, id string) []string { return []string{"network", "disconnect", c.network(), id} },
		undo: func(c *containers, id, service string) []string {
			return []string{"network", "connect", "--alias", service, c.network(), id}
		},
	},
}

// Invariant: whatever the engine does to a container of docker-compose.yml under load, each order that was taken is charged once
// when it is back.
func TestContainersThatAreKilledPausedAndCutOffChargeEachOrderOnce(t *testing.T) {
	c := startContainers(t, "docker-compose.yml")
	c.strikeAll(t, map[string]func(*testing.T, *load){
		"orders": c.clientsFail, "postgres": c.clientsFail, "billing": c.ordersWait, "nats": c.ordersWait})
}

// Invariant: the same of the three servers of docker-compose.cluster.yml; and without one of them orders are taken and paid.
func TestContainersOfAClusterThatAreKilledPausedAndCutOffStopNothing(t *testing.T) {
	c := startContainers(t, "docker-compose.yml", "docker-compose.cluster.yml")
	c.strikeAll(t, map[string]func(*testing.T, *load){"nats": c.ordersArePaid, "nats-2": c.ordersArePaid, "nats-3": c.ordersArePaid})
}

// strikeAll does each strike to each target under load, in an order that a seed draws. effect returns when it has seen what the
// lack of its target does.
func (c *containers) strikeAll(t *testing.T, effects map[string]func(*testing.T, *load)) {
	t.Helper()
	type fault struct {
		target string
		strike
	}
	var faults []fault
	for _, target := range slices.Sorted(maps.Keys(effects)) {
		for _, s := range strikes {
			faults = append(faults, fault{target, s})
		}
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })

	l := c.startLoad(t)
	for _, f := range faults {
		id := c.id(t, f.target)
		stacktest.Eventually(t, recovery, "an order is on its way", func() (bool, error) {
			n, err := c.count(t.Context(), "pending")
			return n > 0, err
		})
		if c.cluster {
			c.awaitWhole(t) // one server at a time
		}
		before := l.mark()
		c.docker(t, f.do(c, id)...)
		if is := c.docker(t, "inspect", "-f", f.look, id); is != f.want {
			t.Fatalf("%s was to be %s, and docker inspect shows %s", f.target, f.what, is)
		}
		began := time.Now()
		effects[f.target](t, before)
		away := time.Since(began)
		c.docker(t, f.undo(c, id, f.target)...)
		began = time.Now()
		stacktest.Eventually(t, recovery, f.target+" is healthy", func() (bool, error) {
			return c.docker(t, "inspect", "-f", "{{.State.Health.Status}}", id) == "healthy", nil
		})
		asked := int(l.accepted.Load())
		stacktest.Eventually(t, recovery, "all is paid that was asked for", func() (bool, error) {
			n, err := c.count(t.Context(), "paid")
			return n >= asked, err
		})
		t.Logf("%s %s for %.1f s, and all paid %.1f s later: %d orders", f.target, f.what, away.Seconds(), time.Since(began).Seconds(), asked)
	}
	orders := l.stop(t)
	c.look(t)
	c.settleWithin(t, recovery)
	c.checkOnce(t, orders)
}

// clientsFail waits until requests are not answered, or by an error.
func (c *containers) clientsFail(t *testing.T, since *load) {
	t.Helper()
	stacktest.Eventually(t, recovery, "requests fail", func() (bool, error) { return since.failed.Load() >= 4, nil })
}

// ordersWait waits until orders are taken that nobody charges.
func (c *containers) ordersWait(t *testing.T, _ *load) {
	t.Helper()
	stacktest.Eventually(t, recovery, "orders are taken, and wait", func() (bool, error) {
		n, err := c.count(t.Context(), "pending")
		return n >= 200, err // some seconds' worth: longer than AckWait and the lease
	})
}

// ordersArePaid waits until orders are paid that were taken without the target.
func (c *containers) ordersArePaid(t *testing.T, since *load) {
	t.Helper()
	stacktest.Eventually(t, recovery, "orders are taken and paid without it", func() (bool, error) {
		n, err := c.count(t.Context(), "paid")
		return n >= since.before+100, err
	})
}

// A load is clients that ask for orders, each under one key until it has it.
type load struct {
	accepted, failed *atomic.Int64
	before           int // orders that were accepted when it was marked
	end              func() error
}

// mark returns the load as it is now: with no failure yet.
func (l *load) mark() *load {
	l.failed.Store(0)
	return &load{accepted: l.accepted, failed: l.failed, before: int(l.accepted.Load())}
}

func (l *load) stop(t testing.TB) (orders int) {
	t.Helper()
	if err := l.end(); err != nil {
		t.Fatal(err)
	}
	return int(l.accepted.Load())
}

func (c *containers) startLoad(t testing.TB) *load {
	t.Helper()
	l := &load{accepted: new(atomic.Int64), failed: new(atomic.Int64)}
	stop := make(chan struct{})
	g, ctx := errgroup.WithContext(t.Context())
	for client := range 4 {
		g.Go(func() error {
			pause := time.NewTicker(100 * time.Millisecond) // 40 orders a second leave the machine to the containers
			defer pause.Stop()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return nil
				case <-pause.C:
				}
				body := fmt.Sprintf(`{"customer_id":"ada","amount":%d,"currency":"EUR","description":"tea"}`, 100+i)
				err := acceptedWithin(ctx, 2*recovery, func() (answer, error) {
					ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
					defer cancel()
					a, err := c.orders.ask(ctx, http.MethodPost, "/v1/orders", body, "Idempotency-Key", fmt.Sprintf("%d-%d", client, i),
						"Authorization", "Bearer "+c.key)
					if err != nil || a.status >= http.StatusInternalServerError {
						l.failed.Add(1)
					}
					return a, err
				})
				if err != nil {
					return fmt.Errorf("client %d, order %d: %w", client, i, err)
				}
				l.accepted.Add(1)
			}
		})
	}
	ended := false
	l.end = func() error {
		if !ended {
			close(stop)
			ended = true
		}
		return g.Wait()
	}
	t.Cleanup(func() { _ = l.end() }) // of a test that has failed already
	return l
}

// count is how many orders have a status.
func (c *containers) count(ctx context.Context, status string) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return n, c.orders.db.QueryRow(ctx, "SELECT count(*) FROM orders WHERE status = $1", status).Scan(&n)
}

// network is the one that compose makes for the project.
func (c *containers) network() string { return c.project + "_default" }

// id is the container of a service.
func (c *containers) id(t testing.TB, service string) string {
	t.Helper()
	id := c.docker(t, "compose", "ps", "--all", "--quiet", service)
	if id == "" || strings.Contains(id, "\n") {
		t.Fatalf("the containers of %s are %q", service, id)
	}
	return id
}
