package inbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox/internal/crash"
)

// prunePages is how many pages of the table one transaction of Prune looks at: 8 MiB, some tens of thousands of rows.
const prunePages = 1024

// clockSlack is how far the clock of the database, by which messages are handled, may be behind the broker's, by which they are
// published.
const clockSlack = time.Minute

// Prune forgets messages that were handled longer ago than [Config.Retention], but none that may still come: nothing that was
// handled after [Config.Horizon], nor in the minute before it, since clocks differ. It returns since when the inbox has a row for
// everything that the consumer handled; that time is written before anything is deleted, and never goes back, so that a producer
// who asks by [Inbox.CompleteSince] is never told of rows that are gone.
//
// It walks the table in short transactions, each over some megabytes, and waits for no lock. Dead letters stay, and so do
// messages that are not done. Call it now and then, in any number of processes; an hour is often enough.
func (in *Inbox) Prune(ctx context.Context) (completeSince time.Time, err error) {
	var horizon *time.Time
	if in.cfg.Horizon != nil {
		h, err := in.cfg.Horizon(ctx)
		if err != nil {
			return time.Time{}, fmt.Errorf("inbox: prune: how far back messages may come: %w", err)
		}
		h = h.Add(-clockSlack)
		horizon = &h
	}
	table := func(name string) string { return pgx.Identifier{in.cfg.Schema, name}.Sanitize() }
	var before time.Time
	err = in.pool.QueryRow(ctx, `WITH b AS (SELECT LEAST(clock_timestamp() - $2::interval, $3::timestamptz) AS before), -- a horizon of NULL is none
		kept AS (INSERT INTO `+table("inbox_retention")+` AS r (consumer, complete_since) SELECT $1, before FROM b
			ON CONFLICT (consumer) DO UPDATE SET complete_since = GREATEST(r.complete_since, EXCLUDED.complete_since) RETURNING complete_since)
		SELECT complete_since, before FROM kept, b`, in.cfg.Consumer, in.cfg.Retention, horizon).Scan(&completeSince, &before)
	if err != nil {
		return time.Time{}, fmt.Errorf("inbox: prune: move complete_since: %w", err)
	}
	var pages int64
	err = in.pool.QueryRow(ctx, `SELECT pg_relation_size($1::regclass) / current_setting('block_size')::bigint`, table("inbox")).Scan(&pages)
	if err != nil {
		return time.Time{}, fmt.Errorf("inbox: prune: %w", err)
	}
	for page := int64(0); page <= pages; page += prunePages {
		// A range of the table itself needs no index on at, which every insert would have to pay for.
		if err := crash.Before("inbox-prune"); err != nil {
			return time.Time{}, fmt.Errorf("inbox: prune: %w", err)
		}
		tag, err := in.pool.Exec(ctx, `DELETE FROM `+table("inbox")+` WHERE ctid IN (
				SELECT ctid FROM `+table("inbox")+` WHERE ctid >= format('(%s,0)', $1::bigint)::tid AND ctid < format('(%s,0)', $2::bigint)::tid
					AND consumer = $3 AND at < $4 AND state IN ('done', 'dead') FOR UPDATE SKIP LOCKED)`,
			page, page+prunePages, in.cfg.Consumer, before)
		if err = crash.After("inbox-prune", err); err != nil {
			return time.Time{}, fmt.Errorf("inbox: prune: %w", err)
		}
		in.metrics.pruned.Add(float64(tag.RowsAffected()))
	}
	return completeSince.UTC(), nil
}

// CompleteSince is what Prune returned last, the zero time if nothing was ever pruned.
func (in *Inbox) CompleteSince(ctx context.Context) (time.Time, error) {
	var since time.Time
	err := in.pool.QueryRow(ctx, `SELECT complete_since FROM `+pgx.Identifier{in.cfg.Schema, "inbox_retention"}.Sanitize()+` WHERE consumer = $1`,
		in.cfg.Consumer).Scan(&since)
	if errors.Is(err, pgx.ErrNoRows) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("inbox: since when it is complete: %w", err)
	}
	return since.UTC(), nil
}

// WatchHorizon compares [Config.Horizon] with what the inbox remembers, at once and then each [Config.HorizonEvery], until ctx is
// done. When a producer may send again what was pruned, which would have its effect twice, it logs an error and shows by how
// much in the metric oncebox_inbox_forgotten_seconds. Without a Horizon it returns at once.
func (in *Inbox) WatchHorizon(ctx context.Context) {
	if in.cfg.Horizon == nil {
		return
	}
	for {
		forgotten, err := in.forgotten(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil: // the metric keeps what it knew
			in.cfg.Logger.Warn("inbox: nobody tells how far back messages may come", "consumer", in.cfg.Consumer, "error", err)
		default:
			in.metrics.forgotten.Set(forgotten.Seconds())
			if forgotten > 0 {
				in.cfg.Logger.Error("inbox: messages may come again that are forgotten", "consumer", in.cfg.Consumer, "by", forgotten)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(in.cfg.HorizonEvery):
		}
	}
}

// forgotten is by how much messages that may still come are older than what the inbox has rows for.
func (in *Inbox) forgotten(ctx context.Context) (time.Duration, error) {
	horizon, err := in.cfg.Horizon(ctx)
	if err != nil {
		return 0, err
	}
	since, err := in.CompleteSince(ctx)
	if err != nil {
		return 0, err
	}
	return max(0, since.Sub(horizon)), nil
}
