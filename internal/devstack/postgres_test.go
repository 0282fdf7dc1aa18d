package devstack_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/oncebox/oncebox/internal/devstack"
)

func TestPostgresKeepsItsRows(t *testing.T) {
	t.Parallel()
	pg := startPostgres(t, devstack.PostgresConfig{Fsync: true})
	execSQL(t, pg.URL("postgres"), "CREATE TABLE kept (n int)")

	for n, c := range []struct {
		over string
		down func() error
	}{
		{"a restart", func() error { return nil }},
		{"a stop", func() error { return pg.Stop(t.Context()) }},
		{"an immediate stop", func() error { return pg.StopImmediate(t.Context()) }},
		{"a kill of the postmaster", func() error { return syscall.Kill(pg.Pid(), syscall.SIGKILL) }},
	} {
		t.Run("over "+c.over, func(t *testing.T) {
			execSQL(t, pg.URL("postgres"), fmt.Sprintf("INSERT INTO kept VALUES (%d)", n))
			url, pid := pg.URL("postgres"), pg.Pid()
			if err := c.down(); err != nil {
				t.Fatal(err)
			}
			if err := pg.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			if pg.URL("postgres") != url {
				t.Errorf("the URL became %s, was %s", pg.URL("postgres"), url)
			}
			if pg.Pid() == pid {
				t.Error("the postmaster is the same process")
			}
			if got := query[int](t, url, "SELECT count(*) FROM kept"); got != n+1 {
				t.Errorf("%d rows, want %d", got, n+1)
			}
		})
	}
}

