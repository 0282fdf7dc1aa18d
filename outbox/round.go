package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox"
)

// maxWindow bounds how far a window of seq is widened where the rows of a round lie thin.
const maxWindow = 64

// queries are the statements that read a round. Snapshots travel as text.
type queries struct {
	open, window, late, status string
	retain                     func(slotTable string) string
}

// newQueries are those of a cursor with these topics, a regular expression, "" for all.
func newQueries(schema, topics string) queries {
	covered := ""
	if topics != "" {
		covered = " AND topic ~ " + literal(topics)
	}
	outbox := pgx.Identifier{schema, "outbox"}.Sanitize()
	ticks := pgx.Identifier{schema, "outbox_tick"}.Sanitize()
	const columns = `seq, id, source, topic, key, version, tenant_id, time, headers, payload`
	// Bounded in bytes too: a page ends with the row that fills it. The sizes are known without reading what is stored apart; they
	// are ints, as the sum of bigints is a numeric, which is slow.
	cut := func(rows, budget string) string {
		return `SELECT seq, id::text, source, topic, key, version, tenant_id, time, headers::text, payload, upto >= ` + budget + ` AS full
			FROM (SELECT *, sum(size) OVER (ORDER BY seq) AS upto FROM (` + rows + `) AS r) AS r
			WHERE upto - size < ` + budget + ` ORDER BY seq`
	}
	const sized = `SELECT ` + columns + `, octet_length(payload) + pg_column_size(headers) + 512 AS size FROM `
	return queries{
		status: statusQuery(schema, covered),
		retain: retainQuery(schema),
		// The round's two snapshots; its least and greatest seq among the transactions begun after the first (an index-only
		// scan of (xid, seq)); and the transactions that were open at the first and are over at the second.
		open: `
			WITH t AS (SELECT prev, snap FROM ` + ticks + ` WHERE slot = ($2::bigint >> 16) & 15 AND cursor = $1 AND n = $2),
			r AS MATERIALIZED (SELECT seq FROM ` + outbox + `
				WHERE xid >= (SELECT pg_snapshot_xmax(prev) FROM t) AND xid < (SELECT pg_snapshot_xmax(snap) FROM t)
				AND pg_visible_in_snapshot(xid, (SELECT snap FROM t)))
			SELECT prev::text, snap::text, COALESCE((SELECT min(seq) FROM r), 0), COALESCE((SELECT max(seq) FROM r), 0),
				ARRAY(SELECT x::text FROM pg_snapshot_xip(prev) AS x WHERE pg_visible_in_snapshot(x, snap))
			FROM t WHERE ` + history(ticks, "$1", "$3", "$4"),
		// A window of seq and no LIMIT: with one, the generic plan of the prepared statement sorts the rest of the backlog for
		// each page. A transaction that was open at the first snapshot may have an xid above its xmax, and a seq below
		// everything written since: so the window starts at the round's own least seq. The CASE keeps the planner from reading by
		// (xid, seq), which is the rest of the backlog for each page.
		window: cut(sized+outbox+`
			WHERE seq > $1 AND seq <= $2`+covered+`
			AND CASE WHEN xid >= pg_snapshot_xmax($3::text::pg_snapshot) THEN pg_visible_in_snapshot(xid, $4::text::pg_snapshot) END
			AND `+history(ticks, "$6", "$7", "$8"), "$5"),
		// What transactions wrote that were open at the first snapshot, a page across all of them, by (xid, seq).
		late: cut(`SELECT r.* FROM unnest($1::text[]) AS x CROSS JOIN LATERAL (
				`+sized+outbox+`
				WHERE xid BETWEEN x::xid8 AND x::xid8 AND seq > $2`+covered+` ORDER BY xid, seq LIMIT $3) AS r
			WHERE `+history(ticks, "$5", "$6", "$7")+` ORDER BY seq LIMIT $3`, "$4"),
	}
}

// byIndex runs one of the statements that are all of a relay's work where little is to be sent, in one round trip and with the plan that the
// connection keeps of it: planning it over the 16 slots takes longer than the rest. But a plan that was made while a slot was nearly
// empty, as in a new database and each midnight, would read all of it later: so no plan may, the statement's transaction is told.
func byIndex(ctx context.Context, pool *pgxpool.Pool, sql string, args []any, read func(pgx.Rows) error) error {
	b := &pgx.Batch{}
	b.Queue("SELECT set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true)")
	b.Queue(sql, args...).Query(read)
	return pool.SendBatch(ctx, b).Close()
}

// rowByIndex is byIndex for one row; none is [pgx.ErrNoRows].
func rowByIndex(ctx context.Context, pool *pgxpool.Pool, sql string, args []any, to ...any) error {
	return byIndex(ctx, pool, sql, args, func(rows pgx.Rows) error {
		if !rows.Next() {
			return cmp.Or(rows.Err(), pgx.ErrNoRows)
		}
		return rows.Scan(to...)
	})
}

// planned has Postgres plan a statement anew each time, for the values that come with it: those that are rare, or may well read all
// of a slot.
const planned = pgx.QueryExecModeCacheDescribe

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// A row is an event as it stands in the outbox. One that is broken cannot be made an event of again.
type row struct {
	oncebox.Event
	broken error
}

