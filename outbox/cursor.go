package outbox

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/internal/crash"
)

// errFenced says that another relay took the cursor over. What this one still does cannot be saved.
var errFenced = errors.New("another relay has taken over")

// A position is how far a relay is: of the rounds before n everything, and of round n everything up to seq, stands in the log
// at or below stream.
type position struct {
	n, seq int64
	stream uint64
}

// A cursor is the durable state of a named relay: its position, its lease with an epoch, and its ticks.
//
// A tick is a stored snapshot, a round what is visible in a tick and was not in the one before: PgQ's method (Skype, 2006).
// It loses no row that commits late, as a plain position in the sequence does, and waits for no transaction that stays open,
// as a horizon at the oldest one does.
type cursor struct {
	pool *pgxpool.Pool
	name string
	// topics is the regular expression of the topics that it covers, "" for all.
	topics string
	owner  string
	lease  time.Duration

	acquireSQL, releaseSQL, saveSQL, newestSQL, tickSQL, rewindSQL string

	epoch    int64
	deadline time.Time // of the lease, by our own monotonic clock, measured from before the renewal was sent
	newest   int64     // the tick that ends the last round there is
	newestAt time.Time // when it was taken, see history
	savedAt  time.Time // when the position that we know was saved, by the database's clock
}

// history is a condition that holds while the database is the one in which tick n was taken at some time. One that failed over to a
// standby which lacked its end, or was set back, has lost that tick, or has another by its number, as epochs, xids and seqs are
// given out again: what a relay knows of before is of no use there. All that was committed before the tick is there where it is. What
// was saved since may be lost, with the rows that were parked: so a position is saved only in the place of the one saved before.
func history(ticks, cursor, n, at string) string {
	return "(SELECT at FROM " + ticks + " WHERE cursor = " + cursor + " AND slot = (" + n + "::bigint >> 16) & 15 AND n = " + n + ") = " + at + "::timestamptz"
}

func newCursor(pool *pgxpool.Pool, schema, name, topics, owner string, lease time.Duration) *cursor {
	ticks := pgx.Identifier{schema, "outbox_tick"}.Sanitize()
	cursors := pgx.Identifier{schema, "outbox_cursor"}.Sanitize()
	outbox := pgx.Identifier{schema, "outbox"}.Sanitize()
	return &cursor{
		pool: pool, name: name, topics: topics, owner: owner, lease: lease,
		acquireSQL: `
			UPDATE ` + cursors + ` SET epoch = epoch + 1, holder = $2, lease_until = clock_timestamp() + $3, topics = $4
			FROM ` + durably + ` WHERE name = $1 AND (lease_until < clock_timestamp() OR holder = $2)
			RETURNING epoch, n, seq, stream_seq, stream_created, saved_at`,
		releaseSQL: `UPDATE ` + cursors + ` SET holder = '', lease_until = '-infinity' WHERE name = $1 AND holder = $2`,
		saveSQL: `
			UPDATE ` + cursors + ` SET n = $3, seq = $4, stream_seq = $5, stream_created = $6,
				lease_until = clock_timestamp() + $7, saved_at = clock_timestamp()
			WHERE name = $1 AND epoch = $2 AND holder = $8 AND saved_at = $11 AND ` + history(ticks, "$1", "$9", "$10") + `
			RETURNING name, saved_at`,
		// One look at the end of each slot's index: max(n) of the whole ring would read all of it.
		newestSQL: newestTick(ticks, "$1", "n, at"),
		// Is there anything that the newest tick does not see? Then the next one is written, in the same statement. The look is flat in the
		// rows and in the age of open transactions: it is at the end of an index. (WHERE xid >= … would be a scan of the whole table while
		// that has no statistics.)
		//
		// The snapshot is the statement's own, and the row is its transaction's first write: its xid is at or above the
		// snapshot's xmax, and once it is durable no crash hands out a lower one again. A snapshot that was only read would
		// call rows seen that a crash undid and whose xids are then used by others, and those would never be sent.
		tickSQL: `
			WITH last AS (SELECT n, snap FROM ` + ticks + `
				WHERE cursor = $1 AND slot = ($2::bigint >> 16) & 15 AND n = $2 AND at = $6 AND epoch <= $3),
			news AS MATERIALIZED (SELECT $7 OR
				COALESCE((SELECT max(xid) FROM ` + outbox + `) >= (SELECT pg_snapshot_xmax(snap) FROM last), false) OR
				EXISTS (SELECT FROM last, pg_snapshot_xip(last.snap) AS x WHERE EXISTS (SELECT FROM ` + outbox + ` WHERE xid = x)) AS found),
			new AS (INSERT INTO ` + ticks + ` (cursor, n, epoch, prev, snap, stream_seq, slot)
				SELECT $1, n + 1, $3, CASE WHEN $5 THEN '1:1:' ELSE snap END, pg_current_snapshot(), $4, ((n + 1) >> 16) & 15
				FROM last, news, ` + durably + ` WHERE found
				ON CONFLICT DO NOTHING RETURNING at, prev, snap),
			-- What the statement sees is what the new tick's snapshot sees, but for ids from elsewhere.
			r AS MATERIALIZED (SELECT seq FROM ` + outbox + `
				WHERE NOT $7 AND xid >= (SELECT pg_snapshot_xmax(snap) FROM last) AND xid < pg_snapshot_xmax(pg_current_snapshot()))
			SELECT found, new.at, new.prev::text, new.snap::text, COALESCE((SELECT min(seq) FROM r), 0), COALESCE((SELECT max(seq) FROM r), 0),
				ARRAY(SELECT x::text FROM pg_snapshot_xip(new.prev) AS x WHERE pg_visible_in_snapshot(x, new.snap))
			FROM last CROSS JOIN news LEFT JOIN new ON true`,
		rewindSQL: `
			SELECT n, stream_seq FROM ` + ticks + ` WHERE cursor = $1 AND n > 0 AND stream_seq <= $2 ORDER BY n DESC LIMIT 1`,
	}
}

