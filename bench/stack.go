package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/trial"
)

// A stack is the servers of a run: one Postgres that syncs, and two nats-servers, one with JetStream's default sync_interval and
// one that syncs always.
type stack struct {
	pg        *devstack.Postgres
	interval  *devstack.NATS
	always    *devstack.NATS
	databases int
	templates map[string]string
	binaries  string // folder of the services' own, once built
}

// postgresSettings are the same for everybody. Checkpoints come between runs, where they are asked for, and not within one.
// The time of each commit is kept, because it is what some rows measure.
var postgresSettings = map[string]string{
	"shared_buffers":         "512MB",
	"max_wal_size":           "8GB",
	"checkpoint_timeout":     "1h",
	"track_commit_timestamp": "on",
}

func startStack(ctx context.Context) (_ *stack, err error) {
	s := &stack{templates: map[string]string{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.remove())
		}
	}()
	if s.pg, err = devstack.StartPostgres(ctx, devstack.PostgresConfig{Fsync: true, Settings: postgresSettings}); err != nil {
		return nil, err
	}
	if s.interval, err = devstack.StartNATS(ctx, devstack.NATSConfig{}); err != nil {
		return nil, err
	}
	s.always, err = devstack.StartNATS(ctx, devstack.NATSConfig{SyncAlways: true})
	return s, err
}

func (s *stack) remove() error {
	var errs []error
	if s.pg != nil {
		errs = append(errs, s.pg.Remove())
	}
	for _, n := range []*devstack.NATS{s.interval, s.always} {
		if n != nil {
			errs = append(errs, n.Remove())
		}
	}
	return errors.Join(append(errs, s.removeBinaries())...)
}

func (s *stack) server(sync broker.Sync) *devstack.NATS {
	if sync == broker.SyncAlways {
		return s.always
	}
	return s.interval
}

// admin runs one statement as the superuser, outside a transaction.
func (s *stack) admin(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, s.pg.URL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

// A database is a run's own.
type database struct {
	*pgxpool.Pool
	name, url string
	stack     *stack
}

// poolSize is enough for 32 writers and what runs beside them; all contenders have the same.
const poolSize = 40

func (s *stack) open(ctx context.Context, name string) (*database, error) {
	url := s.pg.URL(name)
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = poolSize
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &database{Pool: pool, name: name, url: url, stack: s}, nil
}

// database makes one as prepare leaves it. What is prepared under a name is prepared once and copied from then on, file by file,
// so that each run finds the same rows in the same places; the checkpoint before it leaves no run another one's writes to do.
func (s *stack) database(ctx context.Context, template string, prepare func(context.Context, *pgxpool.Pool) error) (*database, error) {
	if _, made := s.templates[template]; !made {
		name := fmt.Sprintf("template_%d", len(s.templates))
		if err := s.prepare(ctx, name, prepare); err != nil {
			return nil, fmt.Errorf("prepare %s: %w", template, err)
		}
		s.templates[template] = name
	}
	s.databases++
	name := fmt.Sprintf("run_%d", s.databases)
	for _, sql := range []string{"CREATE DATABASE " + name + " TEMPLATE " + s.templates[template] + " STRATEGY file_copy", "CHECKPOINT"} {
		if err := s.admin(ctx, sql); err != nil {
			return nil, err
		}
	}
	return s.open(ctx, name)
}

func (s *stack) prepare(ctx context.Context, name string, prepare func(context.Context, *pgxpool.Pool) error) error {
	if err := s.admin(ctx, "CREATE DATABASE "+name); err != nil {
		return err
	}
	db, err := s.open(ctx, name)
	if err != nil {
		return err
	}
	defer db.Close() // a template may have no connections
	if err := prepare(ctx, db.Pool); err != nil {
		return err
	}
	_, err = db.Exec(ctx, past)
	if err == nil {
		_, err = db.Exec(ctx, "ANALYZE")
	}
	return err
}

// past is what a service has behind it, whoever made it: another tenant's orders, paid, and their charges. On statistics of empty
// tables Postgres chooses plans that no service in use would have.
const past = `DO $$ BEGIN
	IF to_regclass('orders') IS NOT NULL THEN
		INSERT INTO orders (tenant_id, id, customer_id, amount, currency, description, status, version, settled_version, charge_id)
		SELECT 'past', gen_random_uuid(), 'customer-' || g % 1000, 1999, 'USD', 'two tickets', 'paid', 2, 1, gen_random_uuid()
		FROM generate_series(1, 10000) AS g;
	END IF;
	IF to_regclass('charge') IS NOT NULL THEN
		WITH c AS (
			INSERT INTO charge (tenant_id, id, order_id, customer_id, amount, currency, status)
			SELECT 'past', gen_random_uuid(), gen_random_uuid(), 'customer-' || g % 1000, 1999, 'USD', 'succeeded' FROM generate_series(1, 10000) AS g
			RETURNING *)
		INSERT INTO ledger (tenant_id, charge_id, kind, account, amount, currency)
		SELECT tenant_id, id, 'charge', account, sign * amount, currency
		FROM c, LATERAL (VALUES ('customer:' || customer_id, -1), ('revenue', 1)) AS a (account, sign);
	END IF;
END $$`

// drop closes the pool and drops the database.
func (d *database) drop(ctx context.Context) error {
	d.Close()
	return d.stack.admin(context.WithoutCancel(ctx), "DROP DATABASE IF EXISTS "+d.name+" WITH (FORCE)")
}

// A stream is a run's own, on one of the servers.
type stream struct {
	jetstream.Stream
	nc   *nats.Conn
	js   jetstream.JetStream
	name string
}

// maxStreamBytes holds the largest backlog.
const maxStreamBytes = 4 << 30

// declare is how every contender's stream is set: as Oncebox's are.
func declare(name string, subjects ...string) jetstream.StreamConfig {
	cfg := broker.Stream(name, subjects...)
	cfg.MaxBytes = maxStreamBytes
	return cfg
}

func (*stack) connect(server *devstack.NATS) (*nats.Conn, jetstream.JetStream, error) {
	nc, err := nats.Connect(server.URL())
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return nc, js, nil
}

// stream connects to a server and makes the stream there.
func (s *stack) stream(ctx context.Context, sync broker.Sync, cfg jetstream.StreamConfig) (*stream, error) {
	nc, js, err := s.connect(s.server(sync))
	if err != nil {
		return nil, err
	}
	made, err := js.CreateStream(ctx, cfg)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("make stream %s: %w", cfg.Name, err)
	}
	return &stream{Stream: made, nc: nc, js: js, name: cfg.Name}, nil
}

