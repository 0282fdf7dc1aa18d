package billing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/inbox"
)

// An outcome is what the provider answered to a request for a charge.
type outcome struct {
	Charge   string `json:"charge,omitempty"`   // the provider's id
	Declined string `json:"declined,omitempty"` // why, in the provider's word
}

var errPending = errors.New("billing: the charge that is to be given back is not settled yet")

// Outside does what Handler does, with the money at a payment provider: one call may take as long as timeout. A charge's row
// is there, pending, before the provider is asked, so that a cancellation that comes meanwhile finds it, and waits. The
// charge's id is our reference.
func (s *Service) Outside(p *Provider, timeout time.Duration) (inbox.Outside, error) {
	if timeout <= 0 {
		return inbox.Outside{}, fmt.Errorf("billing: a provider's timeout of %s: it must be above 0", timeout)
	}
	o := &outside{s: s, provider: p}
	return inbox.Outside{Prepare: o.prepare, Call: o.call, Find: o.find, Settle: o.settle, Lease: timeout}, nil
}

type outside struct {
	s        *Service
	provider *Provider
}

func (o *outside) prepare(ctx context.Context, tx pgx.Tx, e oncebox.Event) (ask bool, err error) {
	switch e.Type {
	case events.TypeChargeRequested:
		c, err := o.s.claim(e)
		if err != nil {
			return false, err
		}
		if c.status == StatusDeclined {
			// A limit that was lowered since says nothing of what was begun before.
			return begun(ctx, tx, e.TenantID, c)
		}
		return reserve(ctx, tx, e, c.id, c.order, c.req.CustomerID, c.req.Amount, c.req.Currency)
	case events.TypeOrderCancelled:
		c, order, err := readCancel(e)
		if err != nil {
			return false, err
		}
		if err := tombstone(ctx, tx, e, order, c); err != nil {
			return false, err
		}
		r, err := rowOf(ctx, tx, e.TenantID, order)
		if err == nil && r.status == StatusPending {
			err = errPending
		}
		return r.status == StatusSucceeded && r.provider != "", err
	}
	return false, fmt.Errorf("%w: %.64q", inbox.ErrUnknownType, e.Type)
}

// begun says whether the charge is there, pending: then the provider may have been asked for it.
func begun(ctx context.Context, tx pgx.Tx, tenantID string, c claim) (bool, error) {
	r, err := rowOf(ctx, tx, tenantID, c.order)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return r.status == StatusPending && r.id == c.id, err
}

// reserve writes the charge as pending, unless there is one of the order. It returns whether it is to be asked for.
func reserve(ctx context.Context, tx pgx.Tx, e oncebox.Event, id, order uuid.UUID, customer string, amount int64, currency string) (bool, error) {
	_, err := tx.Exec(ctx, `INSERT INTO charge (tenant_id, id, order_id, customer_id, amount, currency, status)
		SELECT $1, $2, $3, $4, $5, $6, 'pending' WHERE NOT EXISTS (SELECT FROM charge WHERE tenant_id = $1 AND order_id = $3) ON CONFLICT DO NOTHING`,
		e.TenantID, id, order, customer, amount, currency)
	if err != nil {
		return false, fmt.Errorf("reserve the charge of order %s: %w", order, err)
	}
	r, err := rowOf(ctx, tx, e.TenantID, order)
	switch {
	case err != nil:
		return false, err
	case r.status == StatusPending && r.id == id:
		return true, nil
	case r.status == StatusCancelled:
		return false, nil
	}
	return false, inbox.Permanent(ClassAlreadyCharged, fmt.Errorf("order %s is charged already", order))
}

// A chargeRow is what is known of an order's charge.
type chargeRow struct {
	id       uuid.UUID
	status   string
	provider string // the provider's id, "" if the money is not there
}

// rowOf waits for whoever is at the row.
func rowOf(ctx context.Context, tx pgx.Tx, tenantID string, order uuid.UUID) (r chargeRow, err error) {
	err = tx.QueryRow(ctx, `SELECT id, status, COALESCE(provider_charge, '') FROM charge WHERE tenant_id = $1 AND order_id = $2 FOR UPDATE`,
		tenantID, order).Scan(&r.id, &r.status, &r.provider)
	if err != nil {
		err = fmt.Errorf("look at the charge of order %s: %w", order, err)
	}
	return r, err
}

