package chaos

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// Invariant: the roles that the deployment makes can do their work, and none can do another's: not read the other service's
// tables, not even connect to its database. What each may do in its own, TestRolesHaveNoMoreRightsThanTheirWorkNeeds tries.
func TestDatabaseRolesAsDeployed(t *testing.T) {
	t.Parallel()
	pg := stacktest.OwnPostgres(t, devstack.PostgresConfig{})
	base, err := url.Parse(pg.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	init := exec.CommandContext(t.Context(), "sh", filepath.Join(repository, "deploy/postgres/init.sh"))
	secrets := t.TempDir()
	init.Env = append(os.Environ(), "PGHOST="+base.Hostname(), "PGPORT="+base.Port(), "SECRETS="+secrets)
	for _, service := range []string{"orders", "billing"} {
		for _, role := range []string{"owner", "app", "relay"} {
			file := filepath.Join(secrets, service+"-"+role)
			if err := os.WriteFile(file, fmt.Appendf(nil, "it's %s's %s", service, role), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if out, err := init.CombinedOutput(); err != nil {
		t.Fatalf("init.sh, which needs psql: %v\n%s", err, out)
	}

	as := func(service, role string) string {
		u := *base
		u.User, u.Path = url.UserPassword(service+"_"+role, "irrelevant: this server trusts everybody"), "/"+service
		return u.String()
	}
	s := startSystem(t, nil, nil) // its databases stay unused: the services below are on the deployed ones
	for _, svc := range []*service{s.orders, s.billing} {
		svc.terminate(t)()
		svc.role, svc.owner, svc.app, svc.relay = svc.name, as(svc.name, "owner"), as(svc.name, "app"), as(svc.name, "relay")
		svc.set(map[string]string{"DATABASE_URL": svc.app, "RELAY_DATABASE_URL": svc.relay})
		if svc.db, err = pgxpool.New(t.Context(), pg.URL(svc.name)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(svc.db.Close)
		svc.migrate(t)
		svc.migrate(t) // each deployment does it again
		svc.start(t)
	}
	s.order(t, "one")
	s.settle(t)
	s.checkOnce(t, 1)

	refused := func(user, database, sql, code string) {
		t.Helper()
		u := *base
		u.User, u.Path = url.User(user), "/"+database
		conn, err := pgx.Connect(t.Context(), u.String())
		if err == nil {
			defer conn.Close(context.WithoutCancel(t.Context()))
			_, err = conn.Exec(t.Context(), sql)
		}
		if pg := (*pgconn.PgError)(nil); !errors.As(err, &pg) || pg.Code != code {
			t.Errorf("%s in %s, %s: %v, want SQLSTATE %s", user, database, sql, err, code)
		}
	}
	const noPrivilege = "42501"
	for _, role := range []string{"owner", "app", "relay"} {
		refused("orders_"+role, "billing", "SELECT FROM charge", noPrivilege)
		refused("billing_"+role, "orders", "SELECT FROM orders", noPrivilege)
		refused("orders_"+role, "postgres", "SELECT", noPrivilege)
		refused("billing_"+role, "template1", "SELECT", noPrivilege)
	}
	refused("orders_app", "orders", "CREATE TABLE mine ()", noPrivilege)
	refused("orders_app", "orders", "CREATE TEMPORARY TABLE mine ()", noPrivilege)
	refused("orders_app", "orders", "UPDATE oncebox.outbox SET topic = 'x'", noPrivilege)
	refused("orders_relay", "orders", "SELECT FROM orders", noPrivilege)
	refused("orders_app", "orders", "SET ROLE orders_owner", noPrivilege)
}

// A service that may not migrate says what to run, and ends.
func TestAServiceOnADatabaseThatIsNotMigratedSaysSo(t *testing.T) {
	t.Parallel()
	s := startSystem(t, nil, nil)
	s.orders.terminate(t)()
	if _, err := s.orders.db.Exec(t.Context(), "DELETE FROM migrations_orders WHERE version_id > 0"); err != nil {
		t.Fatal(err)
	}
	out, err := s.orders.run(t)
	if err == nil || strings.Count(strings.TrimSpace(out), "\n") > 1 || !strings.Contains(out, "run orders migrate") {
		t.Errorf("got %v and %q", err, out)
	}
}
