package main

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

// A plainOrder is an order as the servers of this program take it: without validation, logs and metrics, which is less than what
// Oncebox's orders does for a request.
type plainOrder struct {
	ID          uuid.UUID `json:"id"`
	CustomerID  string    `json:"customer_id"`
	Amount      int64     `json:"amount"`
	Currency    string    `json:"currency"`
	Description string    `json:"description"`
}

func readOrder(r *http.Request) (plainOrder, error) {
	var o plainOrder
	err := json.NewDecoder(r.Body).Decode(&o)
	o.ID = uuid.Must(uuid.NewV7())
	return o, err
}

func answer(w http.ResponseWriter, o plainOrder, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(o)
}

const insertPlainOrder = `INSERT INTO orders (tenant_id, id, customer_id, amount, currency, description, status, version)
	VALUES ('default', $1, $2, $3, $4, $5, 'pending', 1)`

// requested is the event that asks for the order's charge.
func (o plainOrder) requested() (oncebox.Event, error) {
	e, err := events.New("default", 1, events.ChargeRequested{OrderID: o.ID.String(), CustomerID: o.CustomerID,
		Amount: o.Amount, Currency: o.Currency, Description: o.Description})
	e.ID = uuid.Must(uuid.NewV7()).String()
	return e, err
}

// insertWithEvent writes the order and its event in one round trip.
func (o plainOrder) insertWithEvent(ctx context.Context, tx pgx.Tx, w *outbox.Writer) error {
	e, err := o.requested()
	if err != nil {
		return err
	}
	b := &pgx.Batch{}
	b.Queue(insertPlainOrder, o.ID, o.CustomerID, o.Amount, o.Currency, o.Description)
	if err := w.Queue(b, e); err != nil {
		return err
	}
	return tx.SendBatch(ctx, b).Close()
}

// keyTable holds the Idempotency-Keys of the servers that keep nothing of an answer.
const keyTable = `CREATE TABLE request_key (key text PRIMARY KEY)`

// insertOnce writes the order, and its request's key, by one statement. A key that came before is an error.
func (o plainOrder) insertOnce(ctx context.Context, tx pgx.Tx, key string) error {
	_, err := tx.Exec(ctx, `WITH k AS (INSERT INTO request_key (key) VALUES ($6)) `+insertPlainOrder,
		o.ID, o.CustomerID, o.Amount, o.Currency, o.Description, key)
	return err
}

func preparePlainOrders(ctx context.Context, pool *pgxpool.Pool) error {
	if err := migrations.Up(ctx, pool, migrations.Orders); err != nil {
		return err
	}
	_, err := pool.Exec(ctx, keyTable)
	return err
}

// servePlainOrders takes orders and tells nobody.
func servePlainOrders(ctx context.Context) error {
	return serve(ctx, func(mux *http.ServeMux, pool *pgxpool.Pool) error {
		mux.HandleFunc("POST /v1/orders", ordersRoute(pool, func(context.Context, pgx.Tx, plainOrder) error { return nil }))
		return nil
	})
}

// ordersRoute takes an order, in one transaction with what is added to it.
func ordersRoute(pool *pgxpool.Pool, add func(context.Context, pgx.Tx, plainOrder) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		o, err := readOrder(r)
		if err == nil {
			err = pgx.BeginFunc(r.Context(), pool, func(tx pgx.Tx) error {
				if err := o.insertOnce(r.Context(), tx, r.Header.Get("Idempotency-Key")); err != nil {
					return err
				}
				return add(r.Context(), tx, o)
			})
		}
		answer(w, o, err)
	}
}
