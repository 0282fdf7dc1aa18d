package billing

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/inbox"
)

// Handler charges what orders asks for, and refunds what it cancels.
func (s *Service) Handler() inbox.Handler {
	return inbox.ByType(map[string]inbox.Handler{
		events.TypeChargeRequested: func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
			return s.chargeAll(ctx, tx, []oncebox.Event{e})[0]
		},
		events.TypeOrderCancelled: s.cancel,
	})
}

// GroupHandler does what Handler does, for many events at once: requests that stand side by side are charged by one statement.
func (s *Service) GroupHandler() inbox.GroupHandler {
	each := inbox.Each(s.Handler())
	return func(ctx context.Context, tx pgx.Tx, es []oncebox.Event) []error {
		errs := make([]error, 0, len(es))
		for rest := es; len(rest) > 0; rest = es[len(errs):] {
			handle, n := s.chargeAll, slices.IndexFunc(rest, func(e oncebox.Event) bool { return e.Type != events.TypeChargeRequested })
			switch n {
			case -1:
				n = len(rest)
			case 0:
				handle, n = each, 1
			}
			part := handle(ctx, tx, rest[:n])
			if part == nil {
				part = make([]error, n)
			}
			errs = append(errs, part...)
		}
		return errs
	}
}

var currencyCode = regexp.MustCompile(`^[A-Z]{3}$`)

// check refuses what no repetition can mend, and returns the order's id.
func check(e oncebox.Event, orderID, customerID string, amount int64, currency string) (uuid.UUID, error) {
	order, err := uuid.Parse(orderID)
	switch {
	case err != nil:
		return order, inbox.Permanent("malformed", fmt.Errorf("order id %.64q is no UUID", orderID))
	case e.Key != orderID:
		return order, inbox.Permanent("malformed", fmt.Errorf("the key %.64q is not the order %s", e.Key, order))
	case amount < 1 || !currencyCode.MatchString(currency) || customerID == "" || strings.ContainsRune(customerID, 0):
		return order, inbox.Permanent("malformed", fmt.Errorf("order %s: amount %d, currency %.8q, customer %.64q", order, amount, currency, customerID))
	}
	return order, nil
}

// A claim is a charge that is asked for, with its answer.
type claim struct {
	id, order uuid.UUID
	req       events.ChargeRequested
	status    string
	reason    string
	answer    oncebox.Event
}

// declined is the claim with the answer that it is not met.
func (c claim) declined(e oncebox.Event, why string) (claim, error) {
	var err error
	c.status, c.reason = StatusDeclined, why
	c.answer, err = events.Answer(e, Name, events.ChargeDeclined{OrderID: c.req.OrderID, ChargeID: c.id.String(), Amount: c.req.Amount,
		Currency: c.req.Currency, Reason: why})
	return c, err
}

// claim reads what e asks for. Its errors are permanent: a request that Postgres would not take is refused here.
func (s *Service) claim(e oncebox.Event) (claim, error) {
	req, err := inbox.Read[events.ChargeRequested](e)
	if err != nil {
		return claim{}, err
	}
	order, err := check(e, req.OrderID, req.CustomerID, req.Amount, req.Currency)
	if err != nil {
		return claim{}, err
	}
	c := claim{id: uuid.MustParse(oncebox.DerivedID(e, Name, "charge", 0)), order: order, req: req, status: StatusSucceeded}
	if req.Amount > s.cfg.ChargeLimit {
		return c.declined(e, "the amount is above the limit")
	}
	c.answer, err = events.Answer(e, Name, events.ChargeSucceeded{OrderID: req.OrderID, ChargeID: c.id.String(), Amount: req.Amount, Currency: req.Currency})
	return c, err
}

// chargeLedger writes the ledger's rows of those of c that succeeded.
const chargeLedger = `
	INSERT INTO ledger (tenant_id, charge_id, kind, account, amount, currency)
	SELECT c.tenant_id, c.id, 'charge', a.account, a.sign * c.amount, c.currency
	FROM c, LATERAL (VALUES ('customer:' || c.customer_id, -1), ('revenue', 1)) AS a (account, sign)
	WHERE c.status = 'succeeded'`

// chargeAll writes the charges, their ledger and the answers in one round trip.
func (s *Service) chargeAll(ctx context.Context, tx pgx.Tx, es []oncebox.Event) []error {
	var (
		n                                                 = len(es)
		errs                                              = make([]error, n)
		asked                                             = make([]int, 0, n) // the events whose claim stands
		tenants, customers, currencies, statuses, reasons = make([]string, 0, n), make([]string, 0, n), make([]string, 0, n), make([]string, 0, n), make([]string, 0, n)
		ids, orders                                       = make([]uuid.UUID, 0, n), make([]uuid.UUID, 0, n)
		amounts                                           = make([]int64, 0, n)
		answers                                           = make([]oncebox.Event, 0, n)
	)
	for i, e := range es {
		c, err := s.claim(e)
		if err != nil {
			errs[i] = err
			continue
		}
		asked = append(asked, i)
		tenants, ids, orders, customers = append(tenants, e.TenantID), append(ids, c.id), append(orders, c.order), append(customers, c.req.CustomerID)
		amounts, currencies, statuses, reasons = append(amounts, c.req.Amount), append(currencies, c.req.Currency), append(statuses, c.status), append(reasons, c.reason)
		answers = append(answers, c.answer)
	}
	if len(asked) == 0 {
		return errs
	}
	b := &pgx.Batch{}
	if n == 1 {
		b.Queue("SAVEPOINT charge") // see uncharged
	}
	var charged int
	b.Queue(`WITH c AS (
			INSERT INTO charge (tenant_id, id, order_id, customer_id, amount, currency, status, reason)
			SELECT * FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::text[])
			ON CONFLICT DO NOTHING RETURNING *),
		l AS (`+chargeLedger+`)
		SELECT count(*) FROM c`,
		tenants, ids, orders, customers, amounts, currencies, statuses, reasons).
		QueryRow(func(row pgx.Row) error { return row.Scan(&charged) })
	err := s.outbox.Queue(b, answers...)
	if err == nil {
		err = tx.SendBatch(ctx, b).Close()
	}
	switch {
	case err != nil:
		err = fmt.Errorf("charge %d orders: %w", len(asked), err)
	case charged == len(asked):
		return errs
	case n > 1: // the answers are written for all: each is to run by itself
		err = fmt.Errorf("of %d orders %d are cancelled or charged already", len(asked), len(asked)-charged)
	default:
		err = uncharged(ctx, tx, tenants[0], orders[0])
	}
	for _, i := range asked {
		errs[i] = err
	}
	return errs
}
