package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/trial"
)

const (
	// lease is how long a relay that died keeps its standby waiting, ackWait after how long what was in hand comes again. A process
	// that stands still does so for longer than either.
	lease   = time.Second
	ackWait = 2 * time.Second
	// healEvery is how often outboxes are compared with inboxes.
	healEvery = 2 * time.Second
	// readyLimit is how long a start may take on a busy machine.
	readyLimit = 45 * time.Second
)

// A world is everything that runs: servers, two processes of each service, and the links between them.
type world struct {
	fail func(error) // ends the run

	bin, dir           string // binaries and small files; logs and history
	apiKey, adminToken string
	pg                 *devstack.Postgres
	nats               *devstack.NATS
	redis              *devstack.Redis
	nc                 *nats.Conn
	js                 jetstream.JetStream
	cache              *redis.Client
	super              *pgxpool.Pool // the superuser's, of the database postgres
	ordersDB           *pgxpool.Pool // the superuser's ways into the services' databases
	billingDB          *pgxpool.Pool
	secrets            []string // what no log may have
	programs           []*program
	links              []*link

	natsGate  sync.Mutex // one fault of the broker's process at a time
	pgGate    sync.Mutex
	redisGate sync.Mutex

	mu      sync.Mutex
	closers []func(context.Context) error
}

// onStop has f called by stop, before what was given to onStop earlier.
func (w *world) onStop(f func(context.Context) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closers = append(w.closers, f)
}

// stop takes down whatever start has started, also after a start that failed. When ctx is done it goes on, but abruptly.
func (w *world) stop(ctx context.Context) error {
	w.mu.Lock()
	closers := w.closers
	w.closers = nil
	w.mu.Unlock()
	var err error
	for _, f := range slices.Backward(closers) {
		err = errors.Join(err, trial.Guarded(func() error { return f(ctx) })())
	}
	return err
}

// start builds and starts everything, and returns when both services work.
func (w *world) start(ctx context.Context, o options, dir string) error {
	w.dir = dir
	for _, kv := range os.Environ() { // the services' settings in the user's shell are not for ours
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "ORDERS_") || strings.HasPrefix(name, "BILLING_") {
			os.Unsetenv(name)
		}
	}
	var err error
	if w.bin, err = os.MkdirTemp("", "oncebox-storm-bin-"); err != nil {
		return err
	}
	w.onStop(func(context.Context) error { return os.RemoveAll(w.bin) })
	w.apiKey, w.adminToken = w.secret(), w.secret()
	keys := fmt.Sprintf("default:storm:%x\n", sha256.Sum256([]byte(w.apiKey)))
	if err := errors.Join(os.WriteFile(w.file("api-keys"), []byte(keys), 0o600), os.WriteFile(w.file("token"), []byte(w.adminToken), 0o600)); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(trial.Guarded(func() error { return devstack.Build(gctx, w.bin, "-buildvcs=false", "./cmd/orders", "./cmd/billing") }))
	g.Go(trial.Guarded(func() error { return w.startPostgres(gctx) }))
	g.Go(trial.Guarded(func() error { return w.startNATS(gctx) }))
	g.Go(trial.Guarded(func() error { return w.startRedis(gctx) }))
	if err := g.Wait(); err != nil {
		return err
	}
	if err := w.makeServices(ctx); err != nil {
		return err
	}
	if o.DropGuards {
		if err := w.dropGuards(ctx); err != nil {
			return err
		}
	}
	return w.startServices(ctx)
}

func (w *world) file(name string) string { return filepath.Join(w.bin, name) }

// secret is a new one, which is looked for in the logs at the end.
func (w *world) secret() string {
	s := rand.Text()
	w.secrets = append(w.secrets, s)
	return s
}

// dropGuards takes away what would hide a failure of the inbox: no constraint of the effect's own tables refuses a second charge.
// (A cancellation's statement names one of them: orders are not deleted then.)
func (w *world) dropGuards(ctx context.Context) error {
	_, err := w.billingDB.Exec(ctx, `ALTER TABLE charge DROP CONSTRAINT charge_order_id, DROP CONSTRAINT charge_pkey CASCADE;
		ALTER TABLE ledger DROP CONSTRAINT ledger_once;
		CREATE INDEX ON charge (order_id, tenant_id)`)
	if err != nil {
		return fmt.Errorf("drop the guards: %w", err)
	}
	return nil
}

// startServices returns when all processes are ready and the durables are there.
func (w *world) startServices(ctx context.Context) error {
	w.onStop(func(ctx context.Context) error {
		var g errgroup.Group
		for _, p := range w.programs {
			g.Go(func() error { return p.end(ctx) })
		}
		return g.Wait()
	})
	for _, p := range w.programs {
		if err := p.start(); err != nil {
			return err
		}
	}
	if err := w.allReady(ctx); err != nil {
		return err
	}
	return trial.Until(ctx, pollPause, readyLimit, "the durables are there", func() (bool, error) {
		for _, d := range directions {
			if c, err := w.consumer(ctx, d); err != nil || c.NumWaiting == 0 {
				return false, away(ctx, err)
			}
		}
		return true, nil
	})
}

// allReady waits for every process.
func (w *world) allReady(ctx context.Context) error {
	for _, p := range w.programs {
		if err := p.awaitReady(ctx); err != nil {
			return fmt.Errorf("%w; the end of its log:\n%s", err, lastLines(p.log, 5))
		}
	}
	return nil
}

// of are the processes of a service.
func (w *world) of(service string) (of []*program) {
	for _, p := range w.programs {
		if p.service == service {
			of = append(of, p)
		}
	}
	return of
}

// named is the process of that name, such as orders-1.
func (w *world) named(name string) *program {
	for _, p := range w.programs {
		if p.name == name {
			return p
		}
	}
	panic("no process " + name)
}

func (w *world) link(name string) *link {
	for _, l := range w.links {
		if l.name == name {
			return l
		}
	}
	panic("no link " + name)
}

// database is the superuser's way into a service's.
func (w *world) database(service string) *pgxpool.Pool {
	if service == "orders" {
		return w.ordersDB
	}
	return w.billingDB
}

const pollPause = 10 * time.Millisecond

// lastLines are the last n of a file.
func lastLines(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