// durably has a statement that joins it commit to disk before it returns, whatever the database's or role's defaults are. All
// that the relay writes is one statement, and so one round trip: a transaction of several, of a relay that is paused in it,
// would hold its locks against the next one for as long.
const durably = "(SELECT set_config('synchronous_commit', 'on', true)) AS durably"

// newestTick is a query for columns of a cursor's newest tick.
func newestTick(ticks, cursor, columns string) string {
	return `SELECT t.* FROM generate_series(0, 15) AS s CROSS JOIN LATERAL
			(SELECT ` + columns + ` FROM ` + ticks + ` WHERE slot = s AND cursor = ` + cursor + ` ORDER BY n DESC LIMIT 1) AS t
		ORDER BY t.n DESC LIMIT 1`
}

// create makes the cursor and its first tick, from which on everything in the outbox is new. Later calls do nothing.
func (c *cursor) create(ctx context.Context, schema string) error {
	b := &pgx.Batch{}
	b.Queue("INSERT INTO "+pgx.Identifier{schema, "outbox_cursor"}.Sanitize()+" (name) VALUES ($1) ON CONFLICT DO NOTHING", c.name)
	b.Queue("INSERT INTO "+pgx.Identifier{schema, "outbox_tick"}.Sanitize()+
		" (cursor, n, epoch, snap, stream_seq, slot) VALUES ($1, 0, 0, '1:1:', 0, 0) ON CONFLICT DO NOTHING", c.name)
	if err := c.pool.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("create cursor %s: %w", c.name, err)
	}
	return nil
}

// acquire takes the lease, also one of our own that an error ended, under a new epoch. ok is false while another holds the lease.
func (c *cursor) acquire(ctx context.Context) (pos position, created *time.Time, ok bool, err error) {
	asked := time.Now()
	if err := crash.Before("relay-acquire"); err != nil {
		return position{}, nil, false, err
	}
	err = c.pool.QueryRow(ctx, c.acquireSQL, c.name, c.owner, c.lease, c.topics).Scan(&c.epoch, &pos.n, &pos.seq, &pos.stream, &created, &c.savedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return position{}, nil, false, nil
	}
	if err = crash.After("relay-acquire", err); err != nil {
		return position{}, nil, false, fmt.Errorf("acquire the lease: %w", err)
	}
	c.deadline = asked.Add(c.lease)
	return pos, created, true, c.find(ctx)
}

// find looks for the newest tick.
func (c *cursor) find(ctx context.Context) error {
	return wrap("find the newest tick", c.pool.QueryRow(ctx, c.newestSQL, c.name).Scan(&c.newest, &c.newestAt))
}

// takeOver closes the round that the relay before was in, so that none of its late ticks can be written. It is a tick, and so
// waits until there is a log to work on: an outage is not to leave one for each try.
func (c *cursor) takeOver(ctx context.Context, pos position) (err error) {
	for range 10 { // the relay before may still be writing a tick: then ours is the one behind it
		if err := c.find(ctx); err != nil {
			return err
		}
		stream := pos.stream
		if pos.n <= c.newest { // rounds before this tick are not sent yet: no position of the log is known to hold them
			stream = math.MaxInt64
		}
		if err = c.tick(ctx, stream, false); !errors.Is(err, errFenced) {
			return err
		}
	}
	return err
}

