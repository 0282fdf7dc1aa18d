package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Status is how a relay's cursor stands in the database, whoever leads.
type Status struct {
	Cursor  string
	Leading bool   // this relay does
	Holder  string // of the lease: host and a random id; "" when nobody is
	Epoch   int64
	LeaseUntil,
	SavedAt time.Time
	Round, Seq, StreamSeq int64 // rounds before Round are stored, and of it the rows up to Seq, at or below StreamSeq
	// Backlog is about how many committed events are not stored, as of the last save; above 100,000 as the distance in seq.
	Backlog int64
	// OldestUnsent is when the first of them was written; zero when there is none.
	OldestUnsent time.Time
	Parked       int64
	// Durable says whether what is stored outlasts a loss of power at the log, and DurableWhy why; only where the sink tells.
	Durable    bool
	DurableWhy string
}

// Status reads how the relay's cursor stands. It may be called from any goroutine, also of a relay that does not run.
func (r *Relay) Status(ctx context.Context) (Status, error) {
	s := Status{Cursor: r.cfg.Name, Leading: r.leading.Load()}
	var (
		oldest, leaseUntil *time.Time
		first, last        int64
	)
	err := r.pool.QueryRow(ctx, r.queries.status, planned, r.cfg.Name, countLimit).Scan(&s.Holder, &s.Epoch, &leaseUntil, &s.SavedAt, &s.Round,
		&s.Seq, &s.StreamSeq, &s.Backlog, &oldest, &first, &last, &s.Parked)
	if errors.Is(err, pgx.ErrNoRows) {
		return s, nil // it never ran
	}
	if err != nil {
		return Status{}, fmt.Errorf("outbox: read the status of %s: %w", r.cfg.Name, err)
	}
	if leaseUntil != nil {
		s.LeaseUntil = *leaseUntil
	}
	if oldest != nil {
		s.OldestUnsent = *oldest
	}
	if s.Backlog == countLimit {
		s.Backlog = max(s.Backlog, last-first+1)
	}
	if log, ok := r.sink.(Reporter); ok {
		s.Durable, s.DurableWhy = log.Durable()
	}
	return s, nil
}

// countLimit is how many rows of a backlog are counted.
const countLimit = 100_000

func statusQuery(schema, covered string) string {
	table := func(name string) string { return pgx.Identifier{schema, name}.Sanitize() }
	// What the relay has seen is the snapshot before the round that it is in, or the newest tick.
	return `
		WITH c AS (SELECT * FROM ` + table("outbox_cursor") + ` WHERE name = $1),
		newest AS (` + newestTick(table("outbox_tick"), "$1", "n") + `),
		seen AS MATERIALIZED (SELECT pg_snapshot_xmax(CASE WHEN c.n <= newest.n THEN t.prev ELSE t.snap END) AS xmax
			FROM c, newest, ` + table("outbox_tick") + ` AS t
			WHERE t.cursor = $1 AND t.n = least(c.n, newest.n) AND t.slot = (least(c.n, newest.n) >> 16) & 15),
		unsent AS (SELECT xid, seq, time FROM ` + table("outbox") + `
			WHERE xid >= (SELECT xmax FROM seen) AND seq > (SELECT seq FROM c)` + covered + `)
		SELECT holder, epoch, NULLIF(lease_until, '-infinity'), saved_at, n, seq, stream_seq,
			(SELECT count(*) FROM (SELECT FROM unsent LIMIT $2) AS u),
			(SELECT time FROM unsent ORDER BY xid, seq LIMIT 1),
			COALESCE((SELECT seq FROM unsent ORDER BY xid, seq LIMIT 1), 0),
			COALESCE((SELECT max(seq) FROM ` + table("outbox") + `), 0),
			(SELECT count(*) FROM ` + table("outbox_parked") + ` WHERE cursor = $1 AND outcome NOT IN ('retried', 'dropped'))
		FROM c`
}

// watch keeps the gauges of what is unsent, also while nobody leads or the log is away.
func (r *Relay) watch(ctx context.Context) {
	if r.cfg.Registerer == nil {
		return
	}
	for r.idle(ctx, r.cfg.Lease/3) {
		s, err := r.Status(ctx)
		if err != nil {
			continue // the relay's own errors tell of it
		}
		r.metrics.backlog.Set(float64(s.Backlog))
		age := 0.0
		if !s.OldestUnsent.IsZero() {
			age = max(0, time.Since(s.OldestUnsent).Seconds())
		}
		r.metrics.oldest.Set(age)
		r.metrics.parked.Set(float64(s.Parked))
	}
}
