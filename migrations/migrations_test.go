package migrations_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tables are those that the lines made, without partitions.
func tables(t *testing.T, pool *pgxpool.Pool) []string {
	t.Helper()
	rows, err := pool.Query(context.Background(), `SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema' ORDER BY 1`)
	must(t, err)
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(t, err)
	return got
}

func TestALineBringsItsOwnTablesOnly(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for name, c := range map[string]struct {
		line migrations.Line
		want []string
	}{
		"outbox":                   {migrations.Outbox, []string{"oncebox.migrations_outbox", "oncebox.outbox", "oncebox.outbox_cursor", "oncebox.outbox_delayed", "oncebox.outbox_parked", "oncebox.outbox_tick"}},
		"in a schema of one's own": {migrations.Outbox.In("my outbox"), []string{"my outbox.migrations_outbox", "my outbox.outbox", "my outbox.outbox_cursor", "my outbox.outbox_delayed", "my outbox.outbox_parked", "my outbox.outbox_tick"}},
		"idempotency":              {migrations.Idempotency, []string{"oncebox.idempotency_keys", "oncebox.migrations_idempotency"}},
		"inbox":                    {migrations.Inbox, []string{"oncebox.dead_letter", "oncebox.inbox", "oncebox.inbox_position", "oncebox.inbox_retention", "oncebox.migrations_inbox"}},
		"heal":                     {migrations.Heal, []string{"oncebox.heal_mark", "oncebox.migrations_heal"}},
		"orders":                   {migrations.Orders, []string{"public.migrations_orders", "public.orders"}},
		"billing":                  {migrations.Billing, []string{"public.charge", "public.ledger", "public.migrations_billing"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := stacktest.Postgres(t)
			for range 2 { // the second changes nothing
				must(t, migrations.Up(ctx, pool, c.line))
				if diff := cmp.Diff(c.want, tables(t, pool)); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
			}
		})
	}
}

func TestManyAtOnceMigrateOnce(t *testing.T) {
	t.Parallel()
	pool := stacktest.Postgres(t)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			if err := migrations.Up(context.Background(), pool, migrations.Outbox, migrations.Inbox, migrations.Orders); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := tables(t, pool); !slices.Contains(got, "public.orders") {
		t.Errorf("got %v", got)
	}
}

// An insert has a home on every day of the ring, whatever maintenance ran or did not.
func TestEverySlotOfTheRingExists(t *testing.T) {
	t.Parallel()
	pool := stacktest.Postgres(t, migrations.Outbox)
	for slot := range 16 {
		_, err := pool.Exec(context.Background(), `INSERT INTO oncebox.outbox (slot, id, source, topic, key, version, tenant_id, headers, payload)
			VALUES ($1, gen_random_uuid(), 's', 't', 'k', 0, '', '{}', '')`, slot)
		must(t, err)
		_, err = pool.Exec(context.Background(), `INSERT INTO oncebox.outbox_tick (cursor, n, epoch, snap, stream_seq, slot)
			VALUES ('c', $1::bigint << 16, 0, '1:1:', 0, $1)`, slot)
		must(t, err)
	}
}

// roles are those of a fresh name, since they belong to the whole server, and a connection as each.
func roles(t *testing.T, pool *pgxpool.Pool) (migrations.Roles, func(role string) *pgx.Conn) {
	t.Helper()
	ctx := context.Background()
	admin := stacktest.Superuser(t, pool)
	suffix := strings.ReplaceAll(uuid.NewString(), "-", "")
	r := migrations.Roles{App: "app " + suffix, Relay: "relay " + suffix} // names that need quotes
	for _, role := range []string{r.App, r.Relay} {
		name := pgx.Identifier{role}.Sanitize()
		_, err := admin.Exec(ctx, "CREATE ROLE "+name+" LOGIN PASSWORD 'p'")
		must(t, err)
		t.Cleanup(func() {
			_, err := admin.Exec(ctx, "DROP OWNED BY "+name+"; DROP ROLE "+name)
			must(t, err)
		})
	}
	return r, func(role string) *pgx.Conn {
		t.Helper()
		cfg := pool.Config().ConnConfig.Copy()
		cfg.User, cfg.Password = role, "p"
		conn, err := pgx.ConnectConfig(ctx, cfg)
		must(t, err)
		t.Cleanup(func() { conn.Close(ctx) })
		return conn
	}
}

