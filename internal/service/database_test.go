package service

import (
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
)

// A password in a file is read at each connection, so that it changes with the role's, without a restart.
func TestAPostgresPasswordIsRotatedWithoutARestart(t *testing.T) {
	t.Parallel()
	server := stacktest.OwnPostgres(t, devstack.PostgresConfig{})
	admin, err := pgxpool.New(t.Context(), server.URL("postgres"))
	must(t, err)
	t.Cleanup(admin.Close)
	do := func(sql string) {
		t.Helper()
		_, err := admin.Exec(t.Context(), sql)
		must(t, err)
	}
	var hba string
	must(t, admin.QueryRow(t.Context(), "SHOW hba_file").Scan(&hba))
	rules, err := os.ReadFile(hba)
	must(t, err)
	do("CREATE ROLE app LOGIN PASSWORD 'first'")
	must(t, os.WriteFile(hba, append([]byte("host all app 127.0.0.1/32 scram-sha-256\n"), rules...), 0o600)) // its owner stays
	do("SELECT pg_reload_conf()")

	u, err := url.Parse(server.URL("postgres"))
	must(t, err)
	u.User = url.User("app")
	file := filepath.Join(t.TempDir(), "password")
	try := func() error {
		pool, err := connect(t.Context(), u.String(), 2, nil, slog.New(slog.DiscardHandler), password(file))
		if err == nil {
			pool.Close()
		}
		return err
	}
	writeFile(t, file, "wrong\n")
	stacktest.Eventually(t, 30*time.Second, "Postgres wants a password", func() (bool, error) { return try() != nil, nil })

	writeFile(t, file, "first\n")
	pool, err := connect(t.Context(), u.String(), 2, nil, slog.New(slog.DiscardHandler), password(file))
	must(t, err)
	defer pool.Close()
	do("GRANT CREATE ON DATABASE postgres TO app; GRANT CREATE ON SCHEMA public TO app")
	must(t, Migrate(t.Context(), Database{DatabaseURL: u.String(), PasswordFile: file, MaxConns: 2}, Definition{Name: "test", Line: migrations.Orders}))
	do("ALTER ROLE app PASSWORD 'second'")
	pool.Reset()
	if err := pool.Ping(t.Context()); err == nil {
		t.Error("connected with the old password")
	}
	writeFile(t, file, "second\n")
	must(t, pool.Ping(t.Context()))
	must(t, os.Remove(file))
	pool.Reset()
	if err := pool.Ping(t.Context()); err == nil || !unreachable(err) {
		t.Errorf("without the file: %v, want what means that the database cannot be reached", err)
	}
}

func TestARelaysPasswordGoesWithItsURL(t *testing.T) {
	t.Parallel()
	one := Database{DatabaseURL: "postgres://a", PasswordFile: "a"}
	if url, file := one.relay(); url != "postgres://a" || file != "a" {
		t.Errorf("the relay of one URL comes by %s with %s", url, file)
	}
	two := Database{DatabaseURL: "postgres://a", PasswordFile: "a", RelayDatabaseURL: "postgres://b"}
	if url, file := two.relay(); url != "postgres://b" || file != "" {
		t.Errorf("the relay of its own URL comes by %s with %s", url, file)
	}
}
