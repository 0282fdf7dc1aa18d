package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/cmd/demo/page"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/trial"
	"github.com/oncebox/oncebox/orders"
)

const (
	// ackWait is after how long JetStream hands out again what a killed billing had in hand. Each kill costs about as much.
	ackWait = 2 * time.Second
	// lease is how long the relay of a killed billing keeps that of its successor waiting.
	lease = time.Second
)

// A stack is everything that runs: servers, services, the naive consumer and the link.
type stack struct {
	fail func(error) // ends the run

	run                         string // id of this run, part of its customers' names
	dir                         string // binaries and logs
	pg                          *devstack.Postgres
	nats                        *devstack.NATS
	redis                       *devstack.Redis // nil: keys are kept in Postgres
	ordersDB, billingDB, naives *pgxpool.Pool   // each as the role that owns it
	natsStops                   atomic.Bool     // by a fault, to be started again
	js                          jetstream.JetStream
	orders, billing, naive      *program
	writer                      *program // started by a chapter
	ordersURL, billingURL       string
	link                        *link
	pgWire                      *wire // nil: the server is not ours
	pageURL                     string

	mu      sync.Mutex
	closers []func(context.Context) error
}

// onStop has f called by stop, before what was given to onStop earlier.
func (s *stack) onStop(f func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closers = append(s.closers, f)
}

// stop takes down whatever start has started, also after a start that failed. When ctx is done it goes on, but abruptly.
func (s *stack) stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for len(s.closers) > 0 {
		last := len(s.closers) - 1
		f := s.closers[last]
		s.closers = s.closers[:last]
		err = errors.Join(err, trial.Guarded(func() error { return f(ctx) })())
	}
	return err
}

func (s *stack) start(ctx context.Context, o options) error {
	s.run = uuid.NewString()[:8]
	forgetSettings()
	var err error
	if s.dir, err = os.MkdirTemp("", "oncebox-demo-"); err != nil {
		return err
	}
	s.onStop(func(context.Context) error { return os.RemoveAll(s.dir) })
	fmt.Printf("Building orders and billing, %s, %s …\n",
		either("DATABASE_URL", "starting Postgres (fsync on)"), either("NATS_URL", "starting NATS (JetStream on disk)"))
	g, gctx := errgroup.WithContext(ctx)
	g.Go(trial.Guarded(func() error {
		// Who runs the demo need not own the clone, and then git refuses to tell the version that would be stamped.
		return devstack.Build(gctx, s.dir, "-buildvcs=false", "./cmd/orders", "./cmd/billing")
	}))
	g.Go(trial.Guarded(func() error { return s.startPostgres(gctx) }))
	g.Go(trial.Guarded(func() error { return s.startNATS(gctx) }))
	if o.store == "redis" {
		g.Go(trial.Guarded(func() error { return s.startRedis(gctx) }))
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := s.startServices(ctx); err != nil {
		return err
	}
	return s.startLink(o)
}

// either says what is done about a server.
func either(variable, start string) string {
	if os.Getenv(variable) != "" {
		return "using " + variable
	}
	return start
}

// forgetSettings keeps the services' settings in the user's shell from reaching our services.
func forgetSettings() {
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "ORDERS_") || strings.HasPrefix(name, "BILLING_") {
			os.Unsetenv(name)
		}
	}
}

