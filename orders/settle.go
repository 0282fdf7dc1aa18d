package orders

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/inbox"
)

// GroupHandler settles billing's answers: those to different orders that stand side by side by one statement.
func (*Service) GroupHandler() inbox.GroupHandler {
	return func(ctx context.Context, tx pgx.Tx, es []oncebox.Event) []error {
		errs := make([]error, len(es))
		answers := make([]answer, 0, len(es))
		for i, e := range es {
			a, err := readAnswer(e)
			if a.event = i; err != nil {
				errs[i] = err
				continue
			}
			answers = append(answers, a)
		}
		for rest := answers; len(rest) > 0; {
			n := distinct(rest)
			if err := settle(ctx, tx, rest[:n], errs); err != nil {
				for _, a := range answers {
					errs[a.event] = fmt.Errorf("settle %d orders: %w", n, err)
				}
				return errs
			}
			rest = rest[n:]
		}
		return errs
	}
}

// An answer is what billing says of a charge, to a version of an order.
type answer struct {
	event          int // which of the group's
	tenant         string
	order, charge  uuid.UUID
	status, reason string // that it brings the order to, and why
	version        int64
	amount         int64
	currency       string
}

// readAnswer takes an answer out of its event. Its errors are permanent.
func readAnswer(e oncebox.Event) (answer, error) {
	a := answer{tenant: e.TenantID, version: e.Version}
	var (
		charge string
		err    error
	)
	switch e.Type {
	case events.TypeChargeSucceeded:
		var c events.ChargeSucceeded
		c, err = inbox.Read[events.ChargeSucceeded](e)
		a.status, a.amount, a.currency, charge = StatusPaid, c.Amount, c.Currency, c.ChargeID
	case events.TypeChargeDeclined:
		var c events.ChargeDeclined
		c, err = inbox.Read[events.ChargeDeclined](e)
		a.status, a.reason, a.amount, a.currency, charge = StatusDeclined, c.Reason, c.Amount, c.Currency, c.ChargeID
	case events.TypeChargeRefunded:
		var c events.ChargeRefunded
		c, err = inbox.Read[events.ChargeRefunded](e)
		a.status, a.amount, a.currency, charge = StatusRefunded, c.Amount, c.Currency, c.ChargeID
	default:
		err = fmt.Errorf("%w: %.64q", inbox.ErrUnknownType, e.Type)
	}
	if err != nil {
		return a, err
	}
	if a.order, err = uuid.Parse(e.Key); err != nil {
		return a, inbox.Permanent("malformed", fmt.Errorf("the key %.64q is no order's id", e.Key))
	}
	if a.charge, err = uuid.Parse(charge); err != nil {
		return a, inbox.Permanent("malformed", fmt.Errorf("charge id %.64q is no UUID", charge))
	}
	if e.Version < 1 {
		return a, inbox.Permanent("malformed", fmt.Errorf("an answer to no version of order %s", a.order))
	}
	return a, nil
}

// An orderKey names an order.
type orderKey struct {
	tenant string
	id     uuid.UUID
}

// distinct is how many of the answers, from the first on, are each to another order: one statement changes a row once.
func distinct(answers []answer) int {
	seen := make(map[orderKey]bool, len(answers))
	for i, a := range answers {
		k := orderKey{a.tenant, a.order}
		if seen[k] {
			return i
		}
		seen[k] = true
	}
	return len(answers)
}

// settle takes what billing says of versions of orders, each of another order, unless it has spoken of those or of later ones. An
// answer about another amount than the order's settles nothing: it is for people to look at. The orders are locked in the order of
// their ids, so that two such statements do not wait for each other.
func settle(ctx context.Context, tx pgx.Tx, answers []answer, errs []error) error {
	var (
		n                                      = len(answers)
		tenants, statuses, reasons, currencies = make([]string, n), make([]string, n), make([]string, n), make([]string, n)
		orders, charges                        = make([][16]byte, n), make([][16]byte, n) // as pgx encodes it without a detour by text
		versions, amounts                      = make([]int64, n), make([]int64, n)
	)
	for i, a := range answers {
		tenants[i], orders[i], charges[i], versions[i] = a.tenant, a.order, a.charge, a.version
		statuses[i], reasons[i], amounts[i], currencies[i] = a.status, a.reason, a.amount, a.currency
	}
	const sql = `
		WITH o AS MATERIALIZED (
			SELECT a.*, o.version, o.settled_version, o.amount = a.said AND o.currency = a.of AS same
			FROM unnest($1::text[], $2::uuid[], $3::text[], $4::uuid[], $5::text[], $6::bigint[], $7::bigint[], $8::text[])
				AS a (tenant_id, id, status, charge, reason, answered, said, of)
			JOIN orders AS o ON o.tenant_id = a.tenant_id AND o.id = a.id
			ORDER BY o.tenant_id, o.id FOR NO KEY UPDATE OF o),
		u AS (
			UPDATE orders SET status = o.status, charge_id = COALESCE(charge_id, o.charge), decline_reason = NULLIF(o.reason, ''),
				settled_version = o.answered, version = orders.version + 1, updated_at = clock_timestamp()
			FROM o WHERE orders.tenant_id = o.tenant_id AND orders.id = o.id
				AND o.settled_version < o.answered AND o.version >= o.answered AND o.same)
		SELECT tenant_id, id, version, same FROM o`
	rows, err := tx.Query(ctx, sql, tenants, orders, statuses, charges, reasons, versions, amounts, currencies) //nolint:rowserrcheck // ForEachRow checks it
	if err != nil {
		return err
	}
	type found struct {
		version int64
		same    bool
	}
	var (
		all  = make(map[orderKey]found, n)
		k    orderKey
		each found
	)
	if _, err := pgx.ForEachRow(rows, []any{&k.tenant, &k.id, &each.version, &each.same}, func() error {
		all[k] = each
		return nil
	}); err != nil {
		return err
	}
	for _, a := range answers {
		order, ok := all[orderKey{a.tenant, a.order}]
		switch {
		case !ok:
			errs[a.event] = inbox.Permanent("no_such_order", fmt.Errorf("no order %s", a.order))
		case order.version < a.version: // say, the database was restored to an earlier state
			errs[a.event] = inbox.Permanent("no_such_version", fmt.Errorf("order %s has version %d, and the answer is to %d", a.order, order.version, a.version))
		case !order.same:
			errs[a.event] = inbox.Permanent("other_amount", fmt.Errorf("the answer is about %d %s, and order %s is of another amount", a.amount, a.currency, a.order))
		}
	}
	return nil
}
