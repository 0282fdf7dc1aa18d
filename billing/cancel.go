package billing

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/inbox"
)

// readCancel reads a cancellation, and the order's id. Its errors are permanent.
func readCancel(e oncebox.Event) (events.OrderCancelled, uuid.UUID, error) {
	c, err := inbox.Read[events.OrderCancelled](e)
	if err != nil {
		return c, uuid.Nil, err
	}
	order, err := check(e, c.OrderID, c.CustomerID, c.Amount, c.Currency)
	return c, order, err
}

// cancel gives back what was charged and answers. Where nothing was, there is nothing to answer: it leaves a tombstone in the
// place of a charge that has not come yet, and lets one that was declined, refunded or cancelled be.
func (s *Service) cancel(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
	c, order, err := readCancel(e)
	if err != nil {
		return err
	}
	refunded, err := s.refund(ctx, tx, e, order, c, false)
	if err != nil || refunded {
		return err
	}
	var outside bool
	err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM charge WHERE tenant_id = $1 AND order_id = $2
		AND (status = 'pending' OR status = 'succeeded' AND provider_charge IS NOT NULL))`, e.TenantID, order).Scan(&outside)
	if err == nil && outside {
		err = errors.New("its charge is at a payment provider, and none is set")
	}
	if err != nil {
		return fmt.Errorf("cancel order %s: %w", order, err)
	}
	return nil
}

// refund gives back what was charged, leaves a tombstone where nothing was yet, and answers. What was charged at a provider
// has to be given back there before: outside says that it was.
func (s *Service) refund(ctx context.Context, tx pgx.Tx, e oncebox.Event, order uuid.UUID, c events.OrderCancelled, outside bool) (refunded bool, err error) {
	refund := events.ChargeRefunded{OrderID: c.OrderID}
	// The conflict waits for a charge that is being made, and then refunds it. DO UPDATE without a row to update returns none; a
	// row of status 'cancelled' is the tombstone.
	err = tx.QueryRow(ctx, `WITH c AS (
			INSERT INTO charge (tenant_id, id, order_id, customer_id, amount, currency, status)
			VALUES ($1, $2, $3, $4, $5, $6, 'cancelled')
			ON CONFLICT ON CONSTRAINT charge_order_id DO UPDATE SET status = 'refunded', refunded_at = clock_timestamp()
				WHERE charge.status = 'succeeded' AND ($7 OR charge.provider_charge IS NULL) RETURNING *),
		l AS (`+refundLedger+`)
		SELECT COALESCE(max(id::text), ''), COALESCE(max(amount), 0), COALESCE(max(currency), '') FROM c WHERE status = 'refunded'`,
		e.TenantID, oncebox.DerivedID(e, Name, "charge", 0), order, c.CustomerID, c.Amount, c.Currency, outside).
		Scan(&refund.ChargeID, &refund.Amount, &refund.Currency)
	if err != nil {
		return false, fmt.Errorf("cancel order %s: %w", order, err)
	}
	if refund.ChargeID == "" {
		return false, nil
	}
	answer, err := events.Answer(e, Name, refund)
	if err != nil {
		return false, err
	}
	return true, s.outbox.Add(ctx, tx, answer)
}

// tombstone takes the place of a charge that has not come yet. The conflict waits for one that is being made.
func tombstone(ctx context.Context, tx pgx.Tx, e oncebox.Event, order uuid.UUID, c events.OrderCancelled) error {
	_, err := tx.Exec(ctx, `INSERT INTO charge (tenant_id, id, order_id, customer_id, amount, currency, status)
		VALUES ($1, $2, $3, $4, $5, $6, 'cancelled') ON CONFLICT ON CONSTRAINT charge_order_id DO NOTHING`,
		e.TenantID, oncebox.DerivedID(e, Name, "charge", 0), order, c.CustomerID, c.Amount, c.Currency)
	if err != nil {
		return fmt.Errorf("cancel order %s: %w", order, err)
	}
	return nil
}