// A round yields the rows that are visible in its tick and were not in the tick before, in the order of seq. Each of its
// queries is a READ COMMITTED statement of its own, begun after the tick's commit: no transaction stays open while rows are
// sent.
type round struct {
	pool    *pgxpool.Pool
	q       queries
	history []any // that the database must have: a cursor, a tick of it, and when that was taken
	page    int64 // rows
	bytes   int64

	bounds

	main, late       []row // read and not yet yielded
	mainPos, latePos int64 // read up to here
	lateDone         bool
	lateRows         int   // read so far
	width            int64 // of the next window
}

// bounds are where the rows of a round are.
type bounds struct {
	prev, snap string
	lo, hi     int64    // least and greatest seq among the transactions begun after prev, 0 for none
	xids       []string // of the transactions open at prev, and over at snap
}

// empty says that no row at all became visible, whatever its topic.
func (b *bounds) empty() bool { return b.hi == 0 && len(b.xids) == 0 }

// findBounds looks up the bounds of a round that was made before. Whoever makes one has them of [cursor.tickIfNew].
func findBounds(ctx context.Context, q queries, c *cursor, n int64) (*bounds, error) {
	var b bounds
	err := rowByIndex(ctx, c.pool, q.open, []any{c.name, n, c.newest, c.newestAt}, &b.prev, &b.snap, &b.lo, &b.hi, &b.xids)
	if errors.Is(err, pgx.ErrNoRows) {
		err = errFenced
	}
	if err != nil {
		return nil, fmt.Errorf("open round %d: %w", n, err)
	}
	return &b, nil
}

// newRound is what of the bounds' rows stands behind row `after`.
func newRound(q queries, c *cursor, b *bounds, after, page, bytes int64) *round {
	return &round{pool: c.pool, q: q, history: []any{c.name, c.newest, c.newestAt}, page: page, bytes: bytes, bounds: *b,
		mainPos: max(after, b.lo-1), latePos: after, lateDone: len(b.xids) == 0, width: page}
}

// A page is some rows of a round, or the error that ended it.
type page struct {
	rows []row
	err  error
}

// pages reads the round one page ahead. The reader has ended when the channel is closed, which it is soon after ctx is done.
func (r *round) pages(ctx context.Context) <-chan page {
	out := make(chan page)
	go func() {
		defer close(out)
		for {
			rows, err := r.next(ctx)
			if len(rows) == 0 && err == nil {
				return
			}
			select {
			case out <- page{rows, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return out
}

// next returns up to a page of rows behind those returned before; none at the round's end.
func (r *round) next(ctx context.Context) ([]row, error) {
	for len(r.main) == 0 && r.mainPos < r.hi {
		end := min(r.mainPos+r.width, r.hi)
		rows, full, err := readRows(ctx, r.pool, r.page, r.q.window, append([]any{r.mainPos, end, r.prev, r.snap, r.bytes}, r.history...)...)
		if err != nil {
			return nil, err
		}
		if full {
			end = rows[len(rows)-1].Seq
		}
		r.main, r.mainPos = rows, end
		if len(rows) > 0 {
			r.width = r.page
		} else {
			r.width = min(2*r.width, maxWindow*r.page)
		}
	}
	if len(r.late) == 0 && !r.lateDone {
		rows, full, err := readRows(ctx, r.pool, r.page, r.q.late, append([]any{r.xids, r.latePos, r.page, r.bytes}, r.history...)...)
		if err != nil {
			return nil, err
		}
		r.lateRows += len(rows)
		r.late, r.lateDone = rows, int64(len(rows)) < r.page && !full
		if len(rows) > 0 {
			r.latePos = rows[len(rows)-1].Seq
		}
	}
	return r.merge(), nil
}

// merge yields from both sides in order of seq, until one is used up that has more to read.
func (r *round) merge() []row {
	if r.lateDone && len(r.late) == 0 { // nearly always
		out := r.main
		r.main = nil
		return out
	}
	var out []row
	for {
		switch {
		case len(r.main) == 0 && (r.mainPos < r.hi || len(r.late) == 0):
			return out
		case len(r.late) == 0 && (!r.lateDone || len(r.main) == 0):
			return out
		case len(r.late) == 0 || len(r.main) > 0 && r.main[0].Seq < r.late[0].Seq:
			out, r.main = append(out, r.main[0]), r.main[1:]
		default:
			out, r.late = append(out, r.late[0]), r.late[1:]
		}
	}
}

// readRows returns the rows of one query, expected many; full says that there may be more of them.
func readRows(ctx context.Context, pool *pgxpool.Pool, expected int64, sql string, args ...any) (rows []row, full bool, err error) {
	var (
		source, topic, tenant, headers pgtype.DriverBytes // the connection's own, until the next row
		same                           = make(map[string]string)
	)
	intern := func(b []byte) string { // few differ
		s, ok := same[string(b)]
		if !ok {
			s = string(b)
			same[s] = s
		}
		return s
	}
	err = byIndex(ctx, pool, sql, args, func(result pgx.Rows) (err error) {
		rows, err = pgx.AppendRows(make([]row, 0, expected), result, func(from pgx.CollectableRow) (row, error) {
			var e row
			err := from.Scan(&e.Seq, &e.ID, &source, &topic, &e.Key, &e.Version, &tenant, &e.Time, &headers, &e.Data, &full)
			e.Source, e.Type, e.TenantID = intern(source), intern(topic), intern(tenant)
			e.Time = e.Time.UTC()
			e.broken = unmarshalHeaders(&e.Event, headers)
			return e, err
		})
		return err
	})
	if err != nil {
		return nil, false, fmt.Errorf("read rows: %w", err)
	}
	return rows, full, nil
}
