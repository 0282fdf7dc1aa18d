package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"

	"github.com/oncebox/oncebox/cmd/demo/page"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/trial"
)

func (s *stack) startPostgres(ctx context.Context) error {
	var err error
	if os.Getenv("DATABASE_URL") == "" {
		if err := devstack.InstallPostgres(ctx, os.Stderr); err != nil {
			return err
		}
	}
	if s.pg, err = devstack.OpenPostgres(ctx, devstack.PostgresConfig{Fsync: true}); err != nil {
		return err
	}
	s.onStop(func(context.Context) error { return s.pg.Remove() })
	for name, pool := range map[string]**pgxpool.Pool{"orders": &s.ordersDB, "billing": &s.billingDB, "naive": &s.naives} {
		if *pool, err = s.createDatabase(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// createDatabase makes a service's database, in a server that is not ours one of this run's own.
func (s *stack) createDatabase(ctx context.Context, name string) (*pgxpool.Pool, error) {
	if s.pg.External() {
		name = "demo_" + s.run + "_" + name
		s.onStop(func(ctx context.Context) error { return dropDatabase(ctx, s.pg, name) })
	}
	url, err := s.pg.CreateService(ctx, name)
	if err != nil {
		return nil, err
	}
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("database %s: %w", name, err)
	}
	cfg.ConnConfig.RuntimeParams["application_name"] = page.Application
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("database %s: %w", name, err)
	}
	s.onStop(func(context.Context) error { pool.Close(); return nil })
	return pool, nil
}

// tidying is the time for what must be removed also when somebody is in a hurry: left behind it would stop the next demo.
func tidying(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
}

func dropDatabase(ctx context.Context, pg *devstack.Postgres, name string) error {
	ctx, done := tidying(ctx)
	defer done()
	pool, err := pgxpool.New(ctx, pg.URL("postgres"))
	if err != nil {
		return fmt.Errorf("drop database %s: %w", name, err)
	}
	defer pool.Close()
	for _, sql := range []string{"DROP DATABASE IF EXISTS " + name + " WITH (FORCE)", "DROP ROLE IF EXISTS " + name} {
		if _, err := pool.Exec(ctx, sql); err != nil {
			return fmt.Errorf("drop database %s: %w", name, err)
		}
	}
	return nil
}

func (s *stack) startRedis(ctx context.Context) error {
	var err error
	if s.redis, err = devstack.OpenRedis(ctx, devstack.RedisConfig{}); err != nil {
		return err
	}
	s.onStop(func(context.Context) error { return s.redis.Remove() })
	return nil
}

func (s *stack) startNATS(ctx context.Context) error {
	var err error
	if s.nats, err = devstack.OpenNATS(ctx, devstack.NATSConfig{}); err != nil {
		return err
	}
	s.onStop(func(context.Context) error { return s.nats.Remove() })
	nc, err := nats.Connect(s.nats.URL(), nats.Name("demo"), nats.MaxReconnects(-1), nats.DisconnectErrHandler(s.lostNATS))
	if err != nil {
		return fmt.Errorf("connect to NATS: %w", err)
	}
	s.onStop(func(context.Context) error { nc.Close(); return nil })
	if s.js, err = jetstream.New(nc); err != nil {
		return fmt.Errorf("connect to NATS: %w", err)
	}
	if s.nats.External() {
		return s.claimStreams(ctx)
	}
	return nil
}

// copyNATS copies the store of the server, which is stopped meanwhile. putBack puts the copy in the store's place.
func (s *stack) copyNATS(ctx context.Context) (putBack func(context.Context) error, err error) {
	dir, err := os.MkdirTemp(s.dir, "nats-copy-")
	if err != nil {
		return nil, err
	}
	swap := func(ctx context.Context, from, to string) error {
		s.natsStops.Store(true)
		defer s.natsStops.Store(false)
		if err := s.nats.Stop(ctx); err != nil {
			return err
		}
		if err := os.RemoveAll(to); err != nil {
			return err
		}
		return errors.Join(os.CopyFS(to, os.DirFS(from)), s.nats.Restart(ctx), s.backAtNATS(ctx))
	}
	return func(ctx context.Context) error {
		return errors.Join(swap(ctx, dir, s.nats.StorePath()), os.RemoveAll(dir))
	}, swap(ctx, s.nats.StorePath(), dir)
}

// backAtNATS waits until our own connection serves again.
func (s *stack) backAtNATS(ctx context.Context) error {
	return trial.Until(ctx, pollPause, readyLimit, "the streams are back", func() (bool, error) {
		ask, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := s.js.Stream(ask, events.OrdersStream)
		return err == nil, nil
	})
}

// lostNATS ends the run when a server of our own is gone: it does not come back.
func (s *stack) lostNATS(_ *nats.Conn, err error) {
	if err != nil && !s.nats.External() && !s.natsStops.Load() { // nil: we closed the connection
		s.fail(fmt.Errorf("the connection to NATS is lost: %w", err))
	}
}

// lendRedis starts the redis-server of a chapter, which keeps nothing on disk. Without a binary there is none, and the rest of
// the page does without.
func (s *stack) lendRedis(ctx context.Context, lab *page.Lab) error {
	server, err := devstack.StartRedis(ctx, devstack.RedisConfig{Settings: map[string]string{"appendonly": "no"}})
	if errors.Is(err, devstack.ErrNoRedis) {
		return nil
	}
	if err != nil {
		return err
	}
	s.onStop(func(context.Context) error { return server.Remove() })
	o, err := redis.ParseURL(server.URL())
	if err != nil {
		return fmt.Errorf("connect to Redis: %w", err)
	}
	lab.Redis = redis.NewClient(o)
	lab.LoseRedis = func(ctx context.Context) error { return errors.Join(server.Kill(), server.Restart(ctx)) }
	s.onStop(func(context.Context) error { return lab.Redis.Close() })
	return nil
}

// claimStreams refuses a server where there is an Oncebox already: our orders would write beside the owner of its stream, and
// our billing would take its messages.
func (s *stack) claimStreams(ctx context.Context) error {
	for _, name := range []string{events.OrdersStream, events.BillingStream} {
		_, err := s.js.Stream(ctx, name)
		switch {
		case err == nil:
			return fmt.Errorf("the server at NATS_URL has a stream %s already: the demo needs one without "+
				"(if a demo that was killed left it: nats stream rm %s)", name, name)
		case !errors.Is(err, jetstream.ErrStreamNotFound):
			return fmt.Errorf("look at stream %s: %w", name, err)
		}
	}
	s.onStop(func(ctx context.Context) error {
		end, done := tidying(ctx)
		defer done()
		var err error
		for _, name := range []string{events.OrdersStream, events.BillingStream} {
			if e := s.js.DeleteStream(end, name); !errors.Is(e, jetstream.ErrStreamNotFound) {
				err = errors.Join(err, e)
			}
		}
		return err
	})
	return nil
}
