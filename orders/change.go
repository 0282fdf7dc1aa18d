package orders

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/service"
)

// A change is what PUT may set. No event tells of it: whom a charge was asked of, and for what, stays as it was asked.
type change struct{ customerID, description string }

// update returns errUnconditional without If-Match, and errStale if a condition does not hold. What is as c wants it already is
// left as it is: the request came twice, and its condition held the first time.
func (s *Service) update(ctx context.Context, tx pgx.Tx, id uuid.UUID, c change, cond Conditions) (Order, error) {
	r, err := find(ctx, tx, id, "FOR UPDATE")
	switch {
	case err != nil:
		return Order{}, err
	case r.DeletedAt != nil:
		return Order{}, errDeleted
	case cond.noneMatch.weakly(r.etag()):
		return Order{}, errStale
	case len(cond.match) == 0:
		return Order{}, errUnconditional
	case r.CustomerID == c.customerID && r.Description == c.description:
		return r.Order, nil
	case !cond.match.strongly(r.etag()):
		return Order{}, errStale
	}
	rows, err := tx.Query(ctx, `UPDATE orders SET
			made_customer_id = COALESCE(made_customer_id, customer_id), made_description = COALESCE(made_description, description),
			customer_id = $3, description = $4, version = version + 1, updated_at = clock_timestamp()
		WHERE tenant_id = $1 AND id = $2 RETURNING `+columns, service.Tenant(ctx), id, c.customerID, c.description)
	if err != nil {
		return Order{}, fmt.Errorf("update order %s: %w", id, err)
	}
	r, err = pgx.CollectExactlyOneRow(rows, scan)
	if err != nil {
		return Order{}, fmt.Errorf("update order %s: %w", id, err)
	}
	return r.Order, nil
}

// remove deletes softly. A pending order is cancelled with it, for a paid one a refund is asked for; each by one event. Deleting
// what is deleted returns the same order as the first time, whatever the conditions: they held then, and it is done.
func (s *Service) remove(ctx context.Context, tx pgx.Tx, id uuid.UUID, cond Conditions) (Order, error) {
	r, err := find(ctx, tx, id, "FOR UPDATE")
	switch {
	case err != nil:
		return Order{}, err
	case r.DeletedAt != nil:
		return r.asDeleted(), nil
	case cond.noneMatch.weakly(r.etag()), len(cond.match) > 0 && !cond.match.strongly(r.etag()):
		return Order{}, errStale
	}
	status, taken := r.Status, r.Status == StatusPending || r.Status == StatusPaid
	if status == StatusPending {
		status = StatusCancelled
	}
	rows, err := tx.Query(ctx, `UPDATE orders SET status = $3, version = version + 1, deleted_status = $3, deleted_version = version + 1,
			settled_version = CASE status WHEN 'pending' THEN version + 1 ELSE settled_version END,
			updated_at = d.at, deleted_at = d.at, purge_at = d.at + make_interval(secs => $4)
		FROM clock_timestamp() AS d (at) WHERE tenant_id = $1 AND id = $2 RETURNING `+columns,
		service.Tenant(ctx), id, status, s.keepDeleted.Seconds())
	if err != nil {
		return Order{}, fmt.Errorf("delete order %s: %w", id, err)
	}
	r, err = pgx.CollectExactlyOneRow(rows, scan)
	if err != nil {
		return Order{}, fmt.Errorf("delete order %s: %w", id, err)
	}
	if taken {
		cancelled, err := events.New(service.Tenant(ctx), r.Version, events.OrderCancelled{
			OrderID: r.ID, CustomerID: r.CustomerID, Amount: r.Amount, Currency: r.Currency})
		if err != nil {
			return Order{}, err
		}
		cancelled.TraceParent = service.TraceParent(ctx)
		if err := s.outbox.Add(ctx, tx, cancelled); err != nil {
			return Order{}, err
		}
	}
	return r.asDeleted(), nil
}

// asDeleted is the order as it was right after its deletion. A refund that has come since is not in it.
func (r row) asDeleted() Order {
	o := r.Order
	o.Status, o.Version, o.UpdatedAt = r.deletedStatus, r.deletedVersion, *r.DeletedAt
	return o
}

// purgeBatch bounds the rows that one transaction of Purge locks.
const purgeBatch = 1000

// Purge deletes for good the orders whose purge_at has come, 1,000 in a transaction. One that still waits for its refund stays
// until that has come. It may run in any number of processes at once.
func (s *Service) Purge(ctx context.Context) error {
	for {
		tag, err := s.pool.Exec(ctx, `DELETE FROM orders WHERE (tenant_id, id) IN (
			SELECT tenant_id, id FROM orders WHERE purge_at <= clock_timestamp() AND status <> 'paid'
			ORDER BY purge_at LIMIT $1 FOR UPDATE SKIP LOCKED)`, purgeBatch)
		if err != nil {
			return fmt.Errorf("purge orders: %w", err)
		}
		if tag.RowsAffected() < purgeBatch {
			return nil
		}
	}
}
