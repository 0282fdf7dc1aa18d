package billing_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// A poison makes the i-th request one that is never charged.
type poison func(requests []oncebox.Event, i int) oncebox.Event

// malformed is refused before anything is written.
func malformed([]oncebox.Event, int) oncebox.Event {
	return request(func(p *events.ChargeRequested) { p.Amount = -1 })
}

// chargedAlready is an order under a second id, which only the charge's own key tells.
func chargedAlready(requests []oncebox.Event, i int) oncebox.Event {
	e := requests[i-50]
	e.ID = uuid.NewString()
	return e
}

// fillStream stores n requests in the stream of orders, bad ones of each hundred poisonous, and returns how many those are.
func fillStream(b *testing.B, server *devstack.NATS, n, bad int, of poison) (wantDead int) {
	b.Helper()
	ctx := context.Background()
	sink, err := broker.NewSink(stacktest.Connect(b, server), broker.Stream(events.OrdersStream, events.OrdersSubjects), broker.SinkConfig{})
	must(b, err)
	_, _, err = sink.Open(ctx, 0)
	must(b, err)
	requests := make([]oncebox.Event, n)
	for i := range requests {
		requests[i] = request()
		if i%100 >= 100-bad {
			requests[i] = of(requests, i)
			wantDead++
		}
	}
	_, _, err = sink.Store(ctx, requests)
	must(b, err)
	_, _, err = sink.Flush(ctx)
	must(b, err)
	return wantDead
}

const bareTables = `DROP SCHEMA IF EXISTS bare CASCADE; CREATE SCHEMA bare; SET search_path = bare;
	CREATE TABLE met (id uuid PRIMARY KEY);
	CREATE TABLE charge (id uuid PRIMARY KEY, order_id uuid UNIQUE, amount bigint);
	CREATE TABLE ledger (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, charge_id uuid, account text, amount bigint);
	CREATE TABLE answer (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, xid xid8 DEFAULT pg_current_xact_id(), order_id uuid, payload bytea);
	CREATE INDEX ON answer (xid, n);`

const bareStatement = `WITH m AS (SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bytea[]) AS m (id, order_id, amount, payload)),
	met AS (INSERT INTO bare.met SELECT id FROM m ORDER BY id ON CONFLICT DO NOTHING RETURNING id),
	c AS (INSERT INTO bare.charge SELECT id, order_id, amount FROM m JOIN met USING (id) RETURNING *),
	l AS (INSERT INTO bare.ledger (charge_id, account, amount) SELECT id, a, s * amount FROM c, (VALUES ('customer', -1), ('revenue', 1)) AS v (a, s)),
	o AS (INSERT INTO bare.answer (order_id, payload) SELECT order_id, payload FROM m JOIN met USING (id))
	SELECT count(*) FROM met`

// benchmarkBareLoop knows no errors, no keys, no retries and no dead letters.
func benchmarkBareLoop(b *testing.B, server *devstack.Postgres) {
	const workers, group = 2, 500
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, server.URL("postgres"))
	must(b, err)
	defer pool.Close()
	_, err = pool.Exec(ctx, bareTables)
	must(b, err)
	nats := stacktest.NATS(b)
	fillStream(b, nats, b.N, 0, nil)
	js, err := jetstream.New(stacktest.Connect(b, nats))
	must(b, err)
	consumer, err := js.CreateConsumer(ctx, events.OrdersStream, jetstream.ConsumerConfig{Durable: "bare", AckPolicy: jetstream.AckExplicitPolicy,
		MaxAckPending: 10 * workers * group})
	must(b, err)
	_, err = pool.Exec(ctx, "CHECKPOINT")
	must(b, err)
	b.ResetTimer()
	in := make(chan jetstream.Msg, 4*workers*group)
	consuming, err := consumer.Consume(func(m jetstream.Msg) { in <- m }, jetstream.PullMaxMessages(4*group))
	must(b, err)
	done := make(chan int, workers*10)
	g, ctx := errgroup.WithContext(ctx)
	left := make(chan struct{})
	for range workers {
		g.Go(func() error {
			for {
				ms := take(in, left, group)
				if len(ms) == 0 {
					return nil
				}
				n, err := bareGroup(ctx, pool, ms)
				if err != nil {
					return err
				}
				done <- n
			}
		})
	}
	go func() {
		if err := g.Wait(); err != nil {
			b.Error(err)
			done <- b.N
		}
	}()
	for n := 0; n < b.N; {
		n += <-done
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "charges/s")
	b.ReportMetric(0, "ns/op")
	close(left)
	consuming.Stop()
}

// take returns up to most messages, those that come within 2 ms of the first; none when left is closed.
func take(in <-chan jetstream.Msg, left <-chan struct{}, most int) []jetstream.Msg {
	var ms []jetstream.Msg
	select {
	case m := <-in:
		ms = append(ms, m)
	case <-left:
		return nil
	}
	for linger := time.After(2 * time.Millisecond); len(ms) < most; {
		select {
		case m := <-in:
			ms = append(ms, m)
		case <-linger:
			return ms
		}
	}
	return ms
}

func bareGroup(ctx context.Context, pool *pgxpool.Pool, ms []jetstream.Msg) (n int, err error) {
	ids, orders, amounts, payloads := make([]uuid.UUID, len(ms)), make([]uuid.UUID, len(ms)), make([]int64, len(ms)), make([][]byte, len(ms))
	for i, m := range ms {
		var req events.ChargeRequested
		if err := json.Unmarshal(m.Data(), &req); err != nil {
			return 0, fmt.Errorf("message %d: %w", i, err)
		}
		ids[i], orders[i], amounts[i], payloads[i] = uuid.MustParse(m.Headers().Get(oncebox.HeaderID)), uuid.MustParse(req.OrderID), req.Amount, m.Data()
	}
	if err := pool.QueryRow(ctx, bareStatement, ids, orders, amounts, payloads).Scan(&n); err != nil {
		return 0, err
	}
	for _, m := range ms {
		if err := m.Ack(); err != nil {
			return 0, err
		}
	}
	return n, nil
}