func (s *stack) startServices(ctx context.Context) error {
	token := filepath.Join(s.dir, "admin-token")
	err := os.WriteFile(token, []byte(rand.Text()), 0o600)
	if err != nil {
		return err
	}
	ordersDB, billingDB, err := s.wireToPostgres()
	if err != nil {
		return err
	}
	keys := []string{"IDEMPOTENCY_STORE=postgres"}
	if s.redis != nil {
		keys = []string{"IDEMPOTENCY_STORE=redis", "REDIS_URL=" + s.redis.URL()}
	}
	s.orders, s.ordersURL, err = service("orders", s.dir, ordersDB, s.nats.URL(), token, s.fail,
		append(keys, "ORDERS_LEASE="+lease.String())...)
	if err != nil {
		return err
	}
	s.billing, s.billingURL, err = service("billing", s.dir, billingDB, s.nats.URL(), token, s.fail,
		append(keys, "BILLING_LEASE="+lease.String(), "BILLING_ACK_WAIT="+ackWait.String())...)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	naively := func(name, command string) *program {
		return &program{name: name, path: self, args: []string{command}, log: filepath.Join(s.dir, command+".log"),
			env: []string{naiveDatabase + "=" + s.naives.Config().ConnString(), "NATS_URL=" + s.nats.URL()}, fail: s.fail}
	}
	s.naive, s.writer = naively("the naive consumer", naiveCommand), naively("the naive writer", writerCommand)
	if _, err := s.naives.Exec(ctx, naiveTable); err != nil {
		return fmt.Errorf("the naive consumer's table: %w", err)
	}
	programs := []*program{s.orders, s.billing, s.naive}
	s.onStop(func(ctx context.Context) error { return stopAll(ctx, append(programs, s.writer)) })
	for _, p := range programs {
		if err := p.start(); err != nil {
			return err
		}
	}
	if err := errors.Join(s.orders.ready(ctx), s.billing.ready(ctx)); err != nil {
		return err
	}
	if err := s.consumersThere(ctx); err != nil {
		return fmt.Errorf("%w; the end of orders' log:\n%s", err, s.orders.lastLines(3))
	}
	return nil
}

// consumersThere waits for the durables, which the services make once the streams are there.
func (s *stack) consumersThere(ctx context.Context) error {
	return trial.Until(ctx, pollPause, readyLimit, "the consumers are there", func() (bool, error) {
		for _, c := range consumers {
			_, err := s.js.Consumer(ctx, c.stream, c.durable)
			if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrConsumerNotFound) {
				return false, nil
			}
			if err != nil {
				return false, fmt.Errorf("look at consumer %s of %s: %w", c.durable, c.stream, err)
			}
		}
		return true, nil
	})
}

// consumers are the durables of a run.
var consumers = []struct{ stream, durable string }{
	{events.OrdersStream, billing.Name}, {events.BillingStream, orders.Name}, {events.OrdersStream, naiveGroup},
}

func (s *stack) startLink(o options) error {
	var err error
	s.link, err = s.openLink("link.log", fate{seed: o.seed, loss: o.loss}, func(page.Try) {})
	return err
}

// openLink serves a link to orders until stop.
func (s *stack) openLink(logName string, f fate, observe func(page.Try)) (*link, error) {
	errorLog, err := os.Create(filepath.Join(s.dir, logName))
	if err != nil {
		return nil, err
	}
	s.onStop(func(context.Context) error { return errorLog.Close() })
	l, listener, err := newLink(s.ordersURL, f, errorLog)
	if err != nil {
		return nil, err
	}
	l.observe = observe
	s.onStop(func(context.Context) error { return l.server.Close() })
	go func() {
		if err := trial.Guarded(func() error { return l.serve(listener) })(); err != nil {
			s.fail(err)
		}
	}()
	return l, nil
}

func (s *stack) printURLs(w io.Writer) {
	fmt.Fprintf(w, `
Break it yourself: %s

orders   %s    billing  %s
through the link that loses replies: %s
metrics  %s/metrics  %s/metrics
logs     %s
NATS     %s
Postgres %s
         %s
         %s

An order of your own (send it again: the same order):

  curl -i %s/v1/orders -H 'Content-Type: application/json' -H 'Idempotency-Key: mine-1' \
    -d '{"customer_id":"me","amount":1999,"currency":"USD","description":"a book"}'

Ctrl-C stops and removes all of it.

`, s.pageURL, s.ordersURL, s.billingURL, s.link.url, s.orders.admin.URL, s.billing.admin.URL, s.dir, s.nats.URL(),
		s.ordersDB.Config().ConnString(), s.billingDB.Config().ConnString(), s.naives.Config().ConnString(), s.link.url)
}
