package heal

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox"
)

// A Step is one place on a message's way.
type Step struct {
	At     time.Time `json:"at"`
	Where  string    `json:"where"` // such as "outbox", "inbox", "dead letter"
	What   string    `json:"what"`
	Detail string    `json:"detail,omitempty"`
	// State is what may be another the next time that one asks, such as "sent"; "" where there is none.
	State string `json:"state,omitempty"`
	// ID is the event's, Key its aggregate's; "" where there is none.
	ID  string `json:"id,omitempty"`
	Key string `json:"key,omitempty"`
}

// Trace finds what a service's outbox and inbox know of events: those with one of the names as id or as key. Outbox reads by the
// relay's rights, inbox by the app's. It reads the whole outbox.
func Trace(ctx context.Context, outbox, inbox *pgxpool.Pool, schemaName string, names []string) ([]Step, error) {
	table := func(name string) string { return pgx.Identifier{schema(schemaName), name}.Sanitize() }
	var steps []Step
	for _, q := range []struct {
		pool *pgxpool.Pool
		sql  string
	}{
		{outbox, `SELECT time, 'outbox', topic, 'row ' || seq || COALESCE(', row ' || (headers->>'` + oncebox.HeaderReplay + `') || ' once more', '')
				|| COALESCE(', because of ' || (headers->>'` + oncebox.HeaderCausationID + `'), ''),
				CASE WHEN EXISTS (SELECT FROM ` + table("outbox_tick") + ` AS t, ` + table("outbox_cursor") + ` AS c
					WHERE t.cursor = c.name AND t.n = c.n - 1 AND t.slot = ((c.n - 1) >> 16) & 15 AND pg_visible_in_snapshot(xid, t.snap)) THEN 'sent' ELSE 'not known to be sent' END,
				id::text, key
			FROM ` + table("outbox") + ` WHERE id::text = ANY ($1) OR key = ANY ($1)`},
		{outbox, `SELECT parked_at, 'parked', topic, CASE outcome WHEN '' THEN reason ELSE outcome END, '', id::text, key
			FROM ` + table("outbox_parked") + ` WHERE id::text = ANY ($1) OR key = ANY ($1)`},
		{inbox, `SELECT at, 'inbox', consumer || ': ' || state, 'row ' || seq || ' of ' || source, '', id::text, ''
			FROM ` + table("inbox") + ` WHERE id IN (SELECT n::uuid FROM unnest($1::text[]) AS n WHERE n ~ '^[0-9a-f-]{36}$')`},
		{inbox, `SELECT first_seen, 'dead letter', state, class || ': ' || reason, '', id::text, key
			FROM ` + table("dead_letter") + ` WHERE id::text = ANY ($1) OR key = ANY ($1)`},
	} {
		rows, err := q.pool.Query(ctx, q.sql, names)
		if err != nil {
			return nil, fmt.Errorf("heal: trace: %w", err)
		}
		some, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Step])
		if err != nil {
			return nil, fmt.Errorf("heal: trace: %w", err)
		}
		steps = append(steps, some...)
	}
	return steps, nil
}
