package billing

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox/internal/service"
)

type chargesInput struct {
	OrderID string `query:"order_id" required:"true" format:"uuid" doc:"The order whose charges to list."`
}

type chargesOutput struct {
	Body struct {
		Charges []Charge `json:"charges" nullable:"false" doc:"None, or one."`
	}
}

type chargeInput struct {
	ID string `path:"id" format:"uuid"`
}

type chargeOutput struct{ Body Charge }

type ledgerInput struct {
	Account string `query:"account" required:"true" maxLength:"264" pattern:"^(revenue|customer:[A-Za-z0-9._:@+-]+)$" patternDescription:"revenue, or customer: and a customer's id" doc:"The account whose entries to list."`
	Limit   int    `query:"limit" default:"50" minimum:"1" maximum:"200" doc:"Most entries on the page."`
	Cursor  string `query:"cursor" maxLength:"64" doc:"The next_cursor of the page before, of the same account."`
}

// An Entry is one row of the ledger as the API shows it.
type Entry struct {
	ID        int64     `json:"id"`
	ChargeID  string    `json:"charge_id" format:"uuid"`
	Kind      string    `json:"kind" enum:"charge,refund"`
	Account   string    `json:"account"`
	Amount    int64     `json:"amount" doc:"In minor units of the currency; what the account receives is positive."`
	Currency  string    `json:"currency" doc:"ISO 4217."`
	CreatedAt time.Time `json:"created_at"`
}

type ledgerOutput struct {
	Body struct {
		Entries    []Entry `json:"entries" nullable:"false" doc:"The newest first. Entries that commit while one pages may be newer than the first page, or lie between those seen: to follow the account, consume the events."`
		NextCursor string  `json:"next_cursor,omitempty" doc:"For the next page. Missing on the last one."`
	}
}

// Routes adds the service's operations to api.
func (s *Service) Routes(api huma.API) {
	service.Register(api, huma.Operation{
		OperationID: "create-charge", Method: http.MethodPost, Path: "/v1/charges", Tags: []string{"charges"}, DefaultStatus: http.StatusCreated,
		Summary: "Charge a customer without an order",
	}, append([]string{"key-missing", "declined"}, service.KeyProblems...), s.postCharge)
	service.Register(api, huma.Operation{
		OperationID: "list-charges", Method: http.MethodGet, Path: "/v1/charges", Tags: []string{"charges"}, Summary: "List the charges of an order",
	}, nil, s.getCharges)
	service.Register(api, huma.Operation{
		OperationID: "get-charge", Method: http.MethodGet, Path: "/v1/charges/{id}", Tags: []string{"charges"}, Summary: "Look at a charge",
	}, []string{"not-found"}, s.getCharge)
	service.Register(api, huma.Operation{
		OperationID: "list-ledger", Method: http.MethodGet, Path: "/v1/ledger", Tags: []string{"ledger"}, Summary: "List an account's entries, the newest first",
	}, []string{"cursor-invalid"}, s.getLedger)
}

func (s *Service) getCharges(ctx context.Context, in *chargesInput) (*chargesOutput, error) {
	order, err := uuid.Parse(in.OrderID)
	if err != nil || len(in.OrderID) != len(order.String()) { // Parse takes a URN and braces, too
		return nil, service.Problem(http.StatusUnprocessableEntity, "invalid", "order_id is no UUID.")
	}
	charges, err := s.find(ctx, "order_id = $2", order)
	if err != nil {
		return nil, fmt.Errorf("charges of order %s: %w", order, err)
	}
	out := &chargesOutput{}
	out.Body.Charges = charges
	return out, nil
}

func (s *Service) getCharge(ctx context.Context, in *chargeInput) (*chargeOutput, error) {
	none := service.Problem(http.StatusNotFound, "not-found", "There is no such charge.")
	id, err := uuid.Parse(in.ID)
	if err != nil || len(in.ID) != len(id.String()) {
		return nil, none
	}
	charges, err := s.find(ctx, "id = $2", id)
	if err != nil {
		return nil, fmt.Errorf("charge %s: %w", id, err)
	}
	if len(charges) == 0 {
		return nil, none
	}
	return &chargeOutput{charges[0]}, nil
}

// find returns the tenant's charges, none or one, of which the condition on $2 holds.
func (s *Service) find(ctx context.Context, condition string, id uuid.UUID) ([]Charge, error) {
	rows, err := s.pool.Query(ctx, `SELECT id::text, COALESCE(order_id::text, ''), customer_id, amount, currency, status, reason, created_at, refunded_at,
			description, COALESCE(ref_id, '')
		FROM charge WHERE tenant_id = $1 AND `+condition, service.Tenant(ctx), id)
	if err != nil {
		return nil, err
	}
	charges, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Charge])
	for i := range charges {
		charges[i].CreatedAt = charges[i].CreatedAt.UTC()
		if at := charges[i].RefundedAt; at != nil {
			*at = at.UTC()
		}
	}
	return charges, err
}

func (s *Service) getLedger(ctx context.Context, in *ledgerInput) (*ledgerOutput, error) {
	scope, below := "ledger "+in.Account, int64(math.MaxInt64)
	if in.Cursor != "" {
		b, err := service.ReadCursor(scope, in.Cursor, 8)
		if err != nil {
			return nil, err
		}
		below = int64(binary.BigEndian.Uint64(b))
	}
	// In the order of ledger_account.
	rows, err := s.pool.Query(ctx, `SELECT id, charge_id::text, kind, account, amount, currency, created_at FROM ledger
		WHERE tenant_id = $1 AND account = $2 AND id < $3 ORDER BY id DESC LIMIT $4`, service.Tenant(ctx), in.Account, below, in.Limit+1)
	if err != nil {
		return nil, fmt.Errorf("list the ledger: %w", err)
	}
	entries, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Entry])
	if err != nil {
		return nil, fmt.Errorf("list the ledger: %w", err)
	}
	out := &ledgerOutput{}
	if len(entries) > in.Limit {
		entries = entries[:in.Limit]
		last := entries[len(entries)-1].ID
		out.Body.NextCursor = service.Cursor(scope, binary.BigEndian.AppendUint64(nil, uint64(last)))
	}
	for i := range entries {
		entries[i].CreatedAt = entries[i].CreatedAt.UTC()
	}
	out.Body.Entries = entries
	return out, nil
}
