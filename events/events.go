// Package events is the contract of the two services: the events that they exchange, and the streams that carry them. The key
// of each event is the order's id, its version the order's.
//
// Amounts are in minor units (cents, yen) of an ISO 4217 currency.
package events

import (
	"cmp"
	"encoding/json"
	"fmt"

	"github.com/oncebox/oncebox"
)

// The streams, each with the subjects that its owner publishes. A subject is an event's type.
const (
	OrdersStream    = "ORDERS"
	OrdersSubjects  = "orders.>"
	BillingStream   = "BILLING"
	BillingSubjects = "billing.>"
)

// The types of events. A breaking change is a new one.
const (
	TypeChargeRequested = "orders.charge.requested.v1"
	TypeOrderCancelled  = "orders.order.cancelled.v1"
	TypeChargeSucceeded = "billing.charge.succeeded.v1"
	TypeChargeDeclined  = "billing.charge.declined.v1"
	TypeChargeRefunded  = "billing.charge.refunded.v1"
)

// A Payload is the data of one type of event.
type Payload interface {
	Type() string
	// Order is the id of the order that it is about.
	Order() string
}

// ChargeRequested asks billing to charge the customer of a new order.
type ChargeRequested struct {
	OrderID     string `json:"order_id"`
	CustomerID  string `json:"customer_id"`
	Amount      int64  `json:"amount"`
	Currency    string `json:"currency"`
	Description string `json:"description"`
}

// OrderCancelled says that an order is not wanted any more.
type OrderCancelled struct {
	OrderID    string `json:"order_id"`
	CustomerID string `json:"customer_id"`
	Amount     int64  `json:"amount"`
	Currency   string `json:"currency"`
}

// ChargeSucceeded answers ChargeRequested: the money is taken.
type ChargeSucceeded struct {
	OrderID  string `json:"order_id"`
	ChargeID string `json:"charge_id"`
	Amount   int64  `json:"amount"`
	Currency string `json:"currency"`
}

// ChargeDeclined answers ChargeRequested: no money is taken.
type ChargeDeclined struct {
	OrderID  string `json:"order_id"`
	ChargeID string `json:"charge_id"`
	Amount   int64  `json:"amount"`
	Currency string `json:"currency"`
	Reason   string `json:"reason"`
}

// ChargeRefunded answers OrderCancelled: the money is given back.
type ChargeRefunded struct {
	OrderID  string `json:"order_id"`
	ChargeID string `json:"charge_id"`
	Amount   int64  `json:"amount"`
	Currency string `json:"currency"`
}

func (ChargeRequested) Type() string { return TypeChargeRequested }
func (OrderCancelled) Type() string  { return TypeOrderCancelled }
func (ChargeSucceeded) Type() string { return TypeChargeSucceeded }
func (ChargeDeclined) Type() string  { return TypeChargeDeclined }
func (ChargeRefunded) Type() string  { return TypeChargeRefunded }

func (p ChargeRequested) Order() string { return p.OrderID }
func (p OrderCancelled) Order() string  { return p.OrderID }
func (p ChargeSucceeded) Order() string { return p.OrderID }
func (p ChargeDeclined) Order() string  { return p.OrderID }
func (p ChargeRefunded) Order() string  { return p.OrderID }

// New returns the event of p for an outbox, which gives it its id.
func New(tenantID string, version int64, p Payload) (oncebox.Event, error) {
	data, err := json.Marshal(p)
	if err != nil {
		return oncebox.Event{}, fmt.Errorf("marshal %s: %w", p.Type(), err)
	}
	return oncebox.Event{Type: p.Type(), Key: p.Order(), Version: version, TenantID: tenantID, Data: data}, nil
}

// Answer returns the event by which consumer answers cause with p. Its id is a function of both, so that answering again, after
// a crash or a restore, answers the same; its version is cause's.
func Answer(cause oncebox.Event, consumer string, p Payload) (oncebox.Event, error) {
	e, err := New(cause.TenantID, cause.Version, p)
	if err != nil {
		return oncebox.Event{}, err
	}
	e.ID = oncebox.DerivedID(cause, consumer, p.Type(), 0)
	e.CausationID = cause.ID
	e.CorrelationID = cmp.Or(cause.CorrelationID, cause.ID)
	e.TraceParent = cause.TraceParent
	return e, nil
}
