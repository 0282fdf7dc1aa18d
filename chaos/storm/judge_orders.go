package main

import (
	"context"
	"fmt"
)

// An order is a row of orders'.
type order struct {
	ID, Key, Customer, Status, Charge, DeletedAs string
	Amount, Version, Settled                     int64
}

// A charge is a row of billing's.
type charge struct {
	ID, Order, Key, Customer, Status string
	Amount                           int64
}

// books are the rows of both, by their ids.
type books struct {
	orders  map[string]order
	charges map[string]charge
	ofOrder map[string]charge
	money   int64 // that should have been taken, and not given back
}

func readBooks(ctx context.Context, w *world) (*books, map[string][]charge, error) {
	orders, err := query[order](ctx, w.ordersDB, `SELECT id::text, COALESCE(encode(idem_key, 'hex'), ''), customer_id, status, COALESCE(charge_id::text, ''),
		COALESCE(deleted_status, ''), amount, version, settled_version FROM orders`)
	if err != nil {
		return nil, nil, fmt.Errorf("read the orders: %w", err)
	}
	charges, err := query[charge](ctx, w.billingDB, `SELECT id::text, COALESCE(order_id::text, ''), COALESCE(encode(idem_key, 'hex'), ''), customer_id, status, amount
		FROM charge`)
	if err != nil {
		return nil, nil, fmt.Errorf("read the charges: %w", err)
	}
	b := &books{orders: make(map[string]order, len(orders)), charges: make(map[string]charge, len(charges)), ofOrder: make(map[string]charge, len(charges))}
	for _, o := range orders {
		b.orders[o.ID] = o
	}
	of := make(map[string][]charge, len(charges)) // by order, or by key where there is none
	for _, c := range charges {
		b.charges[c.ID] = c
		b.ofOrder[c.Order] = c
		name := c.Order
		if name == "" {
			name = c.Key
		}
		of[name] = append(of[name], c)
	}
	return b, of, nil
}

// judgeOrders holds orders and charges to what the clients asked for and were told.
func (v *verdict) judgeOrders(ctx context.Context, o options, w *world, told told) (*books, error) {
	b, charges, err := readBooks(ctx, w)
	if err != nil {
		return nil, err
	}
	v.orders = len(b.orders)
	byKey := make(map[string][]order, len(b.orders))
	for _, o := range b.orders {
		byKey[o.Key] = append(byKey[o.Key], o)
	}
	for n := range o.Orders {
		in := intentOf(o, n)
		key := hashOf(in.key())
		if in.direct {
			v.judgeDirect(in, told, charges[key], b)
			delete(charges, key)
			continue
		}
		made := byKey[key]
		delete(byKey, key)
		if len(made) != 1 {
			v.fail("intent %d has %d orders", n, len(made))
			v.count(len(made))
			continue
		}
		v.judgeOrder(in, told, made[0], charges[made[0].ID], b)
		delete(charges, made[0].ID)
	}
	for _, made := range byKey {
		v.orphans += len(made)
		v.fail("order %s is nobody's", made[0].ID)
	}
	for name, c := range charges {
		v.orphans += len(c)
		v.fail("charge %s is of %q, which is no order", c[0].ID, name)
	}
	return b, nil
}

// count counts what should be there once.
func (v *verdict) count(n int) {
	if n == 0 {
		v.lost++
	}
	v.duplicates += max(n-1, 0)
}

