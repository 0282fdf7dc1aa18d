package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/bench/measure"
	"github.com/oncebox/oncebox/bench/peer"
	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

const (
	oneByOne  = "One"
	eachGroup = "Group(Each)"
	setBased  = "Group, set-based"
	routerOne = "Watermill Router"
	sqlMemory = "SQL from memory"
)

// consume is row 3.
func (b *bench) consume() measure.Row {
	n := size(b, 20_000, 2_000)
	c := consumption{b: b, n: n}
	name := measure.Number(float64(n)) + " requests"
	return measure.Row{Number: 3, Work: "Billing charges from a full stream: inbox, charge, two ledger rows, an answer in the outbox", Notes: []string{
		"The tables, the handlers and the ledger's triggers are billing's own. A run ends when the last handler has committed; then the charges are counted.",
		oneByOne + ": Inbox.One, 16 lanes. " + eachGroup + ": Inbox.Group with Each, the defaults (100 a group, 4 lanes). " + setBased + ": billing's GroupHandler, 500 a group, 4 lanes.",
		routerOne + ": watermill-nats v2.1.3 pkg/nats, 16 subscribers of a durable queue group, acknowledging asynchronously; one transaction a message: " +
			"its id into an inbox table, charge and ledger by one statement, the answer by watermill-sql's publisher.",
		riverTx + ": v0.51.1, the requests as jobs, completed by JobCompleteTx in the transaction of the same effect, the answer by InsertTx. " +
			"100 workers, 2 ms and 20 ms between fetches: the pauses that River's own benchmark found best.",
		sqlMemory + ": the same rows by one statement for 500 requests, on 4 connections, without a broker.",
	}, Cases: []measure.Case{{Name: name, Contenders: []measure.Contender{
		{Name: oneByOne, Role: measure.Ours, Run: c.ours(256, func(in *inbox.Inbox, s *billing.Service) (message.NoPublishHandlerFunc, error) {
			return in.One(s.Handler()), nil
		})},
		{Name: eachGroup, Role: measure.Ours, Run: c.ours(1000, func(in *inbox.Inbox, s *billing.Service) (message.NoPublishHandlerFunc, error) {
			return in.Group(inbox.Each(s.Handler()), inbox.GroupConfig{})
		})},
		{Name: setBased, Role: measure.Ours, Run: c.ours(4000, func(in *inbox.Inbox, s *billing.Service) (message.NoPublishHandlerFunc, error) {
			return in.Group(s.GroupHandler(), inbox.GroupConfig{Max: 500, Lanes: 4})
		})},
		{Name: routerOne, Role: measure.Peer, Run: c.router},
		{Name: riverTx, Role: measure.Peer, Run: c.river},
		{Name: sqlMemory, Role: measure.Limit, Run: c.memory},
	}}}, Aims: []measure.Aim{
		measure.Of("set-based × Watermill Router", name, "charges/s", setBased, routerOne, 10).Below(sqlMemory),
		measure.Of("set-based × River", name, "charges/s", setBased, riverTx, 10).Below(sqlMemory),
		measure.Of("set-based of the limit", name, "charges/s", setBased, sqlMemory, 0.65),
		measure.Of("Group(Each) × Watermill Router", name, "charges/s", eachGroup, routerOne, 3).Below(sqlMemory),
		measure.Of("Group(Each) × River", name, "charges/s", eachGroup, riverTx, 3).Below(sqlMemory),
	}}
}

// A consumption is n requests that are charged.
type consumption struct {
	b *bench
	n int
}

// requests are n that orders would have sent.
func requests(n int) ([]oncebox.Event, error) {
	es := make([]oncebox.Event, n)
	for i := range es {
		var err error
		es[i], err = events.New("default", 1, events.ChargeRequested{OrderID: uuid.Must(uuid.NewV7()).String(),
			CustomerID: fmt.Sprintf("customer-%d", i%1000), Amount: 1999, Currency: "USD", Description: "two tickets for the evening"})
		if err != nil {
			return nil, err
		}
		es[i].ID, es[i].Source, es[i].Seq, es[i].Time = uuid.Must(uuid.NewV7()).String(), "orders", int64(i+1), time.Now()
	}
	return es, nil
}