// A backend that does not notice its postmaster's death holds the shared memory.
func TestPostgresRestartWaitsForTheBackendsOfAKilledPostmaster(t *testing.T) {
	t.Parallel()
	pg := startPostgres(t, devstack.PostgresConfig{})
	backend := query[int](t, pg.URL("postgres"), "SELECT pg_backend_pid()")
	if err := errors.Join(syscall.Kill(backend, syscall.SIGSTOP), syscall.Kill(pg.Pid(), syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	killed := make(chan error, 1)
	time.AfterFunc(100*time.Millisecond, func() { killed <- syscall.Kill(backend, syscall.SIGKILL) })
	if err := errors.Join(pg.Restart(t.Context()), <-killed); err != nil {
		t.Fatal(err)
	}
	execSQL(t, pg.URL("postgres"), "SELECT 1")
}

func TestPostgresIsFoundInItsFolderByTheNextProcess(t *testing.T) {
	t.Parallel()
	dir := passable(t)
	first := startPostgres(t, devstack.PostgresConfig{Dir: dir})
	if _, err := devstack.StartPostgres(t.Context(), devstack.PostgresConfig{Dir: dir}); err == nil {
		t.Fatal("two servers in one folder")
	}
	execSQL(t, first.URL("postgres"), "CREATE TABLE kept (n int)")
	if err := first.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	devstack.ForgetFolder(first) // as the end of this process would

	second := startPostgres(t, devstack.PostgresConfig{Dir: dir})
	execSQL(t, second.URL("postgres"), "INSERT INTO kept VALUES (1)")
	if err := second.Remove(); err != nil {
		t.Fatal(err)
	}
	if exists(dir) {
		t.Error("the folder is left though nothing is in it")
	}
}

func TestPostgresTakesItsSettings(t *testing.T) {
	t.Parallel()
	pg := startPostgres(t, devstack.PostgresConfig{Settings: map[string]string{"work_mem": "12MB"}})
	for name, want := range map[string]string{"work_mem": "12MB", "fsync": "off", "max_connections": "300", "listen_addresses": "127.0.0.1"} {
		if got := query[string](t, pg.URL("postgres"), "SELECT current_setting('"+name+"')"); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

func TestPostgresStartEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestServiceRoleCannotConnectToAnothersDatabase(t *testing.T) {
	t.Parallel()
	pg := sharedPostgres(t)
	orders := service(t, pg, "orders")
	service(t, pg, "billing")

	execSQL(t, orders, "CREATE TABLE IF NOT EXISTS mine (n int)")
	u, err := url.Parse(orders)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/billing"
	const insufficientPrivilege = "42501"
	if _, err := pgx.Connect(t.Context(), u.String()); code(err) != insufficientPrivilege {
		t.Errorf("orders' role at billing's database: %v, want code %s", err, insufficientPrivilege)
	}
}

func TestCreateServiceAgainKeepsTheDataAndResetsThePassword(t *testing.T) {
	t.Parallel()
	hba := filepath.Join(passable(t), "pg_hba.conf")
	rules := "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
	if err := os.WriteFile(hba, []byte(rules), 0o644); err != nil {
		t.Fatal(err)
	}
	pg := startPostgres(t, devstack.PostgresConfig{Settings: map[string]string{"hba_file": hba}})

	first := service(t, pg, "orders")
	execSQL(t, first, "CREATE TABLE kept (n int)")
	second := service(t, pg, "orders")
	execSQL(t, second, "INSERT INTO kept VALUES (1)")
	const invalidPassword = "28P01"
	if _, err := pgx.Connect(t.Context(), first); code(err) != invalidPassword {
		t.Errorf("with the first password: %v, want code %s", err, invalidPassword)
	}
}

func TestCreateServiceCallsAtTheSameTimeAllSucceed(t *testing.T) {
	t.Parallel()
	pg := sharedPostgres(t)
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = pg.CreateService(t.Context(), "at_the_same_time") })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}

func TestCreateServiceRefusesASuperuser(t *testing.T) {
	t.Parallel()
	pg := sharedPostgres(t)
	if _, err := pg.CreateService(t.Context(), "postgres"); err == nil {
		t.Error("the superuser's password was reset")
	}
}

func TestDatabaseURLNamesAServerThatIsNotOurs(t *testing.T) {
	own := sharedPostgres(t)
	t.Setenv("DATABASE_URL", own.URL("template1")+"&application_name=given")

	pg, err := devstack.OpenPostgres(t.Context(), devstack.PostgresConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if got := query[string](t, pg.URL("postgres"), "SELECT current_database() || current_setting('application_name')"); got != "postgresgiven" {
		t.Errorf("connected to %s", got)
	}
	execSQL(t, service(t, pg, "external"), "CREATE TABLE IF NOT EXISTS mine (n int)")
	for what, err := range map[string]error{"Restart": pg.Restart(t.Context()), "StopImmediate": pg.StopImmediate(t.Context())} {
		if !errors.Is(err, devstack.ErrExternal) {
			t.Errorf("%s: %v, want ErrExternal", what, err)
		}
	}
	if err := errors.Join(pg.Stop(t.Context()), pg.Remove()); err != nil {
		t.Error(err)
	}
	if gone(own.Pid()) {
		t.Error("the server was stopped")
	}

	t.Setenv("DATABASE_URL", "host=127.0.0.1 user=postgres")
	if _, err := devstack.OpenPostgres(t.Context(), devstack.PostgresConfig{}); err == nil {
		t.Error("a DATABASE_URL that is no URL was taken")
	}
}

func startPostgres(t *testing.T, cfg devstack.PostgresConfig) *devstack.Postgres {
	t.Helper()
	pg, err := devstack.StartPostgres(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Remove(); err != nil {
			t.Error(err)
		}
	})
	return pg
}

// passable returns a folder that Postgres's user can pass through: the parents of t.TempDir may forbid it.
func passable(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "devstack-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func service(t *testing.T, pg *devstack.Postgres, name string) string {
	t.Helper()
	u, err := pg.CreateService(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func execSQL(t *testing.T, url, sql string) {
	t.Helper()
	conn := connect(t, url)
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func query[T any](t *testing.T, url, sql string) T {
	t.Helper()
	rows, err := connect(t, url).Query(t.Context(), sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// code is the SQLSTATE of an error, and empty of one that is none of Postgres's.
func code(err error) string {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return ""
	}
	return pgErr.Code
}
