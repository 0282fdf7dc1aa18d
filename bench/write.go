package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/bench/measure"
	"github.com/oncebox/oncebox/bench/peer"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

const (
	orderAlone  = "order alone"
	pipelined   = "Oncebox, pipelined"
	watermillTx = "watermill-sql"
	riverTx     = "River"
	notified    = "with NOTIFY"
)

// write is row 4.
func (b *bench) write() measure.Row {
	row := measure.Row{Number: 4, Work: "An order and its event in one transaction", Notes: []string{
		"Each writer inserts into the service's own orders table and commits, in a loop; BEGIN, the statements and COMMIT are round trips of their own.",
		"Oncebox adds by Writer.Add, a fourth round trip; pipelined by Writer.Queue, in the same batch as the order, as orders does.",
		watermillTx + ": v4.1.2's publisher on the same pgx transaction, enveloped for the Forwarder, default schema.",
		riverTx + ": v0.51.1, InsertTx and InsertManyTx on the same pgx transaction.",
		notified + ": Oncebox's writer, and a trigger on the outbox that calls pg_notify, as outboxes that wake their relay that way have it.",
	}}
	for _, writers := range []int{1, 8, 32} {
		c := fmt.Sprintf("1 event, %d writers", writers)
		if writers == 1 {
			c = "1 event, 1 writer"
		}
		row.Cases = append(row.Cases, measure.Case{Name: c, Contenders: []measure.Contender{
			b.writer(oursName, measure.Ours, writers, 1, prepareOurs, addOurs),
			b.writer(pipelined, measure.Ours, writers, 1, prepareOurs, queueOurs),
			b.writer(watermillTx, measure.Peer, writers, 1, prepareWatermill, addWatermill),
			b.writer(riverTx, measure.Peer, writers, 1, prepareRiver, addRiver),
			b.writer(notified, measure.Peer, writers, 1, prepareNotify, addOurs),
			b.writer(orderAlone, measure.Limit, writers, 1, prepareAlone, addNothing),
		}})
		if writers == 32 {
			row.Aims = append(row.Aims,
				measure.Of("of the order alone, 32 writers", c, "tx/s", oursName, orderAlone, 0.70),
				measure.Of("pipelined, of the order alone, 32 writers", c, "tx/s", pipelined, orderAlone, 0.78),
				measure.Of("× watermill-sql, 32 writers", c, "tx/s", oursName, watermillTx, 0.9).Below(orderAlone),
				measure.Of("× the same with NOTIFY, 32 writers", c, "tx/s", oursName, notified, 2).Below(orderAlone))
		}
	}
	const many = "50 events, 8 writers"
	row.Cases = append(row.Cases, measure.Case{Name: many, Contenders: []measure.Contender{
		b.writer(oursName, measure.Ours, 8, 50, prepareOurs, addOurs),
		b.writer(watermillTx, measure.Peer, 8, 50, prepareWatermill, addWatermill),
		b.writer(riverTx, measure.Peer, 8, 50, prepareRiver, addRiver),
		b.writer(orderAlone, measure.Limit, 8, 50, prepareAlone, addNothing),
	}})
	row.Aims = append(row.Aims, measure.Of("× watermill-sql, 50 events", many, "tx/s", oursName, watermillTx, 3).Below(orderAlone))
	return row
}

// An adder writes an order and its events in tx.
type adder func(ctx context.Context, tx pgx.Tx, events []oncebox.Event) error

