// Package orders takes orders over HTTP and follows what becomes of their charges. An order and the event that asks for its
// charge are written in one transaction; billing's answers are settled through the inbox.
//
// # The life of an order
//
//	pending ── charge succeeded ──> paid ── deleted, then refunded ──> refunded
//	        ── charge declined ───> declined
//	        ── deleted ───────────> cancelled
//
// Billing's answers come late, twice, or in the other order. Each carries the version of the order that it answers, and the
// order keeps the highest that has had its say: an answer to an earlier version changes nothing. A cancellation has the last word
// on its own version and all before it.
package orders

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/internal/crash"
	"github.com/oncebox/oncebox/internal/service"
	"github.com/oncebox/oncebox/outbox"
)

// Name is the service's name: the source of its events and its consumer group.
const Name = "orders"

// The states of an order.
const (
	StatusPending   = "pending"
	StatusPaid      = "paid"
	StatusDeclined  = "declined"
	StatusCancelled = "cancelled"
	StatusRefunded  = "refunded"
)

// An Order is one as the API shows it.
type Order struct {
	ID            string     `json:"id" format:"uuid"`
	CustomerID    string     `json:"customer_id"`
	Amount        int64      `json:"amount" doc:"In minor units of the currency, such as cents."`
	Currency      string     `json:"currency" doc:"ISO 4217."`
	Description   string     `json:"description"`
	Status        string     `json:"status" enum:"pending,paid,declined,cancelled,refunded"`
	Version       int64      `json:"version" doc:"Raised by each change. The ETag is this number in quotes."`
	ChargeID      string     `json:"charge_id,omitempty" format:"uuid"`
	DeclineReason string     `json:"decline_reason,omitempty"`
	CreatedAt     time.Time  `json:"created_at"`
	UpdatedAt     time.Time  `json:"updated_at"`
	DeletedAt     *time.Time `json:"deleted_at,omitempty" doc:"When it was deleted."`
	PurgeAt       *time.Time `json:"purge_at,omitempty" doc:"From when on a deleted order may be gone for good."`
}

func (o Order) etag() string { return strconv.Quote(strconv.FormatInt(o.Version, 10)) }

// Config configures a [Service].
type Config struct {
	// Wake is called after each commit of the service's own that leaves an event in the outbox. It must not block.
	Wake func()
	// Registerer gets the service's metrics.
	Registerer prometheus.Registerer
	// KeepDeleted is how long a deleted order can still be looked at. Default 30 days.
	KeepDeleted time.Duration
}

// A Service is the orders room. It is safe for concurrent use.
type Service struct {
	pool        *pgxpool.Pool
	outbox      *outbox.Writer
	wake        func()
	keepDeleted time.Duration
	guarded     prometheus.Counter
}

// New returns a Service on the database of pool, writing its events by w.
func New(pool *pgxpool.Pool, w *outbox.Writer, cfg Config) *Service {
	if cfg.KeepDeleted == 0 {
		cfg.KeepDeleted = 30 * 24 * time.Hour
	}
	s := &Service{pool: pool, outbox: w, wake: cfg.Wake, keepDeleted: cfg.KeepDeleted,
		guarded: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "orders", Name: "guarded_total",
			Help: "Requests that the store of keys did not know any more, stopped by the key of the order that they had made."})}
	cfg.Registerer.MustRegister(s.guarded)
	return s
}

// Keys are the policies of the operations that take an Idempotency-Key, by method.
//
// A second POST finds the first one's order by its unique key, and a second DELETE the order as it was deleted. A second PUT
// might undo what somebody else has changed since, so that nothing but the store guards it.
func (*Service) Keys() map[string]idempotency.Policy {
	return map[string]idempotency.Policy{
		http.MethodPost:   {Required: true, Guarded: true},
		http.MethodPut:    {},
		http.MethodDelete: {Guarded: true},
	}
}

var (
	errNotFound  = errors.New("no such order")
	errKeyReused = errors.New("the key came with another request before")
	errDeleted   = errors.New("the order is deleted")
	errStale     = errors.New("the order has another version")

	errUnconditional = errors.New("the change is meant for no version")
	errNoKey         = errors.New("the operation is not behind the keys")
)

// A row is an order with what the API does not show of it.
type row struct {
	Order
	deletedStatus  string
	deletedVersion int64
}

const columns = `id::text, customer_id, amount, currency, description, status, version, COALESCE(charge_id::text, ''),
	COALESCE(decline_reason, ''), created_at, updated_at, deleted_at, purge_at, COALESCE(deleted_status, ''), COALESCE(deleted_version, 0)`

func scan(from pgx.CollectableRow) (row, error) {
	var r row
	err := from.Scan(&r.ID, &r.CustomerID, &r.Amount, &r.Currency, &r.Description, &r.Status, &r.Version, &r.ChargeID,
		&r.DeclineReason, &r.CreatedAt, &r.UpdatedAt, &r.DeletedAt, &r.PurgeAt, &r.deletedStatus, &r.deletedVersion)
	for _, at := range []*time.Time{&r.CreatedAt, &r.UpdatedAt, r.DeletedAt, r.PurgeAt} {
		if at != nil {
			*at = at.UTC()
		}
	}
	return r, err
}

// querier is the pool, or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// find returns errNotFound for an id that the tenant does not have. lock is "", or "FOR UPDATE" in a transaction.
func find(ctx context.Context, db querier, id uuid.UUID, lock string) (row, error) {
	rows, err := db.Query(ctx, `SELECT `+columns+` FROM orders WHERE tenant_id = $1 AND id = $2 `+lock, service.Tenant(ctx), id)
	if err != nil {
		return row{}, fmt.Errorf("find order %s: %w", id, err)
	}
	r, err := pgx.CollectExactlyOneRow(rows, scan)
	if errors.Is(err, pgx.ErrNoRows) {
		return row{}, errNotFound
	}
	if err != nil {
		return row{}, fmt.Errorf("find order %s: %w", id, err)
	}
	return r, nil
}

// inTx runs f in the transaction in which the answer will be kept. Without one f has its own, and the relay is woken after it.
func (s *Service) inTx(ctx context.Context, f func(pgx.Tx) error) error {
	if tx, ok := idempotency.Tx(ctx); ok {
		return f(tx) // an error is answered by a status with which nothing of it is committed
	}
	// READ COMMITTED whatever the database's default: what madeBefore looks for may have been committed while create waited.
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if err := f(tx); err != nil {
			return err
		}
		return crash.Before("orders-commit")
	})
	if err = crash.After("orders-commit", err); err != nil {
		return err
	}
	s.wake()
	return nil
}
