package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/bench/measure"
	"github.com/oncebox/oncebox/bench/peer"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/trial"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

const (
	noRoundIndex = "Oncebox without (xid, seq)"
	noSeqIndex   = "Oncebox without (seq)"
)

// footprint is row 8.
func (b *bench) footprint() measure.Row {
	n := size(b, 20_000, 3_000)
	c := measure.Number(float64(n)) + " messages"
	ours := func(without string) func(context.Context) (measure.Figures, error) {
		return func(ctx context.Context) (measure.Figures, error) {
			return b.left(ctx, n, "footprint without "+without, "^outbox_[0-9]+$", func(ctx context.Context, pool *pgxpool.Pool) error {
				if err := migrations.Up(ctx, pool, migrations.Outbox); err != nil || without == "" {
					return err
				}
				_, err := pool.Exec(ctx, "DROP INDEX oncebox."+without)
				return err
			}, addToOutbox(benchSource), func(ctx context.Context, db *database, s *stream) error {
				return runRelay(ctx, db.Pool, s, broker.SyncInterval)
			})
		}
	}
	return measure.Row{Number: 8, Work: "What a message leaves in Postgres, written and relayed", Notes: []string{
		"Each message of 350 bytes is inserted in a transaction of its own, after a checkpoint, and relayed. WAL is all that was written meanwhile, by inserts and relay.",
		"A dead tuple is counted for each updated or deleted row, whatever vacuum or pruning made of it since; bytes are those of the message table with its indexes.",
		noRoundIndex + ", " + noSeqIndex + ": what each index costs. Without the first the bounds of a round are found by reading all rows that are kept, without the second each page is.",
	}, Cases: []measure.Case{{Name: c, Contenders: []measure.Contender{
		{Name: oursName, Role: measure.Ours, Run: ours("")},
		{Name: noRoundIndex, Role: measure.Ours, Run: ours("outbox_xid_seq")},
		{Name: noSeqIndex, Role: measure.Ours, Run: ours("outbox_seq")},
		{Name: statusRelay, Role: measure.Peer, Run: func(ctx context.Context) (measure.Figures, error) {
			return b.left(ctx, n, "footprint by status", "^outbox_status$", func(ctx context.Context, pool *pgxpool.Pool) error {
				_, err := pool.Exec(ctx, peer.StatusTable)
				return err
			}, func(ctx context.Context, tx pgx.Tx, es []oncebox.Event) error { return peer.AddStatus(ctx, tx, es) },
				func(ctx context.Context, db *database, s *stream) error { return peer.RelayStatus(ctx, db.Pool, s.nc) })
		}},
	}}}, Aims: []measure.Aim{
		{What: "dead tuples in the message table", Over: measure.Ref{Case: c, Contender: oursName, Metric: deadMessages}, AtMost: true},
		{What: "WAL, of SKIP LOCKED + status", Over: measure.Ref{Case: c, Contender: oursName, Metric: walBytes},
			Under: measure.Ref{Case: c, Contender: statusRelay, Metric: walBytes}, Want: 1, AtMost: true},
	}}
}

const (
	deadMessages = "dead tuples/1,000 messages, in their table"
	deadAll      = "dead tuples/1,000 messages, in all tables"
	walBytes     = "WAL bytes/message"
	tableBytes   = "table and index bytes/message"
)

// addToOutbox adds events of a source to our outbox.
func addToOutbox(source string) adder {
	return func(ctx context.Context, tx pgx.Tx, es []oncebox.Event) error {
		w, err := outbox.NewWriter(outbox.WriterConfig{Source: source})
		if err != nil {
			return err
		}
		return w.Add(ctx, tx, es...)
	}
}

// left measures what n messages leave in the tables whose names match tables.
func (b *bench) left(ctx context.Context, n int, template, tables string, prepare preparer, add adder, relay func(context.Context, *database, *stream) error) (_ measure.Figures, err error) {
	db, err := b.database(ctx, template, prepare)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.drop(ctx)) }()
	s, err := b.stream(ctx, broker.SyncInterval, declare(benchStream, benchSubject))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.drop(ctx)) }()
	var before, after int64
	const position = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
	if err := db.QueryRow(ctx, position).Scan(&before); err != nil {
		return nil, err
	}
	if err := fill(ctx, db.Pool, n, 1, func(tx pgx.Tx, es []oncebox.Event) error { return add(ctx, tx, es) }); err != nil {
		return nil, err
	}
	err = beside(ctx, func(ctx context.Context) error { return relay(ctx, db, s) }, func(ctx context.Context) error {
		_, err := s.holds(ctx, n)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := db.QueryRow(ctx, position).Scan(&after); err != nil {
		return nil, err
	}
	figures, err := db.footprint(ctx, n, tables)
	if err == nil {
		figures[walBytes] = float64(after-before) / float64(n)
	}
	return figures, err
}

// footprint reads the tables' sizes and statistics, once the sessions that wrote have ended and so told them.
func (d *database) footprint(ctx context.Context, n int, tables string) (measure.Figures, error) {
	const limit = 30 * time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the statistics did not come within %s", limit))
	defer cancel()
	for {
		d.Reset()
		var inserted, dead, deadInAll, bytes int64
		err := d.QueryRow(ctx, `SELECT COALESCE(sum(n_tup_ins) FILTER (WHERE relname ~ $1), 0),
				COALESCE(sum(n_tup_upd + n_tup_del) FILTER (WHERE relname ~ $1), 0), COALESCE(sum(n_tup_upd + n_tup_del), 0),
				COALESCE(sum(pg_total_relation_size(relid)) FILTER (WHERE relname ~ $1 AND n_tup_ins > 0), 0)
			FROM pg_stat_user_tables`, tables).Scan(&inserted, &dead, &deadInAll, &bytes)
		if err != nil {
			return nil, errors.Join(err, context.Cause(ctx))
		}
		if inserted == int64(n) {
			per := func(v int64) float64 { return float64(v) / float64(n) }
			return measure.Figures{deadMessages: 1000 * per(dead), deadAll: 1000 * per(deadInAll), tableBytes: per(bytes)}, nil
		}
		if err := trial.Pause(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
}
