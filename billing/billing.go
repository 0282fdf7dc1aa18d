// Package billing charges orders, and gives the money back when an order is cancelled. Each message is handled in the inbox's
// transaction: the charge, its two rows in the ledger and the answer in the outbox commit together with the message's id, or not
// at all.
//
// A client may also ask for a charge directly, over HTTP: behind an Idempotency-Key, whose row, with the answer, is in the
// transaction of the charge and its ledger.
//
// Messages may come in another order than they were sent. A cancellation that comes before the request for the charge leaves a
// tombstone in the charge's place, and the request finds it.
package billing

import (
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/outbox"
)

// Name is the service's name: the source of its events and its consumer group.
const Name = "billing"

// The states of a charge.
const (
	StatusPending   = "pending" // the payment provider is being asked
	StatusSucceeded = "succeeded"
	StatusDeclined  = "declined"
	StatusRefunded  = "refunded"
	StatusCancelled = "cancelled" // a tombstone: nothing was charged, and nothing will be
)

// ClassAlreadyCharged is the class of the dead letter that the last guard, UNIQUE (order_id) on charge, leaves: the inbox let a
// second charge of one order through. It should never be seen.
const ClassAlreadyCharged = "already_charged"

// A Charge is one as the API shows it.
type Charge struct {
	ID         string     `json:"id" format:"uuid"`
	OrderID    string     `json:"order_id,omitempty" format:"uuid" doc:"Missing where a client asked for the charge directly."`
	CustomerID string     `json:"customer_id"`
	Amount     int64      `json:"amount" doc:"In minor units of the currency, such as cents."`
	Currency   string     `json:"currency" doc:"ISO 4217."`
	Status     string     `json:"status" enum:"pending,succeeded,declined,refunded,cancelled" doc:"pending: the payment provider is being asked; cancelled: the order was cancelled before anything was charged."`
	Reason     string     `json:"reason,omitempty" doc:"Why it was declined."`
	CreatedAt  time.Time  `json:"created_at"`
	RefundedAt *time.Time `json:"refunded_at,omitempty"`

	Description string `json:"description,omitempty"`
	RefID       string `json:"ref_id,omitempty" doc:"What the client that asked for the charge directly calls it."`
}

// Config configures a [Service].
type Config struct {
	// ChargeLimit is the greatest amount that is charged, in minor units; more is declined. Required.
	ChargeLimit int64
}

// A Service is the billing room. It is safe for concurrent use.
type Service struct {
	pool   *pgxpool.Pool
	outbox *outbox.Writer
	cfg    Config
}

// New returns a Service on the database of pool, answering by w.
func New(pool *pgxpool.Pool, w *outbox.Writer, cfg Config) (*Service, error) {
	if cfg.ChargeLimit < 1 {
		return nil, fmt.Errorf("billing: the charge limit is %d, and must be at least 1", cfg.ChargeLimit)
	}
	return &Service{pool: pool, outbox: w, cfg: cfg}, nil
}
