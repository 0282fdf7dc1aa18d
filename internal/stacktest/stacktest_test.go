package stacktest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/migrations"
)

func TestMain(m *testing.M) { Main(m) }

func TestEachDatabaseIsFreshAndHasItsLines(t *testing.T) {
	t.Parallel()
	for _, lines := range [][]migrations.Line{
		{migrations.Orders, migrations.Outbox},
		{migrations.Orders, migrations.Outbox},
		{migrations.Outbox.In("elsewhere")},
		{},
	} {
		db := Postgres(t, lines...)
		for _, l := range []migrations.Line{migrations.Orders, migrations.Outbox, migrations.Outbox.In("elsewhere")} {
			versions := l.Schema + ".migrations_" + l.Name
			want := false
			for _, given := range lines {
				want = want || given == l
			}
			if got := one[bool](t, db, "SELECT to_regclass($1) IS NOT NULL", versions); got != want {
				t.Errorf("with %v, %s exists: %t, want %t", lines, versions, got, want)
			}
		}
		if _, err := db.Exec(t.Context(), "CREATE TABLE public.mine (n int)"); err != nil {
			t.Errorf("with %v: %v", lines, err) // it exists: not fresh
		}
	}
}

func TestTheDatabasesUserIsNoSuperuser(t *testing.T) {
	t.Parallel()
	if one[bool](t, Postgres(t), "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") {
		t.Error("it is a superuser")
	}
}

func TestDatabaseIsDroppedAtTheTestsEnd(t *testing.T) {
	t.Parallel()
	var name string
	var leaked *pgx.Conn
	t.Run("inner", func(t *testing.T) {
		db := Postgres(t)
		name = db.Config().ConnConfig.Database
		var err error
		if leaked, err = pgx.ConnectConfig(t.Context(), db.Config().ConnConfig); err != nil {
			t.Fatal(err)
		}
	})
	defer leaked.Close(context.Background())
	if one[bool](t, Postgres(t), "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name) {
		t.Errorf("database %s is left", name)
	}
}

func TestHashChangesWithTheLines(t *testing.T) {
	t.Parallel()
	seen := map[string]migrator{}
	for _, m := range []migrator{
		{},
		{migrations.Outbox},
		{migrations.Outbox.In("elsewhere")},
		{migrations.Outbox, migrations.Inbox},
		{migrations.Inbox, migrations.Outbox},
	} {
		h, err := m.Hash()
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[h]; ok {
			t.Errorf("%v and %v have the same hash", m, other)
		}
		seen[h] = m
	}
	if _, err := (migrator{{Name: "unknown", Schema: "public"}}).Hash(); err == nil {
		t.Error("a line without files has a hash")
	}
}

func TestConnectionThatIsNotGivenBackFailsTheTest(t *testing.T) {
	t.Parallel()
	db := Postgres(t)
	conn, err := db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	f := &fakeTB{TB: t}
	closePool(f, db, 10*time.Millisecond)
	if !strings.Contains(f.failure, "1 connections were not given back") {
		t.Errorf("failed with %q", f.failure)
	}
}

func TestAdminConfigKeepsTheURL(t *testing.T) {
	for _, c := range []struct{ given, want string }{
		{"postgres://me:p%40ss%3A%2F@db.example:5433/app?sslmode=require", "postgres://me:p%40ss%3A%2F@db.example:5433/postgres?sslmode=require"},
		{"postgres://me@[::1]/app", "postgres://me:@[::1]:5432/postgres?"},
	} {
		conf, err := adminConfig(c.given)
		if err != nil || conf.URL() != c.want {
			t.Errorf("%s became %s (%v), want %s", c.given, conf.URL(), err, c.want)
		}
	}
}

func TestOwnPostgresOutlivesAKilledBackend(t *testing.T) {
	t.Parallel()
	pg := OwnPostgres(t, devstack.PostgresConfig{})
	db, err := pgxpool.New(t.Context(), pg.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	backend, err := os.FindProcess(one[int](t, db, "SELECT pg_backend_pid()"))
	if err != nil {
		t.Fatal(err)
	}
	if err := backend.Kill(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 10*time.Second, "the server has recovered", func() (bool, error) {
		err := db.Ping(t.Context())
		return err == nil, err
	})
}

func TestEachNATSIsFreshAndGoneAtTheTestsEnd(t *testing.T) {
	t.Parallel()
	var pids []int
	for i := range 2 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			broker := NATS(t, SyncAlways)
			pids = append(pids, broker.Pid())
			js, err := jetstream.New(Connect(t, broker))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "mine"}); err != nil {
				t.Error(err) // it exists: not fresh
			}
		})
	}
	for _, pid := range pids {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			t.Errorf("nats-server %d still runs", pid)
		}
	}
}

func TestConnectionComesBackWithItsServer(t *testing.T) {
	t.Parallel()
	broker := NATS(t)
	nc := Connect(t, broker)
	if err := broker.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := broker.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 10*time.Second, "the client is back", func() (bool, error) { return nc.IsConnected(), nc.LastError() })
}

func TestEventuallyFailsWithWhatAndTheLastError(t *testing.T) {
	t.Parallel()
	n := 0
	f := fails(t, func(t testing.TB) {
		Eventually(t, 30*time.Millisecond, "the moon is blue", func() (bool, error) {
			n++
			return false, fmt.Errorf("look %d", n)
		})
	})
	if want := fmt.Sprintf("not within 30ms: the moon is blue: look %d", n); f != want || n < 2 {
		t.Errorf("failed with %q, want %q", f, want)
	}
	if f := fails(t, func(t testing.TB) {
		Eventually(t, 0, "the moon is blue", func() (bool, error) { return false, nil })
	}); f != "not within 0s: the moon is blue" {
		t.Errorf("failed with %q", f)
	}
}

func TestEventuallyDoesNotTakeAnErrorForSuccess(t *testing.T) {
	t.Parallel()
	n := 0
	Eventually(t, 10*time.Second, "no error", func() (bool, error) {
		if n++; n == 1 {
			return true, errors.New("not yet")
		}
		return true, nil
	})
	if n != 2 {
		t.Errorf("%d looks, want 2", n)
	}
}

// A fakeTB records the failure of a helper under test.
type fakeTB struct {
	testing.TB
	failure string
}

func (f *fakeTB) Errorf(format string, args ...any) { f.failure = fmt.Sprintf(format, args...) }

func (f *fakeTB) Fatalf(format string, args ...any) {
	f.Errorf(format, args...)
	runtime.Goexit()
}

// fails returns what check failed with.
func fails(t *testing.T, check func(testing.TB)) string {
	f := &fakeTB{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		check(f)
	}()
	<-done
	return f.failure
}

func one[T any](t *testing.T, db *pgxpool.Pool, sql string, args ...any) T {
	t.Helper()
	rows, err := db.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}
