package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/bench/measure"
	"github.com/oncebox/oncebox/bench/peer"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

const (
	oursName    = "Oncebox"
	theirRelay  = "Watermill Forwarder"
	tunedRelay  = "Forwarder, 1,000 a query"
	statusRelay = "SKIP LOCKED + status"
	fromMemory  = "from memory"
)

const (
	benchStream  = "BENCH"
	benchSubject = "bench.item.sold.v1"
	benchSource  = "bench"
)

// payload is JSON of 350 bytes.
var payload = []byte(fmt.Sprintf(`{"item":"%s"}`, strings.Repeat("x", 350-len(`{"item":""}`))))

// sold are n events with the first of the keys k0 to k999 that follow from.
func sold(from, n int) []oncebox.Event {
	events := make([]oncebox.Event, n)
	for i := range events {
		events[i] = oncebox.Event{ID: uuid.Must(uuid.NewV7()).String(), Source: benchSource, Type: benchSubject,
			Key: fmt.Sprintf("k%d", (from+i)%1000), Time: time.Now(), Data: payload}
	}
	return events
}

// drain is row 1, on a server that syncs every two minutes.
func (b *bench) drain() measure.Row {
	row := b.drainRow(1, broker.SyncInterval, "The relay drains a backlog of 350-byte rows into JetStream", "rows published one by one, many in flight")
	row.Aims = append(row.Aims, measure.Of("of the limit", backlog(b.large()), "rows/s", oursName, fromMemory, 0.75))
	return row
}

// drainAlways is row 2.
func (b *bench) drainAlways() measure.Row {
	row := b.drainRow(2, broker.SyncAlways, "The same, JetStream syncing before each acknowledgement", "atomic batches of up to 1,000, four in flight")
	row.Aims = append(row.Aims, measure.Of("of the limit", backlog(b.large()), "rows/s", oursName, fromMemory, 0.80))
	return row
}

func backlog(n int) string { return measure.Number(float64(n)) + " rows" }

func (b *bench) small() int  { return size(b, 20_000, 10_000) }
func (b *bench) medium() int { return 60_000 } // in full runs only
func (b *bench) large() int  { return size(b, 100_000, 50_000) }
func (b *bench) huge() int   { return size(b, 1_000_000, 100_000) }

func (b *bench) drainRow(number int, sync broker.Sync, work, mode string) measure.Row {
	of := func(n int) drain { return drain{b: b, sync: sync, n: n} }
	ours := func(n int) measure.Contender {
		return measure.Contender{Name: oursName, Role: measure.Ours, Run: of(n).ours}
	}
	limit := func(n int) measure.Contender {
		return measure.Contender{Name: fromMemory, Role: measure.Limit, Run: of(min(n, b.large())).memory}
	}
	forwarder := func(n int) measure.Contender {
		return measure.Contender{Name: theirRelay, Role: measure.Peer, Run: of(n).forwarder(peer.ForwarderConfig{})}
	}
	small, medium, large, huge := backlog(b.small()), backlog(b.medium()), backlog(b.large()), backlog(b.huge())
	row := measure.Row{Number: number, Work: work, Notes: []string{
		"Each run begins with a relay that is not running, on a fresh copy of one database, after ANALYZE and a checkpoint, and ends when the stream holds every row.",
		theirRelay + ": watermill-sql v4.1.2 (default PostgreSQL schema and offsets, on pgx), watermill's Forwarder, watermill-nats v2.1.3 pkg/nats " +
			"with TrackMsgId, into the same stream as ours. All defaults; it reads 100 rows a query, each of which sorts what is left of the backlog.",
		tunedRelay + ": the same with SubscribeBatchSize 1000, which its documentation warns redelivers more after a crash.",
		statusRelay + ": 100 rows locked by FOR UPDATE SKIP LOCKED over a partial index, published one at a time with the message id, marked sent, committed.",
		fromMemory + ": the same messages, made before the clock starts, by nats.go under the same chain of expected sequences: " + mode + ".",
	}, Cases: []measure.Case{
		{Name: small, Contenders: []measure.Contender{ours(b.small()), forwarder(b.small()),
			{Name: tunedRelay, Role: measure.Peer, Run: of(b.small()).forwarder(peer.ForwarderConfig{Batch: 1000})},
			{Name: statusRelay, Role: measure.Peer, Run: of(b.small()).status}, limit(b.small())}},
		{Name: large, Contenders: []measure.Contender{ours(b.large()), limit(b.large())}},
		{Name: huge, Rounds: 2, Contenders: []measure.Contender{ours(b.huge()), limit(b.huge())}},
	}, Aims: []measure.Aim{
		measure.Of("× Forwarder, "+small, small, "rows/s", oursName, theirRelay, 40).Below(fromMemory),
		measure.Of("× SKIP LOCKED, "+small, small, "rows/s", oursName, statusRelay, 20).Below(fromMemory),
		{What: huge + " / " + large, Over: measure.Ref{Case: huge, Contender: oursName, Metric: "rows/s"},
			Under: measure.Ref{Case: large, Contender: oursName, Metric: "rows/s"}, Want: 0.9},
	}}
	if sync != broker.SyncAlways && !b.quick {
		row.Cases = append(row.Cases, measure.Case{Name: medium, Rounds: 1,
			Contenders: []measure.Contender{ours(b.medium()), forwarder(b.medium()), limit(b.medium())}})
		row.Aims = append(row.Aims, measure.Of("× Forwarder, "+medium, medium, "rows/s", oursName, theirRelay, 60).Below(fromMemory))
	}
	return row
}

