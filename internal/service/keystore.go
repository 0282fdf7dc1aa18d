package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/redis/go-redis/v9"

	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/idempotency/redisstore"
)

// KeyStore says where the answers to requests with an Idempotency-Key are kept. Its variables are the same for all services.
type KeyStore struct {
	Store    string        `name:"idempotency-store" env:"IDEMPOTENCY_STORE" enum:"postgres,redis" default:"postgres" help:"Where Idempotency-Keys and their answers are kept: 'postgres', in the transaction of the work, or 'redis', which is faster to ask and may forget; docs/idempotency.md says what each promises."`
	RedisURL string        `name:"redis-url" env:"REDIS_URL" help:"The Redis of --idempotency-store=redis: redis://user:password@host:port/db, or rediss:// for TLS. It must keep what it is given: maxmemory-policy noeviction, appendonly yes."`
	Password string        `name:"redis-password-file" env:"REDIS_PASSWORD_FILE" help:"File with the password for the Redis URL, read again at each connection."`
	Lease    time.Duration `name:"idempotency-lease" env:"IDEMPOTENCY_LEASE" default:"15s" help:"With Redis, how long a request whose process died stays in progress."`
}

func (k KeyStore) validate() error {
	switch {
	case k.Store == "redis" && k.RedisURL == "":
		return errors.New("REDIS_URL (--redis-url) is not set: IDEMPOTENCY_STORE=redis needs it")
	case k.Store == "redis" && k.Lease < 100*time.Millisecond:
		return fmt.Errorf("IDEMPOTENCY_LEASE (--idempotency-lease) is %s, and must be at least 100ms", k.Lease)
	}
	return nil
}

// A keyStore is a store that operators can look into.
type keyStore interface {
	idempotency.Store
	idempotency.Operator
}

// open returns the store of the service of that name: pg itself, or one in Redis. Ping says whether it can be asked; closed waits
// until it has been told what it could not be told before.
func (k KeyStore) open(ctx context.Context, name string, pg *idempotency.Postgres, log *slog.Logger) (store keyStore, ping, closed func(context.Context) error, err error) {
	nothing := func(context.Context) error { return nil }
	if k.Store != "redis" {
		return pg, nothing, nothing, nil // in the database, which is asked for its own health
	}
	opts, err := redis.ParseURL(k.RedisURL)
	if err != nil {
		return nil, nil, nil, errors.New("REDIS_URL (--redis-url) is no redis:// or rediss:// URL") // the error would show the password
	}
	opts.ContextTimeoutEnabled = true
	if k.Password != "" {
		user := opts.Username
		opts.CredentialsProviderContext = func(context.Context) (string, string, error) {
			secret, err := readPassword(k.Password)
			return user, secret, err
		}
	}
	client := redis.NewClient(opts)
	ping = func(ctx context.Context) error { return client.Ping(ctx).Err() }
	_, err = backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, ping(ctx) }, backoff.WithMaxElapsedTime(30*time.Second),
		backoff.WithNotify(func(err error, in time.Duration) { log.Warn("waiting for Redis", "error", err, "retry_in", in) }))
	if err != nil {
		return nil, nil, nil, errors.Join(fmt.Errorf("connect to Redis: %w", err), client.Close())
	}
	r, err := redisstore.New(ctx, client, redisstore.Config{Prefix: "idem:" + name + ":", Lease: k.Lease, Margin: k.Lease / 8, Logger: log})
	if err != nil {
		return nil, nil, nil, errors.Join(err, client.Close())
	}
	return r, ping, func(end context.Context) error { return errors.Join(r.Close(end), client.Close()) }, nil
}
