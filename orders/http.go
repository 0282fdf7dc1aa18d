package orders

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/internal/service"
)

// Keyed is an operation that the same key does not do twice. What stands around the operations reads the header.
type Keyed struct {
	Key string `header:"Idempotency-Key" doc:"Names this request for the client: a retry with the same key gets the first answer, and nothing is done a second time."`
}

type createInput struct {
	Keyed
	RawBody []byte
	Body    struct {
		CustomerID  string `json:"customer_id" minLength:"1" maxLength:"255" pattern:"^[A-Za-z0-9._:@+-]+$" patternDescription:"letters, digits and ._:@+-"`
		Amount      int64  `json:"amount" minimum:"1" maximum:"1000000000000" doc:"In minor units of the currency, such as cents."`
		Currency    string `json:"currency" pattern:"^[A-Z]{3}$" patternDescription:"three capital letters" doc:"ISO 4217."`
		Description string `json:"description" required:"false" maxLength:"1024" pattern:"^\\P{Cc}*$" patternDescription:"text without control characters"`
	}
}

// ByID is what names one order.
type ByID struct {
	ID string `path:"id" format:"uuid"`
}

// parse refuses the other forms that uuid.Parse takes: a URN, and braces.
func (in ByID) parse() (uuid.UUID, error) {
	id, err := uuid.Parse(in.ID)
	if err != nil || len(in.ID) != len(id.String()) {
		return uuid.UUID{}, errNotFound
	}
	return id, nil
}

type getInput struct {
	ByID
	Conditions
}

type updateInput struct {
	ByID
	Keyed
	Conditions
	Body struct {
		CustomerID  string `json:"customer_id" minLength:"1" maxLength:"255" pattern:"^[A-Za-z0-9._:@+-]+$" patternDescription:"letters, digits and ._:@+-" doc:"Whom the order is for. A charge that was asked for stays with whom it was asked of."`
		Description string `json:"description" maxLength:"1024" pattern:"^\\P{Cc}*$" patternDescription:"text without control characters"`
	}
}

type deleteInput struct {
	ByID
	Keyed
	Conditions
}

type listInput struct {
	Limit       int    `query:"limit" default:"50" minimum:"1" maximum:"200" doc:"Most orders on the page."`
	Cursor      string `query:"cursor" maxLength:"64" doc:"The next_cursor of the page before, with the same status and show_deleted."`
	Status      string `query:"status" enum:"pending,paid,declined,cancelled,refunded" doc:"Only the orders of this status."`
	ShowDeleted bool   `query:"show_deleted" doc:"The deleted orders too."`
}

type createOutput struct {
	Location string `header:"Location"`
	Replayed string `header:"Idempotent-Replayed" doc:"true for the answer to an earlier request under this key."`
	ETag     string `header:"ETag"`
	Body     Order
}

type orderOutput struct {
	ETag string `header:"ETag" doc:"The order's version in quotes."`
	Body Order
}

type changeOutput struct {
	Replayed string `header:"Idempotent-Replayed" doc:"true for the answer to an earlier request under this key."`
	ETag     string `header:"ETag" doc:"The order's version in quotes."`
	Body     Order
}

type listOutput struct {
	Body struct {
		Orders     []Order `json:"orders" nullable:"false" doc:"The newest first."`
		NextCursor string  `json:"next_cursor,omitempty" doc:"For the next page. Missing on the last one."`
	}
}

// Routes adds the service's operations to api.
func (s *Service) Routes(api huma.API) {
	service.Register(api, huma.Operation{
		OperationID: "create-order", Method: http.MethodPost, Path: "/v1/orders", Tags: []string{"orders"}, DefaultStatus: http.StatusCreated,
		Summary: "Make an order and have it charged",
	}, append([]string{"key-missing"}, service.KeyProblems...), s.postOrder)
	service.Register(api, huma.Operation{
		OperationID: "list-orders", Method: http.MethodGet, Path: "/v1/orders", Tags: []string{"orders"}, Summary: "List orders, the newest first",
	}, []string{"cursor-invalid"}, s.listOrders)
	service.Register(api, huma.Operation{
		OperationID: "get-order", Method: http.MethodGet, Path: "/v1/orders/{id}", Tags: []string{"orders"}, Summary: "Look at an order",
		Responses: map[string]*huma.Response{"304": {Description: "The order has an ETag of If-None-Match."}},
	}, []string{"not-found", "precondition-failed"}, s.getOrder)
	service.Register(api, huma.Operation{
		OperationID: "update-order", Method: http.MethodPut, Path: "/v1/orders/{id}", Tags: []string{"orders"},
		Summary:     "Set whom an order is for and what it is",
		Description: "Needs If-Match with the ETag that the change is meant for. Setting what is set already changes nothing.",
	}, append([]string{"not-found", "deleted", "precondition-failed", "precondition-required"}, service.KeyProblems...), s.putOrder)
	service.Register(api, huma.Operation{
		OperationID: "delete-order", Method: http.MethodDelete, Path: "/v1/orders/{id}", Tags: []string{"orders"},
		Summary:     "Cancel an order, or ask for its refund, and delete it",
		Description: "The order can be looked at until purge_at. Deleting it again is answered as the first time.",
	}, append([]string{"not-found", "precondition-failed"}, service.KeyProblems...), s.deleteOrder)

	paths := api.OpenAPI().Paths
	service.RequireHeader(paths["/v1/orders"].Post, "Idempotency-Key")
	service.RequireHeader(paths["/v1/orders/{id}"].Put, "If-Match")
}

