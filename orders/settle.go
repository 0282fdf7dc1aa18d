package orders

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

// Handler settles billing's answers.
func (s *Service) Handler() inbox.Handler {
	return inbox.ByType(map[string]inbox.Handler{
		events.TypeChargeSucceeded: inbox.Typed(func(ctx context.Context, tx pgx.Tx, e oncebox.Event, c events.ChargeSucceeded) error {
			return settle(ctx, tx, e, StatusPaid, answer{c.ChargeID, "", c.Amount, c.Currency})
		}),
		events.TypeChargeDeclined: inbox.Typed(func(ctx context.Context, tx pgx.Tx, e oncebox.Event, c events.ChargeDeclined) error {
			return settle(ctx, tx, e, StatusDeclined, answer{c.ChargeID, c.Reason, c.Amount, c.Currency})
		}),
		events.TypeChargeRefunded: inbox.Typed(func(ctx context.Context, tx pgx.Tx, e oncebox.Event, c events.ChargeRefunded) error {
			return settle(ctx, tx, e, StatusRefunded, answer{c.ChargeID, "", c.Amount, c.Currency})
		}),
	})
}

// An answer is what billing says of a charge.
type answer struct {
	chargeID, reason string
	amount           int64
	currency         string
}

// settle takes what billing says of version e.Version of the order, unless it has spoken of this or of a later one. An answer about
// another amount than the order's settles nothing: it is for people to look at.
func settle(ctx context.Context, tx pgx.Tx, e oncebox.Event, status string, a answer) error {
	order, err := uuid.Parse(e.Key)
	if err != nil {
		return inbox.Permanent("malformed", fmt.Errorf("the key %.64q is no order's id", e.Key))
	}
	charge, err := uuid.Parse(a.chargeID)
	if err != nil {
		return inbox.Permanent("malformed", fmt.Errorf("charge id %.64q is no UUID", a.chargeID))
	}
	if e.Version < 1 {
		return inbox.Permanent("malformed", fmt.Errorf("an answer to no version of order %s", order))
	}
	var (
		version int64
		same    bool
	)
	err = tx.QueryRow(ctx, `
		WITH u AS (UPDATE orders SET status = $3, charge_id = COALESCE(charge_id, $4), decline_reason = NULLIF($5, ''), settled_version = $6,
				version = version + 1, updated_at = clock_timestamp()
			WHERE tenant_id = $1 AND id = $2 AND settled_version < $6 AND version >= $6 AND amount = $7 AND currency = $8)
		SELECT version, amount = $7 AND currency = $8 FROM orders WHERE tenant_id = $1 AND id = $2`,
		e.TenantID, order, status, charge, a.reason, e.Version, a.amount, a.currency).Scan(&version, &same)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return inbox.Permanent("no_such_order", fmt.Errorf("no order %s", order))
	case err != nil:
		return fmt.Errorf("settle order %s: %w", order, err)
	case version < e.Version: // say, the database was restored to an earlier state
		return inbox.Permanent("no_such_version", fmt.Errorf("order %s has version %d, and the answer is to %d", order, version, e.Version))
	case !same:
		return inbox.Permanent("other_amount", fmt.Errorf("the answer is about %d %s, and order %s is of another amount", a.amount, a.currency, order))
	}
	return nil
}