// existing is a stream that a service makes, once it is there.
func (s *stack) existing(ctx context.Context, name string) (*stream, error) {
	nc, js, err := s.connect(s.interval)
	if err != nil {
		return nil, err
	}
	for {
		made, err := js.Stream(ctx, name)
		switch {
		case err == nil:
			return &stream{Stream: made, nc: nc, js: js, name: name}, nil
		case errors.Is(err, jetstream.ErrStreamNotFound):
			err = trial.Pause(ctx, 20*time.Millisecond)
		}
		if err != nil {
			nc.Close()
			return nil, fmt.Errorf("look at stream %s: %w", name, err)
		}
	}
}

func (s *stream) drop(ctx context.Context) error {
	defer s.nc.Close()
	return s.js.DeleteStream(context.WithoutCancel(ctx), s.name)
}

// holds waits until the stream holds n messages and returns when the last of them was stored, by the server's clock, which is this
// machine's.
func (s *stream) holds(ctx context.Context, n int) (time.Time, error) {
	for {
		info, err := s.Info(ctx)
		switch {
		case err != nil:
			return time.Time{}, fmt.Errorf("look at stream %s: %w", s.name, err)
		case info.State.Msgs > uint64(n):
			return time.Time{}, fmt.Errorf("stream %s holds %d messages, more than the %d that were to come", s.name, info.State.Msgs, n)
		case info.State.Msgs == uint64(n):
			return info.State.LastTime, nil
		}
		if err := trial.Pause(ctx, 5*time.Millisecond); err != nil {
			return time.Time{}, err
		}
	}
}

// beside runs work while until does what it does, then ends work and waits for it. Work that ends before fails both.
func beside(ctx context.Context, work, until func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	working, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		err := work(working)
		if working.Err() == nil {
			cancel(fmt.Errorf("it ended before its work was done: %w", errors.Join(err, errEnded)))
		}
		done <- err
	}()
	err := until(ctx)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	stop()
	return errors.Join(err, <-done)
}

// inParallel runs n of work and one of feed until all have ended, or one fails.
func inParallel(ctx context.Context, n int, work, feed func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for range n {
		g.Go(func() error { return work(ctx) })
	}
	g.Go(func() error { return feed(ctx) })
	return g.Wait()
}

var errEnded = errors.New("ended")
