package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/bench/measure"
	"github.com/oncebox/oncebox/bench/peer"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/trial"
	"github.com/oncebox/oncebox/migrations"
)

const withoutIt = "Oncebox without it"

// pinned is row 7.
func (b *bench) pinned() measure.Row {
	length := size(b, time.Minute, 4*time.Second)
	c := fmt.Sprintf("1,000 events/s for %s", length)
	ours := func(open bool) func(context.Context) (measure.Figures, error) {
		return func(ctx context.Context) (measure.Figures, error) {
			return b.lag(ctx, length, open, "outbox", func(ctx context.Context, pool *pgxpool.Pool) error {
				return migrations.Up(ctx, pool, migrations.Outbox)
			},
				addToOutbox(benchSource), func(ctx context.Context, db *database, s *stream) error {
					return runRelay(ctx, db.Pool, s, broker.SyncInterval)
				})
		}
	}
	return measure.Row{Number: 7, Work: "A write transaction that is held open", Notes: []string{
		"A session has a transaction id and does nothing, for the whole run. 100 transactions/s of 10 events each; the lag is from just before the insert to the time in the stream.",
		"What is not in the stream when the run ends, the transaction still open, counts with its age then. Growth is the lag's median in the last third of the run over that in the first, of what came.",
		theirRelay + ": as in row 1, polling every 100 ms. It reads nothing at or above the oldest open transaction.",
	}, Cases: []measure.Case{{Name: c, Rounds: 1, Contenders: []measure.Contender{
		{Name: oursName, Role: measure.Ours, Run: ours(true)},
		{Name: theirRelay, Role: measure.Peer, Run: func(ctx context.Context) (measure.Figures, error) {
			return b.lag(ctx, length, true, "forwarder", func(_ context.Context, pool *pgxpool.Pool) error { return peer.ForwarderOutbox(pool) },
				func(ctx context.Context, tx pgx.Tx, es []oncebox.Event) error { return peer.Publish(ctx, tx, es...) },
				func(ctx context.Context, db *database, s *stream) error {
					return peer.Forward(ctx, db.Pool, s.nc, peer.ForwarderConfig{Poll: peerPoll})
				})
		}},
		{Name: withoutIt, Role: measure.Limit, Run: ours(false)},
	}}}, Aims: []measure.Aim{
		{What: "p99, of that without it", Over: measure.Ref{Case: c, Contender: oursName, Metric: "lag p99 ms"},
			Under: measure.Ref{Case: c, Contender: withoutIt, Metric: "lag p99 ms"}, Want: 2, AtMost: true},
		{What: "growth", Over: measure.Ref{Case: c, Contender: oursName, Metric: "growth"}, Want: 1.5, AtMost: true},
	}}
}

// A stamp is a payload that says when it was written.
type stamp struct {
	N  int       `json:"n"`
	At time.Time `json:"at"`
}

// lag measures how late events come into the stream, with or without an open transaction beside them.
func (b *bench) lag(ctx context.Context, length time.Duration, open bool, template string, prepare preparer, add adder,
	relay func(context.Context, *database, *stream) error) (_ measure.Figures, err error) {
	db, err := b.database(ctx, template+", empty", prepare)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.drop(ctx)) }()
	s, err := b.stream(ctx, broker.SyncInterval, declare(benchStream, benchSubject))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.drop(ctx)) }()
	if open {
		tx, err := db.Begin(ctx)
		if err != nil {
			return nil, err
		}
		defer tx.Rollback(context.WithoutCancel(ctx))
		if _, err := tx.Exec(ctx, "SELECT pg_current_xact_id()"); err != nil {
			return nil, err
		}
	}
	var written []time.Time
	var ended time.Time
	err = beside(ctx, func(ctx context.Context) error { return relay(ctx, db, s) }, func(ctx context.Context) (err error) {
		if written, err = writeStamped(ctx, db, length, add); err != nil {
			return err
		}
		if err := trial.Pause(ctx, time.Second); err != nil { // for what is on its way
			return err
		}
		ended = time.Now()
		return nil
	})
	if err != nil {
		return nil, err
	}
	messages, err := s.times(ctx)
	if err != nil {
		return nil, err
	}
	lags := make([]time.Duration, len(written))
	for i, at := range written {
		lags[i] = ended.Sub(at)
	}
	var first, last []time.Duration // of the thirds of the run, what came
	came := 0
	for _, m := range messages {
		var w stamp
		if err := json.Unmarshal(m.data, &w); err != nil {
			return nil, err
		}
		if !m.at.Before(ended) {
			continue
		}
		came++
		lags[w.N] = m.at.Sub(written[w.N])
		switch 3 * w.N / len(written) {
		case 0:
			first = append(first, lags[w.N])
		case 2:
			last = append(last, lags[w.N])
		}
	}
	figures := measure.Figures{"lag p50 ms": measure.Percentile(lags, 0.5), "lag p99 ms": measure.Percentile(lags, 0.99),
		"events that never came": float64(len(written) - came)}
	if len(first) > 0 && len(last) > 0 {
		figures["growth"] = measure.Percentile(last, 0.5) / measure.Percentile(first, 0.5)
	}
	return figures, nil
}

// writeStamped commits 100 transactions of 10 events a second and returns when each event was about to be written.
func writeStamped(ctx context.Context, db *database, length time.Duration, add adder) ([]time.Time, error) {
	const each, every = 10, 10 * time.Millisecond
	var (
		mu      sync.Mutex
		written []time.Time
	)
	began := time.Now()
	next := make(chan int)
	work := func(ctx context.Context) error {
		for i := range next {
			es := sold(i, each)
			mu.Lock()
			for k := range es {
				w := stamp{N: len(written), At: time.Now()}
				written = append(written, w.At)
				data, err := json.Marshal(w)
				if err != nil {
					mu.Unlock()
					return err
				}
				es[k].Data = data
			}
			mu.Unlock()
			if err := pgx.BeginFunc(ctx, db.Pool, func(tx pgx.Tx) error { return add(ctx, tx, es) }); err != nil {
				return err
			}
		}
		return nil
	}
	err := inParallel(ctx, fillers, work, func(ctx context.Context) error {
		defer close(next)
		for i := range int(length / every) {
			if err := trial.Pause(ctx, time.Until(began.Add(time.Duration(i)*every))); err != nil {
				return err
			}
			select {
			case next <- i:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	return written, err
}
