package page

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/orders"
)

const (
	lookPause = 250 * time.Millisecond
	// lookLimit is how long a server may take to answer before the page says that it does not.
	lookLimit = time.Second
)

// A sight is what was found in the databases and in JetStream when last asked.
type sight struct {
	accounts map[int]account

	Outbox    int `json:"outbox"`  // rows of this run in the outbox of orders
	Stream    int `json:"stream"`  // messages in its stream, of all runs
	Waiting   int `json:"waiting"` // of them not yet handed to billing
	InHand    int `json:"inHand"`  // handed to billing and not acknowledged
	Again     int `json:"again"`   // handed out again, as JetStream counts
	Stopped   int `json:"stopped"` // redeliveries that the inbox stopped since billing was started
	Inbox     int `json:"inbox"`   // message ids that billing's inbox remembers
	Dead      int `json:"dead"`    // dead letters of this run
	held      int // of them orders that were not charged yet, and may be
	poisoned  int // of this run, whatever became of them
	NaiveLeft int `json:"naiveLeft"` // messages before the naive consumer
	Answers   int `json:"answers"`   // messages before orders, from billing

	AnswersInHand int `json:"-"` // of them handed to it and not acknowledged

	DatabasesAnswer bool `json:"databasesAnswer"`
	NATSAnswers     bool `json:"natsAnswers"`

	looks int // of this run
}

// look asks everybody and puts what it finds into the run of now. Who does not answer keeps the numbers of before, marked.
func (p *Page) look(ctx context.Context) {
	p.mu.Lock()
	r := p.run
	seen := r.seen
	p.mu.Unlock()

	// JetStream first: what it has handed on by then the databases know when they are asked. Each has its own time: one that
	// does not answer takes none of the next one's.
	seen.NATSAnswers = within(ctx, func(ctx context.Context) error { return p.lookAtStreams(ctx, &seen) }) == nil
	seen.DatabasesAnswer = within(ctx, func(ctx context.Context) (err error) {
		accounts, err := p.lookAtDatabases(ctx, r, &seen)
		if err == nil {
			seen.accounts = accounts
		}
		return err
	}) == nil
	seen.looks++

	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run != r {
		return
	}
	for _, d := range p.desks {
		if d.Name == billing.Name {
			seen.Stopped = d.Stopped
		}
	}
	for n, a := range seen.accounts {
		if in := r.intents[n-1]; in.Account != a {
			in.Account, in.version = a, p.version+1
		}
	}
	r.seen = seen
	p.touch()
}

func within(ctx context.Context, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	return ask(ctx)
}

// lookAtStreams begins with the stream: its messages are then before each consumer, or were.
func (p *Page) lookAtStreams(ctx context.Context, s *sight) error {
	stream, err := p.lab.JetStream.Stream(ctx, events.OrdersStream)
	if err != nil {
		return err
	}
	s.Stream = int(stream.CachedInfo().State.Msgs)
	for _, c := range []struct {
		stream, durable string
		note            func(*jetstream.ConsumerInfo)
	}{
		{events.OrdersStream, billing.Name, func(i *jetstream.ConsumerInfo) {
			s.Waiting, s.InHand = int(i.NumPending), i.NumAckPending
			s.Again = int(i.Delivered.Consumer) - int(i.Delivered.Stream)
		}},
		{events.OrdersStream, p.lab.NaiveDurable, func(i *jetstream.ConsumerInfo) { s.NaiveLeft = int(i.NumPending) + i.NumAckPending }},
		{events.BillingStream, orders.Name, func(i *jetstream.ConsumerInfo) {
			s.Answers, s.AnswersInHand = int(i.NumPending)+i.NumAckPending, i.NumAckPending
		}},
	} {
		consumer, err := p.lab.JetStream.Consumer(ctx, c.stream, c.durable)
		if errors.Is(err, jetstream.ErrConsumerNotFound) { // deleted, and not made again yet: everything is before it
			c.note(&jetstream.ConsumerInfo{NumPending: uint64(s.Stream)})
			continue
		}
		if err != nil {
			return fmt.Errorf("look at consumer %s: %w", c.durable, err)
		}
		c.note(consumer.CachedInfo())
	}
	return nil
}

// A row is a customer's sums.
type row struct {
	Customer string
	Count    int
	Paid     int
	Money    int64
}

// Sums of a run's customers, one query for each database. The tests ask the same on connections of their own.
const (
	ordersSQL = `SELECT customer_id, count(*), count(*) FILTER (WHERE status = 'paid'), sum(amount)::bigint
		FROM orders WHERE starts_with(customer_id, $1) GROUP BY 1`
	chargesSQL = `SELECT customer_id, count(*), 0, sum(amount)::bigint
		FROM charge WHERE status = 'succeeded' AND starts_with(customer_id, $1) GROUP BY 1`
	naiveSQL  = `SELECT customer_id, count(*), 0, sum(amount)::bigint FROM naive_charge WHERE starts_with(customer_id, $1) GROUP BY 1`
	outboxSQL = `SELECT count(*) FROM oncebox.outbox WHERE position(convert_to($1, 'UTF8') IN payload) > 0`
)

