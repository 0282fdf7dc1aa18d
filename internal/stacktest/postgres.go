package stacktest

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"hash"
	"io/fs"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/peterldowns/pgtestdb"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/migrations"
)

const (
	// poolSize leaves room for tests in which a dozen goroutines hold a transaction each.
	poolSize = 20
	// closeLimit is how long the end of a test waits for connections that it took from the pool.
	closeLimit = 10 * time.Second
)

// Postgres returns a pool of at most 20 connections to a fresh database with these lines applied, in this order. Its user
// owns the database and is no superuser, as in production. At the end of the test the pool is closed (the test fails when it
// still holds a connection after 10 s) and the database dropped; one whose test failed stays as long as its server.
func Postgres(t testing.TB, lines ...migrations.Line) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(PostgresURL(t, lines...))
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = poolSize
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closePool(t, pool, closeLimit) })
	return pool
}

// closePool exists because Close waits for ever for a connection that a test did not give back.
func closePool(t testing.TB, pool *pgxpool.Pool, limit time.Duration) {
	t.Helper()
	closed := make(chan struct{})
	go func() {
		pool.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(limit):
		t.Errorf("%d connections were not given back to the pool %s after the test's end", pool.Stat().AcquiredConns(), limit)
	}
}

// PostgresURL is [Postgres] without the pool: for a test that starts a service, or wants other settings.
func PostgresURL(t testing.TB, lines ...migrations.Line) string {
	t.Helper()
	server, err := shared.get()
	if err != nil {
		t.Fatalf("start Postgres: %v", err)
	}
	conf, err := adminConfig(server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	return pgtestdb.Custom(t, conf, migrator(lines)).URL()
}

// Superuser returns the superuser's connection to the database of a pool that [Postgres] returned.
func Superuser(t testing.TB, pool *pgxpool.Pool) *pgx.Conn {
	t.Helper()
	server, err := shared.get()
	if err != nil {
		t.Fatalf("start Postgres: %v", err)
	}
	conn, err := pgx.Connect(context.Background(), server.URL(pool.Config().ConnConfig.Database))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// OwnPostgres returns a server for a test that kills backends, restarts the server, or sets what needs a restart. It is
// removed at the end of the test. It is always started here, also when DATABASE_URL is set.
func OwnPostgres(t testing.TB, cfg devstack.PostgresConfig) *devstack.Postgres {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	server, err := devstack.StartPostgres(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Remove(); err != nil {
			t.Errorf("remove Postgres: %v", err)
		}
	})
	return server
}

// A sharedPostgres is the server of all tests of this binary, started by the first that asks.
type sharedPostgres struct {
	mu     sync.Mutex
	tried  bool
	server *devstack.Postgres
	err    error
}

var shared sharedPostgres

func (s *sharedPostgres) get() (*devstack.Postgres, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.tried {
		s.tried = true
		ctx, cancel := context.WithTimeout(context.Background(), startLimit)
		defer cancel()
		s.server, s.err = devstack.OpenPostgres(ctx, devstack.PostgresConfig{})
	}
	return s.server, s.err
}

func (s *sharedPostgres) remove() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil {
		return nil
	}
	return s.server.Remove()
}

// adminConfig takes the server's URL to pieces: pgtestdb puts one together from its parts, without escaping them.
func adminConfig(superuser string) (pgtestdb.Config, error) {
	u, err := url.Parse(superuser)
	if err != nil {
		return pgtestdb.Config{}, err
	}
	user, password, _ := strings.Cut(u.User.String(), ":")
	port := u.Port()
	host := strings.TrimSuffix(u.Host, ":"+port)
	if port == "" {
		port = "5432"
	}
	return pgtestdb.Config{
		DriverName: "pgx",
		Host:       host,
		Port:       port,
		User:       user,
		Password:   password,
		Database:   "postgres",
		Options:    u.RawQuery,
		// A test that leaks a connection fails by closePool, not by a drop that is refused.
		ForceTerminateConnections: true,
	}, nil
}

// A migrator makes pgtestdb's template databases: one for each list of lines.
type migrator []migrations.Line

// Hash changes with a line's name, schema, place and SQL.
func (m migrator) Hash() (string, error) {
	h := sha256.New()
	for _, l := range m {
		fmt.Fprintf(h, "line %q %q\n", l.Name, l.Schema)
		files, err := l.Files()
		if err == nil {
			err = hashFiles(h, files)
		}
		if err != nil {
			return "", fmt.Errorf("hash the migrations %q: %w", l.Name, err)
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

func hashFiles(h hash.Hash, files fs.FS) error {
	return fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		sql, err := fs.ReadFile(files, path)
		fmt.Fprintf(h, "file %q %d\n%s", path, len(sql), sql)
		return err
	})
}

// Migrate ignores pgtestdb's connection: migrations takes a pool.
func (m migrator) Migrate(ctx context.Context, _ *sql.DB, conf pgtestdb.Config) error {
	pool, err := pgxpool.New(ctx, conf.URL())
	if err != nil {
		return err
	}
	defer pool.Close()
	return migrations.Up(ctx, pool, m...)
}
