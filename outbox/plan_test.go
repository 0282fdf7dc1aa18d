package outbox

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
)

// TestPagesAreReadByIndexBeforeAnyStatistics looks at the plans of a round's reads on a table that was filled and never
// analysed, as that of a new slot is.
func TestPagesAreReadByIndexBeforeAnyStatistics(t *testing.T) {
	t.Parallel()
	pool := stacktest.Postgres(t, migrations.Outbox)
	ctx := context.Background()
	exec := func(sql string) {
		if _, err := pool.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	exec("ALTER TABLE oncebox.outbox_3 SET (autovacuum_enabled = off)")
	exec(`INSERT INTO oncebox.outbox (slot, id, source, topic, key, version, tenant_id, headers, payload)
		SELECT 3, gen_random_uuid(), 'test', 't', 'k', g, '', '{}', repeat('x', 300)::bytea FROM generate_series(1, 100000) g`)
	exec(`INSERT INTO oncebox.outbox_tick (cursor, n, epoch, prev, snap, stream_seq, slot) VALUES ('c', 1, 1, '1:1:', pg_current_snapshot(), 0, 0)`)
	q := newQueries("oncebox", "")
	for name, c := range map[string]struct {
		sql   string
		args  []any
		index string
	}{
		"look":   {newCursor(pool, "oncebox", "c", "", "test", time.Second).tickSQL, []any{"c", int64(1), int64(1), int64(0), false, time.Now(), false}, "outbox_3_xid_seq_idx"},
		"window": {q.window, []any{int64(50_000), int64(50_500), "1:1:", "9999999:9999999:", int64(1 << 20), "c", int64(1), time.Now()}, "outbox_3_seq_idx"},
		"late":   {q.late, []any{[]string{"700", "701"}, int64(0), int64(500), int64(1 << 20), "c", int64(1), time.Now()}, "outbox_3_xid_seq_idx"},
	} {
		rows, err := pool.Query(ctx, "EXPLAIN "+c.sql, append([]any{pgx.QueryExecModeExec}, c.args...)...)
		if err != nil {
			t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		plan := strings.Join(lines, "\n")
		if !strings.Contains(plan, c.index) || strings.Contains(plan, "Seq Scan on outbox_3") {
			t.Errorf("%s does not read by %s:\n%s", name, c.index, plan)
		}
	}
}

// TestPlansOfASmallSlotDoNotReadALargeOne has a connection keep the plans that it made while there was a row, and it was known.
func TestPlansOfASmallSlotDoNotReadALargeOne(t *testing.T) {
	t.Parallel()
	pool := stacktest.Postgres(t, migrations.Outbox)
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	fill := func(rows int) {
		t.Helper()
		_, err := pool.Exec(ctx, `INSERT INTO oncebox.outbox (slot, id, source, topic, key, version, tenant_id, headers, payload)
			SELECT 3, gen_random_uuid(), 'test', 't', 'k', g, '', '{}', repeat('x', 300)::bytea FROM generate_series(1, $1::int) g`, rows)
		must(err)
	}
	_, err := pool.Exec(ctx, "ALTER TABLE oncebox.outbox_3 SET (autovacuum_enabled = off)")
	must(err)
	fill(1)
	_, err = pool.Exec(ctx, "ANALYZE oncebox.outbox")
	must(err)
	c, q := newCursor(pool, "oncebox", "c", "", "test", time.Hour), newQueries("oncebox", "")
	must(c.create(ctx, "oncebox"))
	_, _, _, err = c.acquire(ctx)
	must(err)
	round := func() {
		t.Helper()
		_, err := c.tickIfNew(ctx, 0)
		must(err)
		must(c.tick(ctx, 0, false))
		rd, err := findBounds(ctx, q, c, c.newest)
		must(err)
		_, _, err = readRows(ctx, pool, 100, q.window, 50_000, 50_100, rd.prev, rd.snap, 1<<20, c.name, c.newest, c.newestAt)
		must(err)
		_, _, err = readRows(ctx, pool, 100, q.late, []string{"700"}, 0, 100, 1<<20, c.name, c.newest, c.newestAt)
		must(err)
	}
	for range 10 { // from the sixth time on a plan may be kept
		round()
	}
	fill(100_000)
	must(c.tick(ctx, 0, false)) // so that the rows are not new
	read := func() (n int64) {
		t.Helper()
		_, err := pool.Exec(ctx, "SELECT pg_stat_force_next_flush()")
		must(err)
		must(pool.QueryRow(ctx, "SELECT seq_tup_read + COALESCE(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = 'outbox_3'").Scan(&n))
		return n
	}
	before := read()
	for range 10 {
		round()
	}
	if n := read() - before; n > 10_000 {
		t.Errorf("ten rounds read %d rows of a slot that had one when they were planned", n)
	}
}