func (s *Service) postOrder(ctx context.Context, in *createInput) (*createOutput, error) {
	req, ok := idempotency.RequestOf(ctx)
	if !ok {
		return nil, errNoKey
	}
	body := sha256.Sum256(in.RawBody)
	o, again, err := s.createOnce(ctx, draft{customerID: in.Body.CustomerID, amount: in.Body.Amount, currency: in.Body.Currency,
		description: in.Body.Description, request: req, body: body[:]})
	if err != nil {
		return nil, problem(err)
	}
	out := &createOutput{Location: "/v1/orders/" + o.ID, ETag: o.etag(), Body: o}
	if again {
		out.Replayed = "true"
	}
	return out, nil
}

func (s *Service) getOrder(ctx context.Context, in *getInput) (*orderOutput, error) {
	id, err := in.parse()
	if err != nil {
		return nil, problem(err)
	}
	r, err := find(ctx, s.pool, id, "")
	switch {
	case err != nil:
		return nil, problem(err)
	case len(in.match) > 0 && !in.match.strongly(r.etag()):
		return nil, problem(errStale)
	case in.noneMatch.weakly(r.etag()):
		return nil, huma.ErrorWithHeaders(huma.Status304NotModified(), http.Header{"Etag": {r.etag()}})
	}
	return &orderOutput{ETag: r.etag(), Body: r.Order}, nil
}

func (s *Service) putOrder(ctx context.Context, in *updateInput) (*changeOutput, error) {
	id, err := in.parse()
	if err != nil {
		return nil, problem(err)
	}
	var o Order
	err = s.inTx(ctx, func(tx pgx.Tx) error {
		o, err = s.update(ctx, tx, id, change{customerID: in.Body.CustomerID, description: in.Body.Description}, in.Conditions)
		return err
	})
	if err != nil {
		return nil, problem(err)
	}
	return &changeOutput{ETag: o.etag(), Body: o}, nil
}

func (s *Service) deleteOrder(ctx context.Context, in *deleteInput) (*changeOutput, error) {
	id, err := in.parse()
	if err != nil {
		return nil, problem(err)
	}
	var o Order
	err = s.inTx(ctx, func(tx pgx.Tx) error {
		o, err = s.remove(ctx, tx, id, in.Conditions)
		return err
	})
	if err != nil {
		return nil, problem(err)
	}
	return &changeOutput{ETag: o.etag(), Body: o}, nil
}

func (s *Service) listOrders(ctx context.Context, in *listInput) (*listOutput, error) {
	scope := fmt.Sprintf("orders %s %t", in.Status, in.ShowDeleted)
	p := page{below: uuid.Max, status: in.Status, deleted: in.ShowDeleted, limit: in.Limit}
	if in.Cursor != "" {
		below, err := service.ReadCursor(scope, in.Cursor, len(p.below))
		if err != nil {
			return nil, err
		}
		p.below = uuid.UUID(below)
	}
	orders, more, err := s.list(ctx, p)
	if err != nil {
		return nil, err
	}
	out := &listOutput{}
	out.Body.Orders = orders
	if more {
		last := uuid.MustParse(orders[len(orders)-1].ID)
		out.Body.NextCursor = service.Cursor(scope, last[:])
	}
	return out, nil
}

// problem is how the API tells of err.
func problem(err error) error {
	switch {
	case errors.Is(err, errNotFound):
		return service.Problem(http.StatusNotFound, "not-found", "There is no such order.")
	case errors.Is(err, errKeyReused):
		return service.Problem(http.StatusUnprocessableEntity, "key-reused", "This Idempotency-Key came with another request before.")
	case errors.Is(err, errDeleted):
		return service.Problem(http.StatusConflict, "deleted", "The order is deleted.")
	case errors.Is(err, errStale):
		return service.Problem(http.StatusPreconditionFailed, "precondition-failed", "The order is not as the condition wants it. Look at it again.")
	case errors.Is(err, errUnconditional):
		return service.Problem(http.StatusPreconditionRequired, "precondition-required", "This request needs an If-Match header with the order's ETag.")
	}
	return err
}