func (v *verdict) judgeOrder(in intent, told told, o order, of []charge, b *books) {
	v.check(o.Amount == in.amount && o.Customer == in.customer(), "order %s is %d of %s, and %d of %s was asked for", o.ID, o.Amount, o.Customer, in.amount, in.customer())
	answer := told[request{in.n, opOrder}]
	v.check(answer.ID == o.ID && answer.Location == "/v1/orders/"+o.ID, "intent %d was told of order %q at %q, and has %s", in.n, answer.ID, answer.Location, o.ID)
	v.count(len(of))
	if len(of) != 1 {
		v.fail("order %s has %d charges", o.ID, len(of))
		return
	}
	c := of[0]
	if c.Status != "cancelled" {
		v.charged++
	}
	v.check(c.Amount == o.Amount, "order %s of %d is charged %d", o.ID, o.Amount, c.Amount)
	_, deleted := told[request{in.n, opDelete}]
	v.check(deleted == (in.remove != kept) && deleted == (o.DeletedAs != ""), "order %s: deleted as %q, the client wanted it: %t, and was told: %t", o.ID, o.DeletedAs, in.remove != kept, deleted)
	// Each change of an order raises its version, and each answer of billing is to one of them.
	type state struct {
		status, charge   string
		version, settled int64
	}
	is := state{o.Status, c.Status, o.Version, o.Settled}
	switch o.DeletedAs {
	case "":
		b.money += o.Amount
		v.check(is == state{"paid", "succeeded", 2, 1} && o.Charge == c.ID, "order %s is %+v with the charge %q, its charge is %s", o.ID, is, o.Charge, c.ID)
	case "cancelled": // before billing had answered
		v.check(is == state{"cancelled", "cancelled", 2, 2} || is == state{"cancelled", "refunded", 2, 2}, "cancelled order %s is %+v", o.ID, is)
	case "paid":
		v.check(is == state{"refunded", "refunded", 4, 3}, "order %s, deleted when it was paid, is %+v", o.ID, is)
	default:
		v.fail("order %s was deleted as %s", o.ID, o.DeletedAs)
	}
}

// judgeDirect judges a charge that is of no order.
func (v *verdict) judgeDirect(in intent, told told, of []charge, b *books) {
	v.count(len(of))
	if len(of) != 1 {
		v.fail("intent %d has %d charges", in.n, len(of))
		return
	}
	c := of[0]
	b.money += in.amount
	v.charged++
	v.orders++
	answer := told[request{in.n, opCharge}]
	v.check(answer.ID == c.ID && answer.Location == "/v1/charges/"+c.ID, "intent %d was told of charge %q at %q, and has %s", in.n, answer.ID, answer.Location, c.ID)
	v.check(c.Order == "" && c.Status == "succeeded" && c.Amount == in.amount && c.Customer == in.customer(), "charge %s of intent %d is %+v", c.ID, in.n, c)
}

// judgeLedger holds the ledger to the charges: two rows for each move, which sum to zero, and all of it to the money of the orders.
func (v *verdict) judgeLedger(ctx context.Context, w *world, b *books) error {
	type moved struct {
		Charge                     string
		Rows, Sum, Revenue, Passed int64
	}
	ledger, err := query[moved](ctx, w.billingDB, `SELECT charge_id::text, count(*), sum(amount)::bigint, COALESCE(sum(amount) FILTER (WHERE account = 'revenue'), 0)::bigint,
		COALESCE(sum(amount) FILTER (WHERE account = 'revenue' AND amount > 0), 0)::bigint FROM ledger GROUP BY 1`)
	if err != nil {
		return fmt.Errorf("read the ledger: %w", err)
	}
	byCharge, total, revenue := make(map[string]moved, len(ledger)), int64(0), int64(0)
	for _, m := range ledger {
		byCharge[m.Charge] = m
		total += m.Sum
		revenue += m.Revenue
	}
	v.check(total == 0, "the ledger sums to %d", total)
	v.check(revenue == b.money, "billing holds %d, and the orders and charges that stand are of %d", revenue, b.money)
	for id, c := range b.charges {
		want := moved{Charge: id}
		switch c.Status {
		case "succeeded":
			want = moved{id, 2, 0, c.Amount, c.Amount}
		case "refunded":
			want = moved{id, 4, 0, 0, c.Amount}
		}
		got := byCharge[id]
		got.Charge = id
		v.check(got == want, "the ledger of charge %s, %s: %+v, want %+v", id, c.Status, got, want)
		delete(byCharge, id)
	}
	for id := range byCharge {
		v.fail("the ledger has rows of %s, which is no charge", id)
	}
	return nil
}
