package billing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/internal/service"
)

type directInput struct {
	Key  string `header:"Idempotency-Key" doc:"Names this charge for the client: a retry with the same key gets the first answer, and nothing is charged a second time. Without it the ref_id is the key."`
	Body struct {
		CustomerID  string `json:"customer_id" minLength:"1" maxLength:"255" pattern:"^[A-Za-z0-9._:@+-]+$" patternDescription:"letters, digits and ._:@+-"`
		Amount      int64  `json:"amount" minimum:"1" maximum:"1000000000000" doc:"In minor units of the currency, such as cents."`
		Currency    string `json:"currency" pattern:"^[A-Z]{3}$" patternDescription:"three capital letters" doc:"ISO 4217."`
		Description string `json:"description" required:"false" maxLength:"1024" pattern:"^\\P{Cc}*$" patternDescription:"text without control characters"`
		RefID       string `json:"ref_id" required:"false" maxLength:"255" pattern:"^[!#-\\[\\]-~]*$" patternDescription:"printable ASCII without spaces, quotes and backslashes" doc:"What the client calls this charge: its key, unless there is an Idempotency-Key, which must be the same then. It stays this charge's for good."`
	}
}

type directOutput struct {
	Location string `header:"Location"`
	Replayed string `header:"Idempotent-Replayed" doc:"true for the answer to an earlier request under this key."`
	Body     Charge
}

// Keys are the policies of the operations that take an Idempotency-Key, by method. A second POST finds the first one's charge by its
// unique key.
func (*Service) Keys() map[string]idempotency.Policy {
	return map[string]idempotency.Policy{http.MethodPost: {Required: true, Guarded: true, BodyKey: refID}}
}

func refID(body []byte) string {
	var in struct {
		RefID string `json:"ref_id"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return "" // the operation says what is wrong with it
	}
	return in.RefID
}

// Forget takes expired keys from the charges that they made. A ref_id stays.
func (*Service) Forget(ctx context.Context, tx pgx.Tx, keys []idempotency.ExpiredKey) error {
	tenants, hashes := make([]string, len(keys)), make([][]byte, len(keys))
	for i, k := range keys {
		tenants[i], hashes[i] = k.Tenant, k.Key
	}
	_, err := tx.Exec(ctx, `UPDATE charge SET idem_key = NULL, idem_request = NULL
		FROM unnest($1::text[], $2::bytea[]) AS k (tenant, key) WHERE tenant_id = tenant AND idem_key = key AND ref_id IS NULL`, tenants, hashes)
	if err != nil {
		return fmt.Errorf("forget the keys of charges: %w", err)
	}
	return nil
}

var errNoKey = errors.New("the operation is not behind the keys")

func (s *Service) postCharge(ctx context.Context, in *directInput) (*directOutput, error) {
	req, ok := idempotency.RequestOf(ctx)
	if !ok {
		return nil, errNoKey
	}
	if in.Body.Amount > s.cfg.ChargeLimit {
		return nil, service.Problem(http.StatusPaymentRequired, "declined", "The amount is above the limit.")
	}
	c := Charge{CustomerID: in.Body.CustomerID, Amount: in.Body.Amount, Currency: in.Body.Currency, Status: StatusSucceeded,
		Description: in.Body.Description, RefID: in.Body.RefID}
	var again bool
	charge := func(tx pgx.Tx) (err error) {
		again, err = chargeOnce(ctx, tx, req, &c)
		return err
	}
	var err error
	if tx, ok := idempotency.Tx(ctx); ok {
		err = charge(tx)
	} else {
		// READ COMMITTED whatever the database's default: the charge that a conflict is with may have been committed since.
		err = pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, charge)
	}
	if err != nil {
		return nil, err
	}
	out := &directOutput{Location: "/v1/charges/" + c.ID, Body: c}
	if again {
		out.Replayed = "true"
	}
	return out, nil
}

// chargeOnce writes a direct charge and its ledger. The store of keys lets a request through once; should it have forgotten one, the
// charge's own unique key stops it here, and c is the charge that was made then.
func chargeOnce(ctx context.Context, tx pgx.Tx, req idempotency.Request, c *Charge) (again bool, err error) {
	id, err := uuid.NewV7()
	if err != nil {
		return false, fmt.Errorf("make an id: %w", err)
	}
	tenant := service.Tenant(ctx)
	err = tx.QueryRow(ctx, `WITH c AS (
			INSERT INTO charge (tenant_id, id, customer_id, amount, currency, status, description, ref_id, idem_key, idem_request)
			VALUES ($1, $2, $3, $4, $5, $6, $7, NULLIF($8, ''), $9, $10)
			ON CONFLICT (tenant_id, idem_key) WHERE idem_key IS NOT NULL DO NOTHING RETURNING *),
		l AS (`+chargeLedger+`)
		SELECT id::text, created_at FROM c`,
		tenant, id, c.CustomerID, c.Amount, c.Currency, c.Status, c.Description, c.RefID, req.Key[:], req.Fingerprint[:]).
		Scan(&c.ID, &c.CreatedAt)
	same := true
	if again = errors.Is(err, pgx.ErrNoRows); again { // nothing else of the request can have changed if it is the same one
		err = tx.QueryRow(ctx, `SELECT id::text, created_at, idem_request = $3 FROM charge WHERE tenant_id = $1 AND idem_key = $2`,
			tenant, req.Key[:], req.Fingerprint[:]).Scan(&c.ID, &c.CreatedAt, &same)
	}
	switch {
	case err != nil:
		return again, fmt.Errorf("charge: %w", err)
	case !same:
		return again, service.Problem(http.StatusUnprocessableEntity, "key-reused", "This key came with another request before.")
	}
	c.CreatedAt = c.CreatedAt.UTC()
	return again, nil
}