// run measures how long work takes until its handler has charged all n requests, and counts the charges.
func (c consumption) run(ctx context.Context, db *database, work func(context.Context, *countdown) error) (measure.Figures, error) {
	left := &countdown{done: make(chan struct{})}
	left.n.Store(int64(c.n))
	var took time.Duration
	began := time.Now()
	err := beside(ctx, func(ctx context.Context) error { return work(ctx, left) }, func(ctx context.Context) error {
		select {
		case <-left.done:
			took = time.Since(began)
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	if err != nil {
		return nil, err
	}
	var charges, rows int
	if err := db.QueryRow(ctx, "SELECT (SELECT count(*) FROM charge WHERE tenant_id = 'default'), (SELECT count(*) FROM ledger WHERE tenant_id = 'default')").Scan(&charges, &rows); err != nil {
		return nil, err
	}
	if charges != c.n || rows != 2*c.n {
		return nil, fmt.Errorf("%d charges and %d ledger rows for %d requests", charges, rows, c.n)
	}
	return measure.Figures{"charges/s": float64(c.n) / took.Seconds()}, nil
}

// A countdown is how many requests are still to be charged.
type countdown struct {
	n    atomic.Int64
	done chan struct{}
}

func (c *countdown) one() {
	if c.n.Add(-1) == 0 {
		close(c.done)
	}
}

// counted is h, telling left of each success.
func counted(h message.NoPublishHandlerFunc, left *countdown) message.NoPublishHandlerFunc {
	return func(m *message.Message) error {
		err := h(m)
		if err == nil {
			left.one()
		}
		return err
	}
}

func (c consumption) ours(maxAckPending int, handler func(*inbox.Inbox, *billing.Service) (message.NoPublishHandlerFunc, error)) func(context.Context) (measure.Figures, error) {
	return func(ctx context.Context) (_ measure.Figures, err error) {
		db, err := c.b.database(ctx, "billing", prepareBilling)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, db.drop(ctx)) }()
		s, err := c.full(ctx, func(e oncebox.Event) (*nats.Msg, error) {
			m := &nats.Msg{Subject: e.Type, Data: e.Data, Header: nats.Header{}}
			e.EachHeader(func(name, value string) { m.Header[name] = []string{value} })
			return m, nil
		})
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, s.drop(ctx)) }()
		w, err := outbox.NewWriter(outbox.WriterConfig{Source: billing.Name})
		if err != nil {
			return nil, err
		}
		service, err := billing.New(db.Pool, w, billing.Config{ChargeLimit: 1_000_000})
		if err != nil {
			return nil, err
		}
		quiet := slog.New(slog.DiscardHandler)
		in, err := inbox.New(db.Pool, inbox.Config{Consumer: billing.Name, Logger: quiet})
		if err != nil {
			return nil, err
		}
		h, err := handler(in, service)
		if err != nil {
			return nil, err
		}
		sub, err := broker.NewSubscriber(s.nc, broker.SubscriberConfig{Stream: s.name, Group: billing.Name, MaxAckPending: maxAckPending, Logger: quiet})
		if err != nil {
			return nil, err
		}
		return c.run(ctx, db, func(ctx context.Context, left *countdown) error {
			router, err := message.NewRouter(message.RouterConfig{CloseTimeout: time.Second}, watermill.NopLogger{})
			if err != nil {
				return err
			}
			router.AddConsumerHandler(billing.Name, events.OrdersSubjects, sub, counted(h, left))
			return errors.Join(router.Run(ctx), sub.Close())
		})
	}
}

func prepareBilling(ctx context.Context, pool *pgxpool.Pool) error {
	return migrations.Up(ctx, pool, migrations.Outbox, migrations.Inbox, migrations.Billing)
}

// full makes orders' stream and fills it with n requests in a contender's form.
func (c consumption) full(ctx context.Context, form func(oncebox.Event) (*nats.Msg, error)) (*stream, error) {
	es, err := requests(c.n)
	if err != nil {
		return nil, err
	}
	s, err := c.b.stream(ctx, broker.SyncInterval, declare(events.OrdersStream, events.OrdersSubjects))
	if err != nil {
		return nil, err
	}
	for _, e := range es {
		m, err := form(e)
		if err == nil {
			_, err = s.js.PublishMsgAsync(m, jetstream.WithStallWait(time.Minute))
		}
		if err != nil {
			return nil, errors.Join(err, s.drop(ctx))
		}
	}
	if _, err := s.holds(ctx, c.n); err != nil {
		return nil, errors.Join(err, s.drop(ctx))
	}
	return s, nil
}

func (c consumption) router(ctx context.Context) (_ measure.Figures, err error) {
	db, err := c.b.database(ctx, "billing by watermill", func(ctx context.Context, pool *pgxpool.Pool) error {
		_, err := pool.Exec(ctx, peer.ProcessedTable)
		return errors.Join(err, migrations.Up(ctx, pool, migrations.Billing), peer.ForwarderOutbox(pool))
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.drop(ctx)) }()
	s, err := c.full(ctx, peer.OnTheWire)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.drop(ctx)) }()
	return c.run(ctx, db, func(ctx context.Context, left *countdown) error {
		return peer.Route(ctx, s.nc.ConnectedUrl(), events.TypeChargeRequested, billing.Name, counted(peer.ChargeOne(db.Pool), left))
	})
}

func (c consumption) river(ctx context.Context) (_ measure.Figures, err error) {
	db, err := c.b.database(ctx, fmt.Sprintf("billing by river, %d", c.n), func(ctx context.Context, pool *pgxpool.Pool) error {
		if err := errors.Join(migrations.Up(ctx, pool, migrations.Billing), peer.MigrateRiver(ctx, pool)); err != nil {
			return err
		}
		r, err := peer.NewRiver(pool, nil)
		if err != nil {
			return err
		}
		es, err := requests(c.n)
		if err != nil {
			return err
		}
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			for ; len(es) > 0; es = es[min(fillBatch, len(es)):] {
				if err := r.Add(ctx, tx, es[:min(fillBatch, len(es))]); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.drop(ctx)) }()
	return c.run(ctx, db, func(ctx context.Context, left *countdown) error {
		r, err := peer.NewRiver(db.Pool, left.one)
		if err != nil {
			return err
		}
		return r.Work(ctx)
	})
}