func (p *Page) lookAtDatabases(ctx context.Context, r *run, s *sight) (map[int]account, error) {
	accounts := map[int]account{}
	for _, from := range []struct {
		db  *pgxpool.Pool
		sql string
		add func(*account, row)
	}{
		{p.lab.Orders, ordersSQL, func(a *account, r row) { a.Orders, a.Paid = r.Count, r.Paid }},
		{p.lab.Billing, chargesSQL, func(a *account, r row) { a.Charges, a.Money = r.Count, r.Money }},
		{p.lab.Naive, naiveSQL, func(a *account, r row) { a.Naive, a.NaiveMoney = r.Count, r.Money }},
	} {
		found, err := from.db.Query(ctx, from.sql, r.customers())
		if err != nil {
			return nil, err
		}
		rows, err := pgx.CollectRows(found, pgx.RowToStructByPos[row])
		if err != nil {
			return nil, err
		}
		p.mu.Lock()
		for _, found := range rows {
			if n := r.number(found.Customer); n > 0 {
				a := accounts[n]
				from.add(&a, found)
				accounts[n] = a
			}
		}
		p.mu.Unlock()
	}
	err := p.lab.Orders.QueryRow(ctx, outboxSQL, r.customers()).Scan(&s.Outbox)
	if err != nil {
		return nil, err
	}
	err = p.lab.Billing.QueryRow(ctx, `SELECT (SELECT count(*) FROM oncebox.inbox WHERE consumer = $1),
			count(*) FILTER (WHERE state = 'dead'), count(*) FILTER (WHERE state = 'dead' AND class = 'crashed'), count(*) FILTER (WHERE class = 'malformed')
		FROM oncebox.dead_letter WHERE position(convert_to($2, 'UTF8') IN payload) > 0`, billing.Name, r.customers()).
		Scan(&s.Inbox, &s.Dead, &s.held, &s.poisoned)
	return accounts, err
}

// Sums are a run's totals, counted from what the databases hold of each intent. Money is in cents.
type Sums struct {
	Intents     int   `json:"intents"`
	Meant       int64 `json:"meant"`
	Answered    int   `json:"answered"`
	Unknown     int   `json:"unknown"` // tried for the last time, and no answer
	Orders      int   `json:"orders"`
	Paid        int   `json:"paid"`
	Charges     int   `json:"charges"`
	Money       int64 `json:"money"`
	Twice       int   `json:"twice"` // charges beyond one for each intent
	Excess      int64 `json:"excess"`
	Naive       int   `json:"naive"`
	NaiveMoney  int64 `json:"naiveMoney"`
	NaiveTwice  int   `json:"naiveTwice"`
	NaiveExcess int64 `json:"naiveExcess"`
	Running     int   `json:"running"` // intents that are still tried
	Held        int   `json:"held"`    // orders whose charge waits as a dead letter
}

func (r *run) sums() Sums {
	s := Sums{Intents: len(r.intents), Meant: int64(len(r.intents)) * Price, Held: r.seen.held}
	for _, in := range r.intents {
		switch {
		case !in.Done:
			s.Running++
		case in.Answered:
			s.Answered++
		default:
			s.Unknown++
		}
		a := in.Account
		s.Orders += a.Orders
		s.Paid += a.Paid
		s.Charges += a.Charges
		s.Money += a.Money
		s.Naive += a.Naive
		s.Twice += max(0, a.Charges-1)
		s.NaiveTwice += max(0, a.Naive-1)
		s.Excess += max(0, a.Money-Price)
		s.NaiveExcess += max(0, a.NaiveMoney-Price)
		s.NaiveMoney += a.NaiveMoney
	}
	return s
}

// unsettled says what is still on its way, "" if all has come to rest.
func (r *run) unsettled() string {
	s := r.sums()
	for _, left := range []struct {
		n    int
		what string
	}{
		{s.Running, "intents are tried"}, {s.Orders - s.Charges - s.Held, "orders are not charged"}, {s.Orders - s.Paid - s.Held, "orders are pending"},
		{r.seen.Waiting + r.seen.InHand, "messages are before billing"}, {r.seen.NaiveLeft, "messages are before the naive consumer"},
		{r.poisons - r.seen.poisoned, "poison messages are on their way"},
	} {
		if left.n > 0 {
			return fmt.Sprintf("%d %s", left.n, left.what)
		}
	}
	if !r.seen.NATSAnswers || !r.seen.DatabasesAnswer {
		return "a server does not answer"
	}
	return ""
}

// restLimit is how long nothing may move while something is waited for.
const restLimit = time.Minute

// settle waits until everything has come to rest, seen twice, and returns the sums.
func (p *Page) settle(ctx context.Context) (Sums, error) {
	quiet, first, state, moved := 0, -1, "", time.Now()
	for {
		p.mu.Lock()
		r, changed := p.run, p.changed
		left, sums, looks := r.unsettled(), r.sums(), r.seen.looks
		p.mu.Unlock()
		switch {
		case left != "":
			quiet, first = 0, -1
		case first < 0:
			first = looks
		default:
			quiet = looks - first
		}
		if quiet >= 3 { // looks that were begun after the first quiet one
			return sums, nil
		}
		if now := fmt.Sprint(left, sums); now != state {
			state, moved = now, time.Now()
		}
		if time.Since(moved) > restLimit {
			return sums, fmt.Errorf("nothing moves for %s: %s", restLimit, left)
		}
		select {
		case <-ctx.Done():
			return sums, context.Cause(ctx)
		case <-changed:
		}
	}
}