// tick appends the tick that ends the next round. stream is a position of the log that holds every round before it. A round of
// all holds everything that the outbox has, and not only what the tick before does not see.
func (c *cursor) tick(ctx context.Context, stream uint64, all bool) error {
	_, err := c.tickIf(ctx, stream, all, true)
	return err
}

// tickIfNew is tick where rows have come that the newest tick does not see, and returns what they are. Else it writes nothing and
// returns nil.
func (c *cursor) tickIfNew(ctx context.Context, stream uint64) (*bounds, error) {
	return c.tickIf(ctx, stream, false, false)
}

func (c *cursor) tickIf(ctx context.Context, stream uint64, all, always bool) (*bounds, error) {
	if err := crash.Before("relay-tick"); err != nil {
		return nil, err
	}
	var (
		found      bool
		at         *time.Time
		prev, snap *string
		b          bounds
	)
	err := rowByIndex(ctx, c.pool, c.tickSQL, []any{c.name, c.newest, c.epoch, stream, all, c.newestAt, always},
		&found, &at, &prev, &snap, &b.lo, &b.hi, &b.xids)
	if err == nil && !found {
		return nil, nil
	}
	err = crash.After("relay-tick", err)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && at == nil { // the database has no such history, or has a tick of that number
		err = errFenced
	}
	if err != nil {
		return nil, fmt.Errorf("tick %d: %w", c.newest+1, err)
	}
	c.newest, c.newestAt = c.newest+1, *at
	b.prev, b.snap = *prev, *snap
	return &b, nil
}

// save stores the position and renews the lease, unless the epoch is over, or the database has lost what the position is of.
func (c *cursor) save(ctx context.Context, pos position, created time.Time) error {
	return c.saved(ctx, c.saveSQL, c.saveArgs(pos, created))
}

// saveWith is save, durably, in one statement with others: those of sql that join saved are under the epoch too. Its first
// argument is $12.
func (c *cursor) saveWith(ctx context.Context, pos position, created time.Time, sql string, args ...any) error {
	return c.saved(ctx, "WITH saved AS ("+c.saveSQL+"), also AS ("+sql+" RETURNING 1) SELECT name, saved_at FROM saved, "+durably,
		append(c.saveArgs(pos, created), args...))
}

func (c *cursor) saveArgs(pos position, created time.Time) []any {
	var createdOrNull *time.Time
	if !created.IsZero() {
		createdOrNull = &created
	}
	return []any{c.name, c.epoch, pos.n, pos.seq, pos.stream, createdOrNull, c.lease, c.owner, c.newest, c.newestAt, c.savedAt}
}

func (c *cursor) saved(ctx context.Context, sql string, args []any) error {
	asked := time.Now()
	if err := crash.Before("relay-save"); err != nil {
		return err
	}
	var (
		name string
		at   time.Time
	)
	err := crash.After("relay-save", c.pool.QueryRow(ctx, sql, args...).Scan(&name, &at))
	if errors.Is(err, pgx.ErrNoRows) {
		err = errFenced
	}
	if err != nil {
		return fmt.Errorf("save the cursor: %w", err)
	}
	c.savedAt, c.deadline = at, asked.Add(c.lease)
	return nil
}

// held says whether the lease is certainly still ours.
func (c *cursor) held() bool { return time.Now().Before(c.deadline) }

// release gives the lease up, if it is ours, so that a standby need not wait for its end. It goes by the holder: a relay that
// is stopped while it acquires may hold an epoch that it never learned.
func (c *cursor) release(ctx context.Context) error {
	if err := crash.Before("relay-release"); err != nil {
		return err
	}
	_, err := c.pool.Exec(ctx, c.releaseSQL, c.name, c.owner)
	return wrap("release the lease", crash.After("relay-release", err))
}

// rewind is the position from which on everything has to be sent again when the log ends at last. That is the newest tick that
// the log still holds; where it holds none that is kept, a round of all there is.
func (c *cursor) rewind(ctx context.Context, last uint64) (position, error) {
	var pos position
	err := c.pool.QueryRow(ctx, c.rewindSQL, c.name, last).Scan(&pos.n, &pos.stream)
	if errors.Is(err, pgx.ErrNoRows) {
		err = c.tick(ctx, math.MaxInt64, true)
		return position{n: c.newest}, err
	}
	if err != nil {
		return position{}, fmt.Errorf("find the tick at %d: %w", last, err)
	}
	return pos, nil
}