func (o *outside) call(ctx context.Context, e oncebox.Event, key string) ([]byte, error) {
	if e.Type == events.TypeOrderCancelled {
		charge, err := o.toRefund(ctx, e)
		if err == nil {
			err = o.provider.refund(ctx, key, charge)
		}
		if _, declined := errors.AsType[*declinedError](err); declined { // somebody has given it back by hand, perhaps
			back, look := o.provider.refunded(ctx, charge)
			if look != nil || !back {
				return nil, errors.Join(err, look)
			}
			err = nil
		}
		return nil, err
	}
	c, err := o.s.claim(e)
	if err != nil {
		return nil, err
	}
	var out outcome
	out.Charge, err = o.provider.charge(ctx, key, c.id.String(), c.req.Amount, c.req.Currency)
	if declined, ok := errors.AsType[*declinedError](err); ok {
		out.Declined, err = declined.reason, nil
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(out)
}

func (o *outside) find(ctx context.Context, e oncebox.Event) ([]byte, bool, error) {
	if e.Type == events.TypeOrderCancelled {
		charge, err := o.toRefund(ctx, e)
		if err != nil {
			return nil, false, err
		}
		back, err := o.provider.refunded(ctx, charge)
		return nil, back, err
	}
	c, err := o.s.claim(e)
	if err != nil {
		return nil, false, err
	}
	var out outcome
	out.Charge, err = o.provider.findCharge(ctx, c.id.String())
	if err != nil || out.Charge == "" {
		return nil, false, err
	}
	answer, err := json.Marshal(out)
	return answer, true, err
}

// toRefund is the provider's id of the charge that e gives back.
func (o *outside) toRefund(ctx context.Context, e oncebox.Event) (charge string, err error) {
	_, order, err := readCancel(e)
	if err != nil {
		return "", err
	}
	err = o.s.pool.QueryRow(ctx, `SELECT provider_charge FROM charge WHERE tenant_id = $1 AND order_id = $2`, e.TenantID, order).Scan(&charge)
	if err != nil {
		return "", fmt.Errorf("the provider's id of the charge of order %s: %w", order, err)
	}
	return charge, nil
}

func (o *outside) settle(ctx context.Context, tx pgx.Tx, e oncebox.Event, answer []byte) error {
	if e.Type == events.TypeOrderCancelled {
		c, order, err := readCancel(e)
		if err != nil {
			return err
		}
		_, err = o.s.refund(ctx, tx, e, order, c, true)
		return err
	}
	c, err := o.s.claim(e)
	switch {
	case err != nil:
		return err
	case answer == nil && c.status == StatusDeclined: // by us
		return o.s.chargeAll(ctx, tx, []oncebox.Event{e})[0]
	case answer == nil: // cancelled before it was asked for
		return nil
	}
	if c, err = asked(e); err != nil { // the provider has had its say, also where the limit is lower by now
		return err
	}
	var out outcome
	if err := json.Unmarshal(answer, &out); err != nil {
		return fmt.Errorf("the provider's answer for order %s: %w", c.order, err)
	}
	if out.Declined != "" {
		if c, err = c.declined(e, out.Declined); err != nil {
			return err
		}
	}
	var settled int
	err = tx.QueryRow(ctx, `WITH c AS (
			UPDATE charge SET status = $3, reason = $4, provider_charge = NULLIF($5, '') WHERE tenant_id = $1 AND id = $2 AND status = 'pending' RETURNING *),
		l AS (`+chargeLedger+`)
		SELECT count(*) FROM c`, e.TenantID, c.id, c.status, c.reason, out.Charge).Scan(&settled)
	if err != nil {
		return fmt.Errorf("settle the charge of order %s: %w", c.order, err)
	}
	if settled != 1 {
		return fmt.Errorf("settle the charge of order %s: %d rows are pending", c.order, settled)
	}
	return o.s.outbox.Add(ctx, tx, c.answer)
}
