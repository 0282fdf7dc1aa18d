package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
)

// An intent is one thing that a client wants, under one Idempotency-Key however often it has to ask: an order, or a charge without
// one. It is a function of the seed and its number.
type intent struct {
	n        int
	direct   bool // a charge, of billing
	amount   int64
	first    int  // the process that is asked first, 0 or 1
	together bool // both are asked at once
	again    int  // how often it is asked once more when there is an answer
	remove   removal
}

// A removal says whether and when an order is deleted again.
type removal int

const (
	kept            removal = iota
	removedAtOnce           // likely before it is charged
	removedInAWhile         // likely after
)

const currency = "EUR"

// keyPrefix begins each key: no log may have it.
const keyPrefix = "storm-key-"

func intentOf(o options, n int) intent {
	r := rand.New(rand.NewPCG(o.Seed, 1<<32+uint64(n)))
	in := intent{n: n, amount: 100 + r.Int64N(100_000), first: r.IntN(2), direct: r.IntN(10) == 0, together: r.IntN(12) == 0}
	if r.IntN(3) == 0 {
		in.again = 1 + r.IntN(2)
	}
	if remove := r.IntN(30); !in.direct && !o.DropGuards && remove < 2 {
		in.remove = removedAtOnce + removal(remove)
	}
	return in
}

func (in intent) key() string       { return fmt.Sprint(keyPrefix, in.n) }
func (in intent) deleteKey() string { return in.key() + "-delete" }
func (in intent) customer() string  { return fmt.Sprint("customer-", in.n) }

// service is whom it asks, and op what for.
func (in intent) service() string {
	if in.direct {
		return "billing"
	}
	return "orders"
}

const (
	opOrder  = "order"
	opCharge = "charge"
	opDelete = "delete"
)

func (in intent) op() string {
	if in.direct {
		return opCharge
	}
	return opOrder
}

func (in intent) path() string {
	if in.direct {
		return "/v1/charges"
	}
	return "/v1/orders"
}

func (in intent) body() ([]byte, error) {
	return json.Marshal(map[string]any{"customer_id": in.customer(), "amount": in.amount, "currency": currency, "description": "storm"})
}