// What a role may do is what its work needs: no DDL, no change of what was written for good, no column that is the
// database's own to fill.
func TestRolesHaveNoMoreRightsThanTheirWorkNeeds(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	lines := []migrations.Line{migrations.Outbox, migrations.Inbox, migrations.Idempotency, migrations.Heal, migrations.Orders, migrations.Billing}
	pool := stacktest.Postgres(t, lines...)
	r, as := roles(t, pool)
	must(t, migrations.Grant(ctx, pool, r, lines...))
	_, err := pool.Exec(ctx, `GRANT DELETE, UPDATE ON oncebox.outbox TO `+pgx.Identifier{r.App}.Sanitize())
	must(t, err)
	must(t, migrations.Grant(ctx, pool, r, lines...)) // takes back what it does not give
	const columns = "(id, source, topic, key, version, tenant_id, headers, payload"
	const values = " VALUES (gen_random_uuid(), 's', 't', 'k', 0, '', '{}', ''"
	app, relay := as(r.App), as(r.Relay)
	for _, c := range []struct {
		conn    *pgx.Conn
		sql     string
		allowed bool
	}{
		{app, "INSERT INTO oncebox.outbox " + columns + ")" + values + ")", true},
		{app, "INSERT INTO oncebox.outbox " + columns + ", xid)" + values + ", '1')", false},
		{app, "INSERT INTO oncebox.outbox " + columns + ", seq) OVERRIDING SYSTEM VALUE" + values + ", 1)", false},
		{app, "INSERT INTO oncebox.outbox " + columns + ", slot)" + values + ", 1)", false},
		{app, "INSERT INTO oncebox.outbox_0 " + columns + ", slot)" + values + ", 0)", false},
		{app, "UPDATE oncebox.outbox SET topic = 'x'", false},
		{app, "DELETE FROM oncebox.outbox", false},
		{app, "TRUNCATE oncebox.outbox", false},
		{app, "SELECT FROM oncebox.outbox", false},
		{app, "UPDATE oncebox.outbox_cursor SET epoch = epoch + 1", false},
		{app, "DELETE FROM oncebox.dead_letter", false},
		{app, "TRUNCATE oncebox.inbox", false},
		{app, "DELETE FROM orders", true},
		{app, "TRUNCATE orders", false},
		{app, "UPDATE ledger SET amount = 1", false},
		{app, "DELETE FROM ledger", false},
		{app, "DELETE FROM charge", false},
		{app, "CREATE TABLE mine (i int)", false},
		{app, "CREATE TABLE oncebox.mine (i int)", false},
		{app, "CREATE SCHEMA mine", false},
		{app, "ALTER TABLE orders DROP CONSTRAINT orders_idem_key", false},
		{app, "DROP TABLE orders", false},
		{app, "CREATE INDEX ON orders (status)", false},
		{app, "ALTER SEQUENCE oncebox.outbox_seq_seq RESTART", false},
		{app, "UPDATE oncebox.migrations_outbox SET version_id = 0", false},
		{relay, "SELECT FROM oncebox.outbox", true},
		{relay, "UPDATE oncebox.outbox_cursor SET epoch = epoch + 1", true},
		{relay, "BEGIN; LOCK TABLE oncebox.outbox_3; TRUNCATE oncebox.outbox_3; ROLLBACK", true},
		{relay, "INSERT INTO oncebox.outbox " + columns + ")" + values + ")", true},
		{relay, "INSERT INTO oncebox.outbox " + columns + ", xid)" + values + ", '7')", false},
		{relay, "UPDATE oncebox.outbox SET topic = 'x'", false},
		{relay, "DELETE FROM oncebox.outbox_tick", false},
		{relay, "SELECT FROM orders", false},
		{relay, "SELECT FROM charge", false},
		{relay, "SELECT FROM oncebox.inbox", false},
		{relay, "DROP TABLE oncebox.outbox_3", false},
	} {
		_, err := c.conn.Exec(ctx, c.sql)
		denied := false
		if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) {
			denied = pg.Code == "42501"
		}
		if c.allowed && err != nil || !c.allowed && !denied {
			t.Errorf("%s as %s: %v, want allowed: %t", c.sql, c.conn.Config().User, err, c.allowed)
		}
	}
}

// A table that a migration adds has to be somebody's to use, or the service fails where it runs with rights of its own.
func TestEachTableIsGrantedToSomebody(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	lines := []migrations.Line{migrations.Outbox, migrations.Inbox, migrations.Idempotency, migrations.Heal, migrations.Orders, migrations.Billing}
	pool := stacktest.Postgres(t, lines...)
	r, _ := roles(t, pool)
	must(t, migrations.Grant(ctx, pool, r, lines...))
	for _, table := range tables(t, pool) {
		var granted bool
		must(t, pool.QueryRow(ctx, `SELECT has_table_privilege($1, $3, 'SELECT') OR has_any_column_privilege($1, $3, 'INSERT')
			OR has_table_privilege($2, $3, 'SELECT')`, r.App, r.Relay, table).Scan(&granted))
		if !granted {
			t.Errorf("migrations/grants says nothing of %s", table)
		}
	}
}

func TestADatabaseThatIsBehindIsSeen(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := stacktest.Postgres(t, migrations.Outbox, migrations.Orders)
	must(t, migrations.Check(ctx, pool, migrations.Outbox, migrations.Orders))
	if err := migrations.Check(ctx, pool, migrations.Outbox, migrations.Inbox); !errors.Is(err, migrations.ErrBehind) || !strings.Contains(err.Error(), "inbox") {
		t.Errorf("got %v for a line that is not there", err)
	}
	_, err := pool.Exec(ctx, "INSERT INTO migrations_orders (version_id, is_applied) VALUES (1000, true)")
	must(t, err)
	must(t, migrations.Check(ctx, pool, migrations.Orders)) // ahead: a newer release is being rolled out
	_, err = pool.Exec(ctx, "DELETE FROM migrations_orders WHERE version_id > 0")
	must(t, err)
	if err := migrations.Check(ctx, pool, migrations.Orders); !errors.Is(err, migrations.ErrBehind) {
		t.Errorf("got %v for a line that is behind", err)
	}
}
