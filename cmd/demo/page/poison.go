package page

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox/events"
)

// poison goes the way of every event: through the outbox, the relay and the stream. Its customer is nobody's, so that the naive
// consumer leaves it alone.
func (p *Page) poison(ctx context.Context) (string, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return "", err
	}
	p.mu.Lock()
	r := p.run
	p.mu.Unlock()
	payload, err := json.Marshal(events.ChargeRequested{OrderID: id.String(), CustomerID: "poison", Amount: -1, Currency: "USD",
		Description: r.customers() + "poison"}) // so that it counts as this run's
	if err != nil {
		return "", err
	}
	_, err = p.lab.Orders.Exec(ctx, `INSERT INTO oncebox.outbox (id, source, topic, key, version, tenant_id, headers, payload)
		VALUES ($1, 'orders', $2, $3, 1, 'default', '{}', $4)`, id, events.TypeChargeRequested, id.String(), payload)
	if err != nil {
		return "", fmt.Errorf("commit the poison: %w", err)
	}
	p.mu.Lock()
	r.poisons++
	p.mu.Unlock()
	class, reason, err := p.letterOf(ctx, id)
	return fmt.Sprintf("Dead letter, class %s: %s.", class, reason), err
}

// deaths is after how many attempts that began and never ended billing's inbox gives a message up.
const deaths = 3

// killer has one order's charge held up by a row that another transaction has not committed, and kills billing each time that it
// stands in front of it, until the inbox gives the message up.
func (p *Page) killer(ctx context.Context) (string, error) {
	if err := p.lab.BillingProcess.Pause(); err != nil {
		return "", err
	}
	order, event, err := p.payOne(ctx)
	if err != nil {
		return "", errors.Join(err, p.lab.BillingProcess.Continue())
	}
	tx, err := p.lab.Billing.Begin(ctx)
	if err != nil {
		return "", errors.Join(err, p.lab.BillingProcess.Continue())
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	_, err = tx.Exec(ctx, `INSERT INTO charge (tenant_id, id, order_id, customer_id, amount, currency, status) VALUES ('default', $1, $2, 'lock', 1, 'USD', 'succeeded')`,
		uuid.New(), order)
	if err := errors.Join(err, p.lab.BillingProcess.Continue()); err != nil {
		return "", err
	}
	kills, last := 0, uuid.Nil
	for {
		var owner uuid.UUID // of an attempt: each is another process
		var dead bool
		err := awaits(ctx, "billing tries the message", func() (bool, error) {
			err := p.lab.Billing.QueryRow(ctx, "SELECT COALESCE(owner, $2), state = 'dead' FROM oncebox.inbox WHERE id = $1 AND (state = 'dead' OR crashes < $3)",
				event, uuid.Nil, deaths).Scan(&owner, &dead)
			if errors.Is(err, pgx.ErrNoRows) {
				return false, nil
			}
			return dead || owner != uuid.Nil && owner != last, err
		})
		if err != nil {
			return "", err
		}
		if dead {
			break
		}
		kills, last = kills+1, owner
		if err := p.lab.BillingProcess.Kill(); err != nil {
			return "", err
		}
		if err := p.revive(ctx, p.lab.BillingProcess); err != nil {
			return "", err
		}
	}
	class, reason, err := p.letterOf(ctx, event)
	return fmt.Sprintf("Billing died %d times. Dead letter, class %s: %s.", kills, class, reason), err
}

// payOne has one intent ordered, and returns the order and the event that asks for its charge.
func (p *Page) payOne(ctx context.Context) (order string, event uuid.UUID, err error) {
	p.mu.Lock()
	r, n := p.run, len(p.run.intents)+1
	p.mu.Unlock()
	if err := p.Pay(1); err != nil {
		return "", event, err
	}
	err = awaits(ctx, "the order is committed", func() (bool, error) {
		err := p.lab.Orders.QueryRow(ctx, "SELECT o.id::text, e.id FROM orders o JOIN oncebox.outbox e ON e.key = o.id::text WHERE o.customer_id = $1 LIMIT 1",
			fmt.Sprint(r.customers(), n)).Scan(&order, &event)
		if errors.Is(err, pgx.ErrNoRows) {
			return false, nil
		}
		return true, err
	})
	return order, event, err
}

// letterOf waits until billing gives the event up, and returns why.
func (p *Page) letterOf(ctx context.Context, event uuid.UUID) (class, reason string, err error) {
	err = awaits(ctx, "it is a dead letter", func() (bool, error) {
		err := p.lab.Billing.QueryRow(ctx, "SELECT class, reason FROM oncebox.dead_letter WHERE id = $1", event).Scan(&class, &reason)
		if errors.Is(err, pgx.ErrNoRows) {
			return false, nil
		}
		return err == nil, err
	})
	return class, reason, err
}
