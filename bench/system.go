package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox/bench/measure"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/trial"
	"github.com/oncebox/oncebox/migrations"
)

const (
	watermillAll = "Watermill services"
	handlerAlone = "handler alone"
)

var systemNotes = []string{
	"Oncebox: the binaries orders and billing with their defaults, each on a database of its own, and JetStream between them.",
	watermillAll + ": two processes with the same tables, plain net/http without validation or logs, watermill-sql's publisher in the order's transaction, the Forwarder " +
		"polling every 100 ms (its default is 1 s), and Watermill's Router with one transaction a message, 16 at once.",
}

// whole is row 5.
func (b *bench) whole() measure.Row {
	const clients = 64
	n := size(b, 10_000, 1_000)
	c := fmt.Sprintf("%s orders, %d clients", measure.Number(float64(n)), clients)
	until := func(start func(context.Context) (*system, error), paid bool) func(context.Context) (measure.Figures, error) {
		return func(ctx context.Context) (measure.Figures, error) { return b.throughput(ctx, start, n, clients, paid) }
	}
	return measure.Row{Number: 5, Work: "POST → paid, the whole system", Notes: append(systemNotes,
		handlerAlone+": the same server as the Watermill services' orders, without an outbox and without anything behind it; an order counts when it is accepted."),
		Cases: []measure.Case{{Name: c, Contenders: []measure.Contender{
			{Name: oursName, Role: measure.Ours, Run: until(b.startOurs, true)},
			{Name: watermillAll, Role: measure.Peer, Run: until(b.startWatermill, true)},
			{Name: handlerAlone, Role: measure.Limit, Run: until(b.startPlain, false)},
		}}},
		Aims: []measure.Aim{measure.Of("× Watermill services", c, "orders/s", oursName, watermillAll, 3).Below(handlerAlone)}}
}

// A system is services that take orders and charge them.
type system struct {
	url             string
	orders, billing *database
	ends            []func(context.Context) error
}

func (s *system) onEnd(f func(context.Context) error) { s.ends = append(s.ends, f) }

// end undoes what was begun, the last first.
func (s *system) end(ctx context.Context) error {
	var errs []error
	for len(s.ends) > 0 {
		last := len(s.ends) - 1
		errs = append(errs, s.ends[last](ctx))
		s.ends = s.ends[:last]
	}
	return errors.Join(errs...)
}

// starting returns the system that f fills in, or what is left of it removed.
func starting(ctx context.Context, f func(*system) error) (*system, error) {
	s := &system{}
	if err := f(s); err != nil {
		return nil, errors.Join(err, s.end(ctx))
	}
	return s, nil
}

// prepareService makes a service's own tables. Its binary adds the others' when it starts.
func prepareService(line migrations.Line) preparer {
	return func(ctx context.Context, pool *pgxpool.Pool) error { return migrations.Up(ctx, pool, line) }
}

func (b *bench) give(ctx context.Context, s *system, to **database, template string, prepare preparer) error {
	db, err := b.database(ctx, template, prepare)
	if err != nil {
		return err
	}
	*to = db
	s.onEnd(db.drop)
	return nil
}

// startOurs starts the two services, which migrate their databases and make their streams.
func (b *bench) startOurs(ctx context.Context) (*system, error) {
	return starting(ctx, func(s *system) error {
		if err := errors.Join(b.give(ctx, s, &s.orders, "orders", prepareService(migrations.Orders)),
			b.give(ctx, s, &s.billing, "billing of ours", prepareService(migrations.Billing))); err != nil {
			return err
		}
		s.onEnd(func(ctx context.Context) error {
			return errors.Join(b.dropStream(ctx, events.OrdersStream), b.dropStream(ctx, events.BillingStream))
		})
		nats := b.server(broker.SyncInterval).URL()
		for name, db := range map[string]*database{"orders": s.orders, "billing": s.billing} {
			p, err := b.service(ctx, name, db.url, nats)
			if err != nil {
				return err
			}
			s.onEnd(p.end)
			if name == "orders" {
				s.url = p.url
			}
		}
		return b.warm(ctx, s)
	})
}

