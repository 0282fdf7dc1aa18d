package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/oncebox/oncebox/internal/crash"
)

const (
	slots = 16
	// lockTimeout is how long the emptying of a slot waits for the slot. Reads of the whole outbox wait behind it meanwhile;
	// inserts do not: they lock the current slot alone.
	lockTimeout = "50ms"
	// tickRetention is how long ticks stay at least: a log that lost less than that is healed from there, and one that lost more
	// by a round of all there is.
	tickRetention = "1 hour"
)

// retain empties the slots of which every row is sent and older than the retention, and those of the ticks that nobody needs.
func (r *Relay) retain(ctx context.Context) error {
	var errs []error
	for slot := range slots {
		errs = append(errs, r.retainSlot(ctx, slot), r.retainTicks(ctx, slot))
	}
	_, err := r.pool.Exec(ctx, "DELETE FROM "+r.parkedTable()+` WHERE cursor = $1 AND outcome IN ('retried', 'dropped')
		AND parked_at < clock_timestamp() - $2::interval`, r.cfg.Name, r.cfg.Retention)
	return errors.Join(append(errs, wrap("forget parked rows", err))...)
}

// retainSlot empties a slot of the outbox if it may. It is looked at without a lock first, which may take a while, and then
// locked; under the lock are looked up by index only the rows that the first look could not see. Looked at in the other order a
// row could come between the look and the lock, and would be gone unsent.
func (r *Relay) retainSlot(ctx context.Context, slot int) error {
	table := pgx.Identifier{r.cfg.Schema, fmt.Sprint("outbox_", slot)}.Sanitize()
	var (
		seen          string
		filled, young bool
		unsent        *string
	)
	err := r.pool.QueryRow(ctx, r.queries.retain(table), planned, slot, r.cfg.Retention).Scan(&seen, &filled, &young, &unsent)
	if err != nil {
		return fmt.Errorf("look at slot %d: %w", slot, err)
	}
	switch {
	case !filled || young:
		return nil
	case unsent != nil:
		return fmt.Errorf("slot %d holds rows that are old and not sent: %s", slot, *unsent)
	}
	return r.truncate(ctx, table, r.metrics.truncated.Inc,
		`SELECT FROM `+table+` WHERE xid >= pg_snapshot_xmax('`+seen+`')
			UNION ALL SELECT FROM pg_snapshot_xip('`+seen+`') AS x WHERE EXISTS (SELECT FROM `+table+` WHERE xid = x)`)
}

// truncate empties a table unless the query finds something in it under the lock. A table that is in use is left for the next
// time. All of it is one message to the server: a relay that is paused in a transaction would hold the lock for as long.
func (r *Relay) truncate(ctx context.Context, table string, done func(), unless string) error {
	const (
		inUse = "55P03" // lock_not_available
		found = "OB001"
	)
	if err := crash.Before("relay-retain"); err != nil {
		return err
	}
	conn, err := r.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("empty %s: %w", table, err)
	}
	defer conn.Release() // which closes it where the transaction failed
	err = conn.Conn().PgConn().Exec(ctx, `BEGIN ISOLATION LEVEL READ COMMITTED;
		SET LOCAL lock_timeout = '`+lockTimeout+`';
		LOCK TABLE `+table+` IN ACCESS EXCLUSIVE MODE;
		DO $do$ BEGIN
			IF EXISTS (`+unless+`) THEN
				RAISE EXCEPTION 'not empty' USING ERRCODE = '`+found+`';
			END IF;
		END $do$;
		TRUNCATE `+table+`;
		COMMIT`).Close()
	err = crash.After("relay-retain", err)
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && (pg.Code == inUse || pg.Code == found):
		r.log.Debug("relay: a slot is left as it is", "table", table, "why", pg.Message)
		return nil
	case err != nil:
		return fmt.Errorf("empty %s: %w", table, err)
	}
	r.log.Info("relay: emptied a slot", "table", table)
	done()
	return nil
}

// retainQuery looks at one slot: by which snapshot; whether it has rows; whether it may not be emptied yet for its place in the
// ring or the age of a row; and which cursor has not sent all of it, or what topic none covers.
func retainQuery(schema string) func(slotTable string) string {
	cursors := pgx.Identifier{schema, "outbox_cursor"}.Sanitize()
	ticks := pgx.Identifier{schema, "outbox_tick"}.Sanitize()
	return func(table string) string {
		return `
			WITH today AS (SELECT (extract(epoch FROM clock_timestamp())::bigint / 86400) % 16 AS slot),
			young AS MATERIALIZED (SELECT $1::int IN (slot, (slot + 1) % 16)
				OR EXISTS (SELECT FROM ` + table + ` WHERE time >= clock_timestamp() - $2::interval) AS is FROM today),
			-- A cursor has sent what the tick before its round sees.
			sent AS MATERIALIZED (SELECT c.name, c.topics, (SELECT t.snap FROM ` + ticks + ` AS t
				WHERE t.cursor = c.name AND t.n = c.n - 1 AND t.slot = ((c.n - 1) >> 16) & 15) AS snap FROM ` + cursors + ` AS c)
			SELECT pg_current_snapshot()::text, EXISTS (SELECT FROM ` + table + `), young.is,
				CASE WHEN NOT young.is THEN COALESCE(
					(SELECT 'cursor ' || s.name FROM sent AS s WHERE s.snap IS NULL OR EXISTS (SELECT FROM ` + table + ` AS o
						WHERE NOT pg_visible_in_snapshot(o.xid, s.snap) AND (s.topics = '' OR o.topic ~ s.topics)) LIMIT 1),
					(SELECT 'no cursor covers topic ' || o.topic FROM ` + table + ` AS o WHERE NOT EXISTS (SELECT FROM sent AS s WHERE s.topics = '')
						AND NOT EXISTS (SELECT FROM sent AS s WHERE o.topic ~ s.topics) LIMIT 1)) END
			FROM young`
	}
}

// retainTicks empties a slot of the ring of ticks if every tick in it is old, before its cursor's round, and not its newest.
// Ticks are numbered on by their cursor's active relay alone, so that those of other cursors may come meanwhile: hence the look
// under the lock.
func (r *Relay) retainTicks(ctx context.Context, slot int) error {
	table := pgx.Identifier{r.cfg.Schema, fmt.Sprint("outbox_tick_", slot)}.Sanitize()
	needed := `SELECT FROM ` + table + ` AS t
		LEFT JOIN ` + pgx.Identifier{r.cfg.Schema, "outbox_cursor"}.Sanitize() + ` AS c ON c.name = t.cursor
		WHERE t.at > clock_timestamp() - interval '` + tickRetention + `' OR t.n >= c.n - 1`
	var keep bool
	err := r.pool.QueryRow(ctx, "SELECT NOT EXISTS (SELECT FROM "+table+") OR EXISTS ("+needed+")", planned).Scan(&keep)
	if err != nil {
		return fmt.Errorf("look at the ticks' slot %d: %w", slot, err)
	}
	if keep {
		return nil
	}
	return r.truncate(ctx, table, func() {}, needed)
}
