package outbox_test

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

// TestNothingIsLostWhenABackendIsKilled lets a backend die by SIGKILL while the relay lives. Postgres then throws its shared
// memory away: commits that asked not to wait for the disk are undone, and the xids of all that was not on disk, rolled back or
// committed, are given out again. A relay that holds a snapshot from before, and has not made it durable, takes the rows
// that get those xids for rows that it has seen.
func TestNothingIsLostWhenABackendIsKilled(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := stacktest.OwnPostgres(t, devstack.PostgresConfig{Settings: map[string]string{
		"wal_writer_delay": "10s", "full_page_writes": "off", "autovacuum": "off", "checkpoint_timeout": "1h",
	}})
	pool, err := pgxpool.New(ctx, server.URL("postgres"))
	must(t, err)
	t.Cleanup(pool.Close)
	must(t, migrations.Up(ctx, pool, migrations.Outbox))
	r := rigOn(t, pool, stacktest.NATS(t))
	relay := r.relay(func(c *outbox.RelayConfig) { c.Lease = time.Minute })
	for range 10 {
		fired := crashOnce(t, r, server, relay)
		rows, err := pool.Query(ctx, "SELECT id::text FROM oncebox.outbox ORDER BY seq")
		must(t, err)
		want, err := pgx.CollectRows(rows, pgx.RowTo[string])
		must(t, err)
		stacktest.Eventually(t, 15*time.Second, "the stream holds what the database does", func() (bool, error) {
			return reached(r.logged(), len(want))
		})
		if diff := cmp.Diff(want, ids(r.log())); diff != "" {
			t.Fatalf("the stream holds what the database does not, or not what it does (-database +stream):\n%s", diff)
		}
		if fired {
			return
		}
	}
	t.Fatal("no crash undid a commit and gave its xid out again")
}

// crashOnce kills a backend behind a tick of the relay, and commits events after it. fired tells whether the crash undid
// something.
func crashOnce(t *testing.T, r *rig, server *devstack.Postgres, relay *running) (fired bool) {
	ctx := context.Background()
	logged := r.logged() + 1
	r.commit(event("k", 1))
	stacktest.Eventually(t, 20*time.Second, "the relay is idle", func() (bool, error) {
		var saved int
		err := r.pool.QueryRow(ctx, "SELECT stream_seq FROM oncebox.outbox_cursor").Scan(&saved)
		return saved == logged, err
	})
	// The relay's own saves are commits that wait for the disk, and would take everything before them along. So its next one
	// is held up, by a lock on the row that it updates.
	locker, writer := connectTo(t, server), connectTo(t, server)
	_, err := locker.Exec(ctx, "BEGIN; SELECT FROM oncebox.outbox_cursor FOR UPDATE")
	must(t, err)
	alignLog(t, writer)
	waste := func() { // xids that leave nothing on disk
		for range 8 {
			_, err := writer.Exec(ctx, "BEGIN; SELECT pg_current_xact_id(); ROLLBACK")
			must(t, err)
		}
	}
	lazily := func(events ...oncebox.Event) {
		must(t, pgx.BeginFunc(ctx, writer, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "SET LOCAL synchronous_commit = off"); err != nil {
				return err
			}
			return r.writer.Add(ctx, tx, events...)
		}))
	}
	waste()
	lazily(event("k", 2), event("k", 3))
	relay.Wake()
	stacktest.Eventually(t, 10*time.Second, "the relay has sent them and waits to save", func() (bool, error) {
		return reached(r.logged(), logged+2)
	})
	// What comes now is what the crash undoes.
	waste()
	undone := event("undone", 1)
	lazily(undone)
	var before, pid int64
	must(t, writer.QueryRow(ctx, "SELECT pg_current_xact_id()::text::bigint, pg_backend_pid()").Scan(&before, &pid))
	must(t, syscall.Kill(int(pid), syscall.SIGKILL))

	stacktest.Eventually(t, 10*time.Second, "every connection is cut", func() (bool, error) { return locker.Ping(ctx) != nil, nil })
	var after int64
	stacktest.Eventually(t, 30*time.Second, "Postgres is back", func() (bool, error) {
		r.pool.Reset() // its connections are dead
		err := r.pool.QueryRow(ctx, "SELECT pg_current_xact_id()::text::bigint").Scan(&after)
		return err == nil, err
	})
	err = r.pool.QueryRow(ctx, "SELECT FROM oncebox.outbox WHERE id = $1", undone.ID).Scan()
	if fired = errors.Is(err, pgx.ErrNoRows) && after <= before; !fired {
		must(t, err)
		t.Logf("nothing undone: xid %d before, %d after", before, after)
	}
	for i := range int64(20) {
		r.commit(event("k", 4+i))
	}
	return fired
}

// alignLog moves the write-ahead log to the start of a page. Full pages are written at once, also those of commits that do not
// wait; what the test does until the crash fits in one.
func alignLog(t *testing.T, c *pgx.Conn) {
	t.Helper()
	const page = 8192
	ctx := context.Background()
	var used int
	must(t, c.QueryRow(ctx, "SELECT (pg_current_wal_insert_lsn() - '0/0') % $1", page).Scan(&used))
	_, err := c.Exec(ctx, "SELECT pg_logical_emit_message(false, 'test', repeat('x', $1))", page-used)
	must(t, err)
	_, err = c.Exec(ctx, "SELECT pg_logical_emit_message(true, 'test', 'a commit that waits for the disk')")
	must(t, err)
}

func connectTo(t *testing.T, server *devstack.Postgres) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(context.Background(), server.URL("postgres"))
	must(t, err)
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}