// writer is a contender with so many writers at once, which commit so many events with each order.
func (b *bench) writer(name string, role measure.Role, writers, events int, prepare preparer, adding func(*pgxpool.Pool) (adder, error)) measure.Contender {
	return measure.Contender{Name: name, Role: role, Run: func(ctx context.Context) (_ measure.Figures, err error) {
		db, err := b.database(ctx, "write by "+name, prepare)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, db.drop(ctx)) }()
		add, err := adding(db.Pool)
		if err != nil {
			return nil, err
		}
		g, ctx := errgroup.WithContext(ctx)
		length := size(b, 2*time.Second, 400*time.Millisecond)
		began := time.Now()
		var committed atomic.Int64
		for range writers {
			g.Go(func() error {
				for time.Since(began) < length {
					made := sold(0, events)
					if err := pgx.BeginFunc(ctx, db.Pool, func(tx pgx.Tx) error { return add(ctx, tx, made) }); err != nil {
						return err
					}
					committed.Add(1)
				}
				return nil
			})
		}
		err = g.Wait()
		return measure.Figures{"tx/s": float64(committed.Load()) / time.Since(began).Seconds()}, err
	}}
}

type preparer = func(context.Context, *pgxpool.Pool) error

const insertOrder = `INSERT INTO orders (tenant_id, id, customer_id, amount, currency, description, status, version)
	VALUES ('default', $1, 'customer-1', 1999, 'USD', 'two tickets', 'pending', 1)`

func order(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, insertOrder, uuid.Must(uuid.NewV7()))
	return err
}

func prepareAlone(ctx context.Context, pool *pgxpool.Pool) error {
	return migrations.Up(ctx, pool, migrations.Orders)
}

func addNothing(*pgxpool.Pool) (adder, error) {
	return func(ctx context.Context, tx pgx.Tx, _ []oncebox.Event) error { return order(ctx, tx) }, nil
}

func prepareOurs(ctx context.Context, pool *pgxpool.Pool) error {
	return migrations.Up(ctx, pool, migrations.Outbox, migrations.Orders)
}

func addOurs(*pgxpool.Pool) (adder, error) {
	w, err := outbox.NewWriter(outbox.WriterConfig{Source: benchSource})
	return func(ctx context.Context, tx pgx.Tx, events []oncebox.Event) error {
		if err := order(ctx, tx); err != nil {
			return err
		}
		return w.Add(ctx, tx, events...)
	}, err
}

func queueOurs(*pgxpool.Pool) (adder, error) {
	w, err := outbox.NewWriter(outbox.WriterConfig{Source: benchSource})
	return func(ctx context.Context, tx pgx.Tx, events []oncebox.Event) error {
		b := &pgx.Batch{}
		b.Queue(insertOrder, uuid.Must(uuid.NewV7()))
		if err := w.Queue(b, events...); err != nil {
			return err
		}
		return tx.SendBatch(ctx, b).Close()
	}, err
}

func prepareNotify(ctx context.Context, pool *pgxpool.Pool) error {
	if err := prepareOurs(ctx, pool); err != nil {
		return err
	}
	_, err := pool.Exec(ctx, `
		CREATE FUNCTION oncebox.notify_relay() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_notify('outbox', ''); RETURN NULL; END $$;
		CREATE TRIGGER notify_relay AFTER INSERT ON oncebox.outbox FOR EACH STATEMENT EXECUTE FUNCTION oncebox.notify_relay()`)
	return err
}

func prepareWatermill(ctx context.Context, pool *pgxpool.Pool) error {
	return errors.Join(migrations.Up(ctx, pool, migrations.Orders), peer.ForwarderOutbox(pool))
}

func addWatermill(*pgxpool.Pool) (adder, error) {
	return func(ctx context.Context, tx pgx.Tx, events []oncebox.Event) error {
		if err := order(ctx, tx); err != nil {
			return err
		}
		return peer.Publish(ctx, tx, events...)
	}, nil
}

func prepareRiver(ctx context.Context, pool *pgxpool.Pool) error {
	return errors.Join(migrations.Up(ctx, pool, migrations.Orders), peer.MigrateRiver(ctx, pool))
}

func addRiver(pool *pgxpool.Pool) (adder, error) {
	river, err := peer.NewRiver(pool, nil)
	return func(ctx context.Context, tx pgx.Tx, events []oncebox.Event) error {
		if err := order(ctx, tx); err != nil {
			return err
		}
		return river.Add(ctx, tx, events)
	}, err
}
