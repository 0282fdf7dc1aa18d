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

// A deployment is a system on the databases that deploy/postgres/init.sh makes.
type deployment struct {
	*system
	base    *url.URL // the superuser's, of the database postgres
	secrets string   // folder of the roles' passwords
}

// deployed starts one.
func deployed(t *testing.T) deployment {
	t.Helper()
	pg := stacktest.OwnPostgres(t, devstack.PostgresConfig{})
	base, err := url.Parse(pg.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	d := deployment{base: base, secrets: t.TempDir()}
	for _, service := range []string{"orders", "billing"} {
		for _, role := range []string{"owner", "app", "relay"} {
			d.secret(t, service+"-"+role, fmt.Sprintf("it's %s's %s", service, role))
		}
	}
	d.script(t, "init.sh")
	as := func(service, role string) string { return d.url(service+"_"+role, service) }
	d.system = startSystem(t, nil, nil) // its databases stay unused: the services below are on the deployed ones
	for _, svc := range []*service{d.orders, d.billing} {
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
	return d
}

// secret writes a file as make env does.
func (d deployment) secret(t *testing.T, name, value string) (file string) {
	t.Helper()
	file = filepath.Join(d.secrets, name)
	if err := os.WriteFile(file, []byte(value), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// script runs one of deploy/postgres.
func (d deployment) script(t *testing.T, name string) {
	t.Helper()
	script := exec.CommandContext(t.Context(), "sh", filepath.Join(repository, "deploy/postgres", name))
	script.Env = append(os.Environ(), "PGHOST="+d.base.Hostname(), "PGPORT="+d.base.Port(), "SECRETS="+d.secrets,
		"PGPASSFILE="+filepath.Join(t.TempDir(), "pgpass"))
	if out, err := script.CombinedOutput(); err != nil {
		t.Fatalf("%s, which needs psql: %v\n%s", name, err, out)
	}
}

// url is a role's, of a database.
func (d deployment) url(role, database string) string {
	u := *d.base
	u.User, u.Path = url.UserPassword(role, "irrelevant: this server trusts everybody"), "/"+database
	return u.String()
}

// refused fails the test unless the database says no, by that SQLSTATE.
func (d deployment) refused(t *testing.T, user, database, sql, code string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), d.url(user, database))
	if err == nil {
		defer conn.Close(context.WithoutCancel(t.Context()))
		_, err = conn.Exec(t.Context(), sql)
	}
	if pg := (*pgconn.PgError)(nil); !errors.As(err, &pg) || pg.Code != code {
		t.Errorf("%s in %s, %s: %v, want SQLSTATE %s", user, database, sql, err, code)
	}
}

const noPrivilege = "42501"

// Invariant: the roles that the deployment makes can do their work, and none can do another's: not read the other service's
// tables, not even connect to its database. What each may do in its own, TestRolesHaveNoMoreRightsThanTheirWorkNeeds tries.
func TestDatabaseRolesAsDeployed(t *testing.T) {
	t.Parallel()
	s := deployed(t)
	s.order(t, "one")
	s.settle(t)
	s.checkOnce(t, 1)
	refused := func(user, database, sql, code string) { t.Helper(); s.refused(t, user, database, sql, code) }
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
