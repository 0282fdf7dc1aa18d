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
	tenant    string
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
	c, err := asked(e)
	if err == nil && c.req.Amount > s.cfg.ChargeLimit {
		return c.declined(e, "the amount is above the limit")
	}
	return c, err
}

// asked is a claim that succeeds, whatever the limit.
func asked(e oncebox.Event) (claim, error) {
	req, err := inbox.Read[events.ChargeRequested](e)
	if err != nil {
		return claim{}, err
	}
	order, err := check(e, req.OrderID, req.CustomerID, req.Amount, req.Currency)
	if err != nil {
		return claim{}, err
	}
	c := claim{tenant: e.TenantID, id: uuid.MustParse(oncebox.DerivedID(e, Name, "charge", 0)), order: order, req: req, status: StatusSucceeded}
	c.answer, err = events.Answer(e, Name, events.ChargeSucceeded{OrderID: req.OrderID, ChargeID: c.id.String(), Amount: req.Amount, Currency: req.Currency})
	return c, err
}

// Each writes the ledger's rows of those charges of c, a part of the statement, that have come to this status.
var (
	chargeLedger = ledger("charge", StatusSucceeded, -1)
	refundLedger = ledger("refund", StatusRefunded, 1)
)

// ledger is the statement for a kind of movement, which gives the customer sign times the amount.
func ledger(kind, status string, sign int) string {
	return fmt.Sprintf(`
	INSERT INTO ledger (tenant_id, charge_id, kind, account, amount, currency)
	SELECT c.tenant_id, c.id, '%s', a.account, a.sign * c.amount, c.currency
	FROM c, LATERAL (VALUES ('customer:' || c.customer_id, %d), ('revenue', %d)) AS a (account, sign)
	WHERE c.status = '%s'`, kind, sign, -sign, status)
}

// chargeAll charges what es ask for, and answers. Of orders that are charged or cancelled already it writes nothing.
func (s *Service) chargeAll(ctx context.Context, tx pgx.Tx, es []oncebox.Event) []error {
	errs := make([]error, len(es))
	claims := make([]claim, 0, len(es))
	asked := make([]int, 0, len(es)) // the events of claims
	for i, e := range es {
		c, err := s.claim(e)
		if err != nil {
			errs[i] = err
			continue
		}
		claims, asked = append(claims, c), append(asked, i)
	}
	if len(claims) == 0 {
		return errs
	}
	charged, err := charge(ctx, tx, claims)
	var why []error
	if err == nil {
		why, err = s.answer(ctx, tx, claims, charged)
	}
	for j, err := range why {
		errs[asked[j]] = err
	}
	if err != nil {
		err = fmt.Errorf("charge %d orders: %w", len(claims), err)
		for _, i := range asked {
			errs[i] = err
		}
	}
	return errs
}

// charge writes the charges and their ledger, and returns the ids of the charges: the orders of the others have one.
func charge(ctx context.Context, tx pgx.Tx, claims []claim) (map[uuid.UUID]bool, error) {
	var (
		n                                                 = len(claims)
		tenants, customers, currencies, statuses, reasons = make([]string, n), make([]string, n), make([]string, n), make([]string, n), make([]string, n)
		ids, orders                                       = make([][16]byte, n), make([][16]byte, n) // as pgx encodes it without a detour by text
		amounts                                           = make([]int64, n)
	)
	for i, c := range claims {
		tenants[i], ids[i], orders[i], customers[i] = c.tenant, c.id, c.order, c.req.CustomerID
		amounts[i], currencies[i], statuses[i], reasons[i] = c.req.Amount, c.req.Currency, c.status, c.reason
	}
	rows, err := tx.Query(ctx, `WITH c AS (
			INSERT INTO charge (tenant_id, id, order_id, customer_id, amount, currency, status, reason)
			SELECT * FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::text[])
			ON CONFLICT DO NOTHING RETURNING *),
		l AS (`+chargeLedger+`)
		SELECT id FROM c`,
		tenants, ids, orders, customers, amounts, currencies, statuses, reasons)
	if err != nil {
		return nil, err
	}
	written, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	charged := make(map[uuid.UUID]bool, n)
	for _, id := range written {
		charged[id] = true
	}
	return charged, err
}

// answer writes the answers of the claims that were charged, in a round trip of its own: with the charges, those of a group in which
// one is not charged had to be taken back and written again. It says of each claim why it was not charged: nil if its
// cancellation came first, which is well, or if it was; another charge of its order should not be there.
func (s *Service) answer(ctx context.Context, tx pgx.Tx, claims []claim, charged map[uuid.UUID]bool) ([]error, error) {
	type key struct {
		tenant string
		order  uuid.UUID
	}
	var (
		tenants []string
		orders  []uuid.UUID
		answers = make([]oncebox.Event, 0, len(claims))
	)
	for _, c := range claims {
		if charged[c.id] {
			answers = append(answers, c.answer)
			continue
		}
		tenants, orders = append(tenants, c.tenant), append(orders, c.order)
	}
	b := &pgx.Batch{}
	if err := s.outbox.Queue(b, answers...); err != nil {
		return nil, err
	}
	statuses := make(map[key]string, len(orders))
	if len(orders) > 0 {
		b.Queue(`SELECT tenant_id, order_id, status FROM charge WHERE (order_id, tenant_id) IN (SELECT * FROM unnest($1::uuid[], $2::text[]))`, orders, tenants).
			Query(func(rows pgx.Rows) error {
				var (
					k      key
					status string
				)
				_, err := pgx.ForEachRow(rows, []any{&k.tenant, &k.order, &status}, func() error {
					statuses[k] = status
					return nil
				})
				return err
			})
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, err
	}
	why := make([]error, len(claims))
	for i, c := range claims {
		switch status := statuses[key{c.tenant, c.order}]; {
		case charged[c.id] || status == StatusCancelled:
		case status == "":
			return nil, fmt.Errorf("order %s was not charged, and has no charge", c.order)
		default:
			why[i] = inbox.Permanent(ClassAlreadyCharged, fmt.Errorf("order %s is charged already", c.order))
		}
	}
	return why, nil
}