// A drain is one size of the row.
type drain struct {
	b    *bench
	sync broker.Sync
	n    int
}

// run measures how fast the rows of a template come into the stream by relay.
func (d drain) run(ctx context.Context, template string, prepare func(context.Context, *pgxpool.Pool) error,
	relay func(context.Context, *database, *stream) error) (_ measure.Figures, err error) {
	db, err := d.b.database(ctx, fmt.Sprintf("%s, %d rows", template, d.n), prepare)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.drop(ctx)) }()
	s, err := d.b.stream(ctx, d.sync, declare(benchStream, benchSubject))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.drop(ctx)) }()
	var took time.Duration
	began := time.Now()
	err = beside(ctx, func(ctx context.Context) error { return relay(ctx, db, s) }, func(ctx context.Context) error {
		last, err := s.holds(ctx, d.n)
		took = last.Sub(began)
		return err
	})
	return measure.Figures{"rows/s": float64(d.n) / took.Seconds()}, err
}

func (d drain) ours(ctx context.Context) (measure.Figures, error) {
	return d.run(ctx, "outbox", d.fillOutbox, func(ctx context.Context, db *database, s *stream) error {
		return runRelay(ctx, db.Pool, s, d.sync)
	})
}

// runRelay runs a relay of ours with its defaults until ctx is done.
func runRelay(ctx context.Context, pool *pgxpool.Pool, s *stream, sync broker.Sync) error {
	sink, err := broker.NewSink(s.nc, s.CachedInfo().Config, broker.SinkConfig{Sync: sync})
	if err != nil {
		return err
	}
	relay, err := outbox.NewRelay(pool, sink, outbox.RelayConfig{Name: benchSource, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	return relay.Run(ctx)
}

// fillBatch is how many rows a transaction adds to a backlog, and fillers how many add at once.
const fillBatch, fillers = 500, 8

// fill adds n events, in transactions of batch events each, on several connections.
func fill(ctx context.Context, pool *pgxpool.Pool, n, batch int, add func(pgx.Tx, []oncebox.Event) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fillers)
	for from := 0; from < n; from += batch {
		g.Go(func() error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return add(tx, sold(from, min(batch, n-from))) })
		})
	}
	return g.Wait()
}

func (d drain) fillOutbox(ctx context.Context, pool *pgxpool.Pool) error {
	if err := migrations.Up(ctx, pool, migrations.Outbox); err != nil {
		return err
	}
	w, err := outbox.NewWriter(outbox.WriterConfig{Source: benchSource})
	if err != nil {
		return err
	}
	return fill(ctx, pool, d.n, fillBatch, func(tx pgx.Tx, events []oncebox.Event) error { return w.Add(ctx, tx, events...) })
}

func (d drain) forwarder(cfg peer.ForwarderConfig) func(context.Context) (measure.Figures, error) {
	return func(ctx context.Context) (measure.Figures, error) {
		return d.run(ctx, "forwarder", d.fillForwarder, func(ctx context.Context, db *database, s *stream) error {
			return peer.Forward(ctx, db.Pool, s.nc, cfg)
		})
	}
}

func (d drain) fillForwarder(ctx context.Context, pool *pgxpool.Pool) error {
	if err := peer.ForwarderOutbox(pool); err != nil {
		return err
	}
	return fill(ctx, pool, d.n, fillBatch, func(tx pgx.Tx, events []oncebox.Event) error {
		return peer.Publish(ctx, tx, events...)
	})
}

func (d drain) status(ctx context.Context) (measure.Figures, error) {
	return d.run(ctx, "status", func(ctx context.Context, pool *pgxpool.Pool) error {
		if _, err := pool.Exec(ctx, peer.StatusTable); err != nil {
			return err
		}
		return fill(ctx, pool, d.n, fillBatch, func(tx pgx.Tx, events []oncebox.Event) error { return peer.AddStatus(ctx, tx, events) })
	}, func(ctx context.Context, db *database, s *stream) error { return peer.RelayStatus(ctx, db.Pool, s.nc) })
}
