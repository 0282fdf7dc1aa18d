package orders

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/internal/service"
)

// A draft is an order to be made, with the hashes of the request that asks for it.
type draft struct {
	customerID, currency, description string
	amount                            int64
	request                           idempotency.Request
	body                              []byte // SHA-256: what the release before knows a request by
}

// createOnce makes the order of a draft. The store of keys lets a request through once; should it have forgotten one, the order's
// own unique key stops it here, and the order is returned as it was made.
func (s *Service) createOnce(ctx context.Context, d draft) (o Order, again bool, err error) {
	err = s.inTx(ctx, func(tx pgx.Tx) error {
		o, err = s.create(ctx, tx, d)
		if again = violates(err, "orders_idem_key"); again {
			o, err = s.madeBefore(ctx, tx, d)
		}
		return err
	})
	return o, again, err
}

// create writes the order and the event that asks for its charge, in one round trip.
func (s *Service) create(ctx context.Context, tx pgx.Tx, d draft) (Order, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return Order{}, fmt.Errorf("make an id: %w", err)
	}
	o := Order{ID: id.String(), CustomerID: d.customerID, Amount: d.amount, Currency: d.currency, Description: d.description,
		Status: StatusPending, Version: 1}
	requested, err := events.New(service.Tenant(ctx), o.Version, events.ChargeRequested{
		OrderID: o.ID, CustomerID: o.CustomerID, Amount: o.Amount, Currency: o.Currency, Description: o.Description})
	if err != nil {
		return Order{}, err
	}
	requested.TraceParent = service.TraceParent(ctx)
	b := &pgx.Batch{}
	b.Queue("SAVEPOINT order_made") // see madeBefore
	b.Queue(`INSERT INTO orders (tenant_id, id, customer_id, amount, currency, description, status, version, idem_key, idem_request, idem_fingerprint,
			created_at, updated_at)
		SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, c.at, c.at FROM clock_timestamp() AS c (at) RETURNING created_at`,
		service.Tenant(ctx), id, o.CustomerID, o.Amount, o.Currency, o.Description, o.Status, o.Version, d.request.Key[:], d.request.Fingerprint[:], d.body).
		QueryRow(func(row pgx.Row) error { return row.Scan(&o.CreatedAt) })
	if err := s.outbox.Queue(b, requested); err != nil {
		return Order{}, err
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return Order{}, fmt.Errorf("create an order: %w", err)
	}
	o.CreatedAt = o.CreatedAt.UTC()
	o.UpdatedAt = o.CreatedAt
	return o, nil
}

// madeBefore takes the draft's order back and returns the one that its key made, as create returned it then.
func (s *Service) madeBefore(ctx context.Context, tx pgx.Tx, d draft) (Order, error) {
	o := Order{Status: StatusPending, Version: 1}
	var same bool
	// By itself: what is batched with it would be prepared before it, in a transaction that is broken.
	if _, err := tx.Exec(ctx, "ROLLBACK TO SAVEPOINT order_made"); err != nil {
		return Order{}, fmt.Errorf("take an order back: %w", err)
	}
	err := tx.QueryRow(ctx, `SELECT id::text, COALESCE(made_customer_id, customer_id), amount, currency, COALESCE(made_description, description),
			created_at, COALESCE(idem_request = $3, idem_fingerprint = $4)
		FROM orders WHERE tenant_id = $1 AND idem_key = $2`, service.Tenant(ctx), d.request.Key[:], d.request.Fingerprint[:], d.body).
		Scan(&o.ID, &o.CustomerID, &o.Amount, &o.Currency, &o.Description, &o.CreatedAt, &same)
	if err != nil {
		return Order{}, fmt.Errorf("find the order of a key: %w", err)
	}
	if !same {
		return Order{}, errKeyReused
	}
	s.guarded.Inc()
	o.CreatedAt = o.CreatedAt.UTC()
	o.UpdatedAt = o.CreatedAt
	return o, nil
}

// Forget takes expired keys from the orders that they made: each may name another request from then on.
func (s *Service) Forget(ctx context.Context, tx pgx.Tx, keys []idempotency.ExpiredKey) error {
	tenants, hashes := make([]string, len(keys)), make([][]byte, len(keys))
	for i, k := range keys {
		tenants[i], hashes[i] = k.Tenant, k.Key
	}
	_, err := tx.Exec(ctx, `UPDATE orders SET idem_key = NULL, idem_request = NULL, idem_fingerprint = NULL
		FROM unnest($1::text[], $2::bytea[]) AS k (tenant, key) WHERE tenant_id = tenant AND idem_key = key`, tenants, hashes)
	if err != nil {
		return fmt.Errorf("forget the keys of orders: %w", err)
	}
	return nil
}

// violates says whether err is a violation of that constraint.
func violates(err error, constraint string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "23505" && pg.ConstraintName == constraint
}
