package page

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/orders"
)

// A journey is what is known of one order: in both databases and, as long as the page has watched, in both streams.
type journey struct {
	Order string `json:"order"`
	Steps []step `json:"steps"`
}

// A step is one station that the order or one of its messages has come to.
type step struct {
	At    time.Time `json:"at"`
	Where string    `json:"where"`
	What  string    `json:"what"`
	Event string    `json:"event,omitempty"`
	Bad   bool      `json:"bad,omitempty"`
}

// errNoJourney is a name that nothing has.
var errNoJourney = errors.New("no order, event or Idempotency-Key of that name is known here")

// journey follows the order that q names: by its own id, by the id of one of its events, or by its Idempotency-Key.
func (p *Page) journey(ctx context.Context, q string) (journey, error) {
	order, err := p.orderOf(ctx, q)
	if err != nil {
		return journey{}, err
	}
	j := journey{Order: order}
	for _, look := range []func(context.Context, string) ([]step, error){p.orderSteps, p.outboxSteps, p.inboxSteps, p.letterSteps, p.chargeSteps} {
		steps, err := look(ctx, order)
		if err != nil {
			return journey{}, err
		}
		j.Steps = append(j.Steps, steps...)
	}
	p.mu.Lock()
	for _, s := range j.Steps {
		if seen := p.passed.of[s.Event]; s.Event != "" && seen.first > 0 && (s.Where == outboxOf(orders.Name) || s.Where == outboxOf(billing.Name)) {
			what := fmt.Sprintf("stored as message %d", seen.first)
			if seen.copies > 0 {
				what += fmt.Sprintf(", and %d copies after it", seen.copies)
			}
			j.Steps = append(j.Steps, step{At: seen.at, Where: "JetStream", What: what, Event: s.Event})
		}
	}
	p.mu.Unlock()
	slices.SortStableFunc(j.Steps, func(a, b step) int { return cmp.Compare(a.At.UnixMicro(), b.At.UnixMicro()) })
	if len(j.Steps) == 0 {
		return journey{}, errNoJourney
	}
	return j, nil
}

func outboxOf(service string) string { return "outbox of " + service }

// orderOf finds the order. Both services key their events by it.
func (p *Page) orderOf(ctx context.Context, q string) (string, error) {
	id, err := uuid.Parse(q)
	if err != nil {
		id = uuid.Nil
	}
	hash := sha256.Sum256([]byte(q))
	for _, ask := range []struct {
		db  *pgxpool.Pool
		sql string
		arg any
	}{
		{p.lab.Orders, "SELECT id::text FROM orders WHERE id = $1", id},
		{p.lab.Orders, "SELECT key FROM oncebox.outbox WHERE id = $1", id},
		{p.lab.Billing, "SELECT key FROM oncebox.outbox WHERE id = $1", id},
		{p.lab.Billing, "SELECT key FROM oncebox.dead_letter WHERE id = $1", id},
		{p.lab.Orders, "SELECT id::text FROM orders WHERE idem_key = $1", hash[:]},
	} {
		var order string
		switch err := ask.db.QueryRow(ctx, ask.sql+" LIMIT 1", ask.arg).Scan(&order); {
		case err == nil:
			return order, nil
		case !errors.Is(err, pgx.ErrNoRows):
			return "", fmt.Errorf("look for %.80q: %w", q, err)
		}
	}
	return "", errNoJourney
}

// steps are a query's rows of (at, what, event id, bad).
func steps(ctx context.Context, db *pgxpool.Pool, where, sql string, args ...any) ([]step, error) {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("look into %s: %w", where, err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (step, error) {
		s := step{Where: where}
		return s, row.Scan(&s.At, &s.What, &s.Event, &s.Bad)
	})
	if err != nil {
		return nil, fmt.Errorf("look into %s: %w", where, err)
	}
	return found, nil
}

func (p *Page) orderSteps(ctx context.Context, order string) ([]step, error) {
	return steps(ctx, p.lab.Orders, orders.Name, `
		SELECT created_at, 'order committed', '', false FROM orders WHERE id::text = $1
		UNION ALL SELECT updated_at, 'order is ' || status || ', version ' || version, '', status = 'declined' FROM orders WHERE id::text = $1 AND status <> 'pending'
		UNION ALL SELECT deleted_at, 'order deleted', '', false FROM orders WHERE id::text = $1 AND deleted_at IS NOT NULL`, order)
}

// both asks the same of both services' databases.
func (p *Page) both(ctx context.Context, where func(service string) string, sql string, args ...any) ([]step, error) {
	var all []step
	for service, db := range map[string]*pgxpool.Pool{orders.Name: p.lab.Orders, billing.Name: p.lab.Billing} {
		found, err := steps(ctx, db, where(service), sql, args...)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

func (p *Page) outboxSteps(ctx context.Context, order string) ([]step, error) {
	return p.both(ctx, outboxOf, `
		SELECT time, topic || ' committed as event ' || seq, id::text, false FROM oncebox.outbox WHERE key = $1
		UNION ALL SELECT parked_at, 'parked: ' || reason || CASE outcome WHEN '' THEN '' ELSE ' (' || outcome || ')' END, id::text, true
			FROM oncebox.outbox_parked WHERE key = $1`, order)
}

// inboxSteps finds the rows by the ids of the events that both outboxes hold.
func (p *Page) inboxSteps(ctx context.Context, order string) ([]step, error) {
	var all []step
	for _, way := range []struct {
		from, to *pgxpool.Pool
		name     string
	}{{p.lab.Orders, p.lab.Billing, billing.Name}, {p.lab.Billing, p.lab.Orders, orders.Name}} {
		rows, err := way.from.Query(ctx, "SELECT id FROM oncebox.outbox WHERE key = $1", order)
		if err != nil {
			return nil, fmt.Errorf("look for the events of %s: %w", order, err)
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
		if err != nil {
			return nil, fmt.Errorf("look for the events of %s: %w", order, err)
		}
		found, err := steps(ctx, way.to, "inbox of "+way.name, `
			SELECT at, CASE state WHEN 'done' THEN 'handled, once' WHEN 'dead' THEN 'given up' ELSE state END
				|| CASE WHEN crashes > 0 THEN ' after ' || crashes || ' attempts that never ended' ELSE '' END, id::text, state = 'dead'
			FROM oncebox.inbox WHERE consumer = $1 AND id = ANY ($2)`, way.name, ids)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

func (p *Page) letterSteps(ctx context.Context, order string) ([]step, error) {
	return p.both(ctx, func(service string) string { return "dead letters of " + service }, `
		SELECT first_seen, 'letter ' || n || ', ' || class || ': ' || reason, id::text, true FROM oncebox.dead_letter WHERE key = $1
		UNION ALL SELECT last_seen, 'letter ' || n || ' ' || state, id::text, false FROM oncebox.dead_letter WHERE key = $1 AND state <> 'dead'`, order)
}

func (p *Page) chargeSteps(ctx context.Context, order string) ([]step, error) {
	return steps(ctx, p.lab.Billing, billing.Name, `
		SELECT created_at, 'charge ' || status || ': ' || to_char(amount / 100.0, 'FM999999990.00') || ' ' || currency, '', status = 'declined'
			FROM charge WHERE order_id::text = $1
		UNION ALL SELECT refunded_at, 'refunded', '', false FROM charge WHERE order_id::text = $1 AND refunded_at IS NOT NULL`, order)
}
