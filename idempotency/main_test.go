package idempotency_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/idempotency/storetest"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
)

func TestMain(m *testing.M) {
	if url, ok := os.LookupEnv(serverEnv); ok {
		if err := serve(url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	stacktest.Main(m)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// effects makes the table that handlers write to. It has no key of its own: nothing but the store stops a second effect.
func effects(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	_, err := pool.Exec(context.Background(), "CREATE TABLE effect (id text NOT NULL)")
	must(t, err)
}

// effect writes one in the request's transaction, and in one of its own where a request has no key.
func effect(ctx context.Context, pool *pgxpool.Pool) (id string, err error) {
	id = uuid.NewString()
	if tx, ok := idempotency.Tx(ctx); ok {
		_, err = tx.Exec(ctx, "INSERT INTO effect VALUES ($1)", id)
	} else {
		_, err = pool.Exec(ctx, "INSERT INTO effect VALUES ($1)", id)
	}
	return id, err
}

func count(t testing.TB, pool *pgxpool.Pool, from string, args ...any) (n int) {
	t.Helper()
	must(t, pool.QueryRow(context.Background(), "SELECT count(*) FROM "+from, args...).Scan(&n))
	return n
}

func postgres(t testing.TB, pool *pgxpool.Pool, cfg idempotency.PostgresConfig) *idempotency.Postgres {
	t.Helper()
	store, err := idempotency.NewPostgres(pool, cfg)
	must(t, err)
	return store
}

func backend(t testing.TB, pool *pgxpool.Pool) storetest.Backend {
	effects(t, pool)
	return storetest.Backend{
		Store:   func(t testing.TB) idempotency.Store { return postgres(t, pool, idempotency.PostgresConfig{}) },
		Effect:  func(ctx context.Context) (string, error) { return effect(ctx, pool) },
		Effects: func(t testing.TB) int { return count(t, pool, "effect") },
		Records: func(t testing.TB) int { return count(t, pool, "oncebox.idempotency_keys") },
		Undoes:  true,
	}
}

func TestPostgresPassesTheSuite(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t testing.TB) storetest.Backend { return backend(t, stacktest.Postgres(t, migrations.Idempotency)) })
}

// exampleDatabase is a fresh one with a table for charges: an example has no testing.TB.
func exampleDatabase() (pool *pgxpool.Pool, drop func()) {
	server, err := devstack.StartPostgres(context.Background(), devstack.PostgresConfig{})
	if err != nil {
		panic(err)
	}
	pool, err = pgxpool.New(context.Background(), server.URL("postgres"))
	if err == nil {
		err = migrations.Up(context.Background(), pool, migrations.Idempotency)
	}
	if err == nil {
		_, err = pool.Exec(context.Background(), "CREATE TABLE charge (id int GENERATED ALWAYS AS IDENTITY)")
	}
	if err != nil {
		panic(err)
	}
	return pool, func() {
		pool.Close()
		if err := server.Remove(); err != nil {
			panic(err)
		}
	}
}
