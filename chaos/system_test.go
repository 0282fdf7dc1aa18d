package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// A system is the whole of Oncebox: orders and billing, each on a database of its own, and a nats-server between them.
type system struct {
	nats            *devstack.NATS
	js              jetstream.JetStream
	orders, billing *service
}

// systems numbers the databases on the shared server.
var systems atomic.Int64

// brisk are settings under which what a killed process held is free again within a second.
var brisk = map[string]string{"ACK_WAIT": "1s", "LEASE": "1s"}

// startSystem returns a system that runs, with both services on brisk settings, changed by the ones given here.
func startSystem(t testing.TB, orders, billing map[string]string) *system {
	t.Helper()
	s := newSystem(t)
	s.orders.set(orders)
	s.billing.set(billing)
	s.start(t)
	return s
}

// newSystem returns a system of which nothing but the broker runs, with migrated databases.
func newSystem(t testing.TB) *system {
	t.Helper()
	_, pg := shared.get(t)
	return newSystemOn(t, pg, stacktest.NATS(t, asDeployed(t, tester)))
}

// newSystemOn is newSystem on these servers.
func newSystemOn(t testing.TB, pg *devstack.Postgres, nats *devstack.NATS) *system {
	t.Helper()
	s := &system{nats: nats}
	var err error
	if s.js, err = jetstream.New(stacktest.Connect(t, s.nats, as(tester)...)); err != nil {
		t.Fatal(err)
	}
	s.orders, s.billing = newService(t, "orders", pg, s.nats, brisk), newService(t, "billing", pg, s.nats, brisk)
	return s
}

func (s *system) start(t testing.TB) {
	t.Helper()
	s.orders.start(t)
	s.billing.start(t)
	// Not only ready, but at work: the pulls of both are with the broker.
	stacktest.Eventually(t, patience, "both services pull", func() (bool, error) {
		b, err := s.consumer(t.Context(), toBilling)
		if err != nil {
			return false, err
		}
		o, err := s.consumer(t.Context(), toOrders)
		return err == nil && b.NumWaiting > 0 && o.NumWaiting > 0, err
	})
}

// dropChargeGuards takes away what would hide a failure of the inbox: no constraint of charge's own refuses a second charge.
func (s *system) dropChargeGuards(t testing.TB) {
	t.Helper()
	for _, constraint := range []string{"charge_order_id", "charge_pkey"} {
		if _, err := s.billing.db.Exec(t.Context(), "ALTER TABLE charge DROP CONSTRAINT "+constraint+" CASCADE"); err != nil {
			t.Fatal(err)
		}
	}
}

// eachGuarding runs a test twice: as shipped, and with the charge table's own guards gone, so that the way there has to be
// safe by itself.
func eachGuarding(t *testing.T, orders, billing map[string]string, test func(t *testing.T, s *system)) {
	for name, drop := range map[string]bool{"AsShipped": false, "WithoutUniqueOrderID": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSystem(t, orders, billing)
			if drop {
				s.dropChargeGuards(t)
			}
			test(t, s)
		})
	}
}

// A direction is a stream and the durable consumer that reads it.
type direction struct{ stream, durable string }

var (
	toBilling = direction{events.OrdersStream, "billing"}
	toOrders  = direction{events.BillingStream, "orders"}
)

func (s *system) consumer(ctx context.Context, d direction) (*jetstream.ConsumerInfo, error) {
	c, err := s.js.Consumer(ctx, d.stream, d.durable)
	if err != nil {
		return nil, err
	}
	return c.CachedInfo(), nil
}

// info is consumer for where it has to be there.
func (s *system) info(t testing.TB, d direction) *jetstream.ConsumerInfo {
	t.Helper()
	info, err := s.consumer(t.Context(), d)
	if err != nil {
		t.Fatalf("consumer %s: %v", d.durable, err)
	}
	return info
}

// published is the last sequence of orders' stream.
func (s *system) published(t testing.TB) uint64 {
	t.Helper()
	return s.lastSeq(t, events.OrdersStream)
}

func (s *system) lastSeq(t testing.TB, name string) uint64 {
	t.Helper()
	stream, err := s.js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return stream.CachedInfo().State.LastSeq
}

// httpClient opens a connection for each request: Go sends a request with an Idempotency-Key again by itself when a kept
// connection dies.
var httpClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 15 * time.Second}

// An answer is a service's to a request.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// post asks the service for an order, once.
func (s *service) post(ctx context.Context, key string, amount int64) (answer, error) {
	body, err := json.Marshal(map[string]any{"customer_id": "ada", "amount": amount, "currency": "EUR", "description": "tea"})
	if err != nil {
		return answer{}, err
	}
	return s.ask(ctx, http.MethodPost, "/v1/orders", string(body), "Idempotency-Key", key)
}

// ask sends one request to the service's API, with headers given as names and values.
func (s *service) ask(ctx context.Context, method, path, body string, header ...string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.addr+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	res, err := httpClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	a := answer{status: res.StatusCode, header: res.Header}
	a.body, err = io.ReadAll(res.Body)
	return a, err
}

// order makes one, which has to be accepted at the first try.
func (s *system) order(t testing.TB, key string) {
	t.Helper()
	a, err := s.orders.post(t.Context(), key, 4200)
	if err != nil {
		t.Fatal(err)
	}
	if a.status != http.StatusCreated {
		t.Fatalf("POST answered %d: %s", a.status, a.body)
	}
}

// accepted sends a request again and again until it is answered by 201.
func accepted(ctx context.Context, send func() (answer, error)) error {
	return acceptedWithin(ctx, patience, send)
}

func acceptedWithin(ctx context.Context, limit time.Duration, send func() (answer, error)) error {
	_, err := backoff.Retry(ctx, func() (answer, error) {
		a, err := send()
		if err == nil && a.status != http.StatusCreated {
			if err = fmt.Errorf("POST answered %d: %s", a.status, a.body); a.status < 500 && a.status != http.StatusConflict { // in progress
				err = backoff.Permanent(err)
			}
		}
		return a, err
	}, backoff.WithBackOff(backoff.NewConstantBackOff(10*time.Millisecond)), backoff.WithMaxElapsedTime(limit))
	return err
}

// clients make n orders, six at once, each with a key of its own that it is sent with again and again until it is accepted.
// The function that clients returns waits for the last one.
func (s *system) clients(t testing.TB, prefix string, n int) (wait func()) {
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(6)
	started := make(chan struct{})
	go func() {
		defer close(started)
		for i := range n {
			g.Go(func() error {
				return accepted(ctx, func() (answer, error) { return s.orders.post(ctx, fmt.Sprintf("%s-%d", prefix, i), int64(100+i)) })
			})
		}
	}()
	return func() {
		t.Helper()
		<-started
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	}
}
