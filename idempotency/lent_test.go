package idempotency_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox/idempotency"
)

func TestTheTransactionIsOnlyLent(t *testing.T) {
	t.Parallel()
	pool, _ := database(t)
	keys, err := idempotency.New(postgres(t, pool, idempotency.PostgresConfig{}), quiet)
	must(t, err)
	route, err := keys.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		tx, _ := idempotency.Tx(ctx)
		if _, err := effect(ctx, pool); err != nil {
			t.Error(err)
		}
		switch r.URL.Path {
		case "/ends": // by the interface, which is refused
			if tx.Commit(ctx) == nil || tx.Rollback(ctx) == nil {
				t.Error("the transaction could be ended")
			}
		case "/commits": // past it
			if _, err := tx.Exec(ctx, "COMMIT"); err != nil {
				t.Error(err)
			}
		case "/breaks":
			if _, err := tx.Exec(ctx, "SELECT 1/0"); err == nil {
				t.Error("no error")
			}
		case "/refuses":
			if _, err := tx.Exec(ctx, "SELECT 1/0"); err == nil {
				t.Error("no error")
			}
			w.WriteHeader(http.StatusConflict)
			return
		case "/nests":
			if err := pgx.BeginFunc(ctx, tx, func(pgx.Tx) error { return io.EOF }); !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			err := pgx.BeginFunc(ctx, tx, func(nested pgx.Tx) error {
				los := nested.LargeObjects()
				_, err := los.Create(ctx, 0)
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
		w.WriteHeader(http.StatusCreated)
	}), idempotency.Policy{})
	must(t, err)
	s := httptest.NewServer(route)
	t.Cleanup(s.Close)
	for _, c := range []struct {
		path             string
		status           int
		effects, records int
	}{
		{"/ends", 201, 1, 1},
		{"/nests", 201, 2, 2},
		{"/refuses", 409, 2, 3}, // the statement that failed is taken back, the refusal kept
		{"/breaks", 503, 2, 3},  // a success that Postgres knows to be none
		{"/commits", 503, 3, 3}, // its effect stays, which is why it must not; the answer does not claim a record
	} {
		if got := mustPost(t, s.URL+c.path, c.path); got.status != c.status {
			t.Errorf("%s: got %+v, want %d", c.path, got, c.status)
		}
		wantRows(t, pool, c.effects, c.records)
	}
}
