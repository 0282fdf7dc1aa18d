package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/orders"
)

// A tally is the result of a run, counted in the databases, by the services, by JetStream and by the link: not by the clients
// that sent the orders. Money is in cents.
type tally struct {
	intents int // of each client

	// Of all accepted orders, those of the naive client too: it is a client of the real services like any other.
	accepted                 int
	acceptedMoney            int64
	chargedMoney             int64
	duplicates               int // charges beyond one for each order
	lost                     int // orders without a charge
	phantoms                 int // charges of no accepted order
	unpaid                   int // orders whose status is another
	unbalanced               int // charges whose ledger rows do not sum to zero, or not to its amount
	ledger                   int64
	deadLetters, guardOrder  int
	orders, charged          int // the keyed client's
	oncebox                  int64
	naiveOrders              int
	naiveCharged, naiveTwice int // what the naive consumer charged, and how much of it for an order that it had charged
	naiveMoney               int64

	attempts, replays, repliesLost int
	kills, killsAfterCommit        int
	redelivered, guardInbox        int
}

func (l *load) count(ctx context.Context) (tally, error) {
	t := tally{intents: l.o.orders, repliesLost: int(l.s.link.cut.Load()),
		kills: int(l.killer.done.Load()), killsAfterCommit: int(l.killer.afterCommit.Load())}
	if err := t.countDatabases(ctx, l.s.ordersDB, l.s.billingDB, l.s.naives, l.keyed.customers()); err != nil {
		return tally{}, err
	}
	var err error
	if t.attempts, err = l.s.orders.metric(ctx, "http_requests_total", "method", "post"); err != nil {
		return tally{}, err
	}
	if t.replays, err = l.s.orders.metric(ctx, "oncebox_idempotency_requests_total", "outcome", "replayed"); err != nil {
		return tally{}, err
	}
	if t.guardInbox, err = l.killer.stopped(ctx); err != nil {
		return tally{}, err
	}
	// The broker counts each handing out and each message handed out: the difference came again. This survives billing.
	info, err := l.s.consumer(ctx, events.OrdersStream, billing.Name)
	if err != nil {
		return tally{}, err
	}
	t.redelivered = int(info.Delivered.Consumer) - int(info.Delivered.Stream)
	return t, nil
}

// An entry is an accepted order or a charge.
type entry struct {
	Order    uuid.UUID
	Customer string
	Amount   int64
	Status   string
}

// countDatabases compares what orders accepted with what was charged, order by order. keyed is what the names of the keyed
// client's customers begin with.
func (t *tally) countDatabases(ctx context.Context, ordersDB, billingDB, naives *pgxpool.Pool, keyed string) error {
	accepted, err := query[entry](ctx, ordersDB, "SELECT id, customer_id, amount, status FROM orders")
	if err != nil {
		return fmt.Errorf("read the orders: %w", err)
	}
	charges, err := query[entry](ctx, billingDB, "SELECT order_id, customer_id, amount, status FROM charge")
	if err != nil {
		return fmt.Errorf("read the charges: %w", err)
	}
	t.compare(accepted, charges, keyed)
	if err := t.countLedger(ctx, billingDB); err != nil {
		return err
	}
	for _, db := range []*pgxpool.Pool{ordersDB, billingDB} {
		var all, guard int
		err := db.QueryRow(ctx, "SELECT count(*), count(*) FILTER (WHERE class = $1) FROM oncebox.dead_letter", billing.ClassAlreadyCharged).
			Scan(&all, &guard)
		if err != nil {
			return fmt.Errorf("count the dead letters: %w", err)
		}
		t.deadLetters += all
		t.guardOrder += guard
	}
	err = naives.QueryRow(ctx, "SELECT count(*), count(*) - count(DISTINCT order_id), COALESCE(sum(amount), 0)::bigint FROM naive_charge").
		Scan(&t.naiveCharged, &t.naiveTwice, &t.naiveMoney)
	if err != nil {
		return fmt.Errorf("count the naive charges: %w", err)
	}
	return nil
}

func (t *tally) compare(accepted, charges []entry, keyed string) {
	times := make(map[uuid.UUID]int, len(accepted))
	for _, o := range accepted {
		times[o.Order] = 0
		t.accepted++
		t.acceptedMoney += o.Amount
		if strings.HasPrefix(o.Customer, keyed) {
			t.orders++
		} else {
			t.naiveOrders++
		}
		if o.Status != orders.StatusPaid {
			t.unpaid++
		}
	}
	for _, c := range charges {
		if c.Status != billing.StatusSucceeded {
			continue
		}
		t.chargedMoney += c.Amount
		if strings.HasPrefix(c.Customer, keyed) {
			t.charged++
			t.oncebox += c.Amount
		}
		n, known := times[c.Order]
		switch {
		case !known:
			t.phantoms++
		case n > 0:
			t.duplicates++
		}
		if known {
			times[c.Order]++
		}
	}
	for _, n := range times {
		if n == 0 {
			t.lost++
		}
	}
}

func (t *tally) countLedger(ctx context.Context, billingDB *pgxpool.Pool) error {
	err := billingDB.QueryRow(ctx, `
		WITH l AS (SELECT tenant_id, charge_id, sum(amount) AS balance, sum(amount) FILTER (WHERE account = 'revenue') AS revenue
			FROM ledger GROUP BY 1, 2)
		SELECT count(*) FILTER (WHERE l.balance IS DISTINCT FROM 0
				OR l.revenue IS DISTINCT FROM CASE c.status WHEN 'succeeded' THEN c.amount ELSE 0 END),
			(SELECT COALESCE(sum(amount), 0) FROM ledger)::bigint
		FROM charge c FULL JOIN l ON l.tenant_id = c.tenant_id AND l.charge_id = c.id
		WHERE c.status = 'succeeded' OR l.charge_id IS NOT NULL`).Scan(&t.unbalanced, &t.ledger)
	if err != nil {
		return fmt.Errorf("sum the ledger: %w", err)
	}
	return nil
}

func query[T any](ctx context.Context, db *pgxpool.Pool, sql string, args ...any) ([]T, error) {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[T])
}