func (b *bench) startWatermill(ctx context.Context) (*system, error) {
	return starting(ctx, func(s *system) error {
		if err := errors.Join(b.give(ctx, s, &s.orders, "watermill orders", preparePeer(migrations.Orders, keyTable)),
			b.give(ctx, s, &s.billing, "watermill billing", preparePeer(migrations.Billing, ""))); err != nil {
			return err
		}
		for name, subjects := range map[string]string{events.OrdersStream: events.OrdersSubjects, events.BillingStream: events.BillingSubjects} {
			stream, err := b.stream(ctx, broker.SyncInterval, declare(name, subjects))
			if err != nil {
				return err
			}
			s.onEnd(stream.drop)
		}
		nats := b.server(broker.SyncInterval).URL()
		for name, db := range map[string]*database{"peer-orders": s.orders, "peer-billing": s.billing} {
			p, err := b.again(ctx, name, db.url, nats)
			if err != nil {
				return err
			}
			s.onEnd(p.end)
			if name == "peer-orders" {
				s.url = p.url
			}
		}
		return b.warm(ctx, s)
	})
}

func (b *bench) startPlain(ctx context.Context) (*system, error) {
	return starting(ctx, func(s *system) error {
		if err := b.give(ctx, s, &s.orders, "plain orders", preparePlainOrders); err != nil {
			return err
		}
		p, err := b.again(ctx, "plain-orders", s.orders.url, "")
		if err != nil {
			return err
		}
		s.url = p.url
		s.onEnd(p.end)
		return nil
	})
}

// warmUp is how many orders go all the way before the clock starts: both services then pull.
const warmUp = 50

func (b *bench) warm(ctx context.Context, s *system) error {
	for range warmUp {
		if _, err := post(ctx, s.url+"/v1/orders", uuid.NewString()); err != nil {
			return err
		}
	}
	return s.paid(ctx, warmUp)
}

// paid waits until n orders are.
func (s *system) paid(ctx context.Context, n int) error {
	const limit = 2 * time.Minute
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not all of %d orders were paid within %s", n, limit))
	defer cancel()
	for {
		var paid int
		if err := s.orders.QueryRow(ctx, "SELECT count(*) FROM orders WHERE tenant_id = 'default' AND status = 'paid'").Scan(&paid); err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		if paid == n {
			return nil
		}
		if err := trial.Pause(ctx, 25*time.Millisecond); err != nil {
			return err
		}
	}
}

// throughput is how many orders a second come through, from the first POST until the last is paid, or accepted.
func (b *bench) throughput(ctx context.Context, start func(context.Context) (*system, error), n, clients int, paid bool) (_ measure.Figures, err error) {
	s, err := start(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end(ctx)) }()
	g, posting := errgroup.WithContext(ctx)
	g.SetLimit(clients)
	began := time.Now()
	for range n {
		g.Go(func() error {
			_, err := post(posting, s.url+"/v1/orders", uuid.NewString())
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	figures := measure.Figures{"accepted/s": float64(n) / time.Since(began).Seconds()}
	if paid {
		if err := s.paid(ctx, n+warmUp); err != nil {
			return nil, err
		}
	}
	figures["orders/s"] = float64(n) / time.Since(began).Seconds()
	return figures, nil
}

// dropStream drops a service's stream, if the service came to make it.
func (s *stack) dropStream(ctx context.Context, name string) error {
	nc, js, err := s.connect(s.interval)
	if err != nil {
		return err
	}
	defer nc.Close()
	if err := js.DeleteStream(context.WithoutCancel(ctx), name); !errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	return nil
}

// charged waits until n orders are charged and returns when each one's charge was committed.
func (s *system) charged(ctx context.Context, n int) (map[uuid.UUID]time.Time, error) {
	if err := s.paid(ctx, n); err != nil {
		return nil, err
	}
	rows, err := s.billing.Query(ctx, "SELECT order_id, pg_xact_commit_timestamp(xmin) FROM charge") //nolint:rowserrcheck // ForEachRow checks it
	if err != nil {
		return nil, err
	}
	at := map[uuid.UUID]time.Time{}
	var order uuid.UUID
	var committed time.Time
	_, err = pgx.ForEachRow(rows, []any{&order, &committed}, func() error {
		at[order] = committed
		return nil
	})
	return at, err
}
