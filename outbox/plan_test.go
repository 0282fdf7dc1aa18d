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
		"peek":   {q.peek, []any{"c", int64(1)}, "outbox_3_xid_seq_idx"},
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
