package idempotency_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/idempotency"
)

// charges serves POST /charges on a plain ServeMux. A request that is sent again gets the first one's answer.
func charges(pool *pgxpool.Pool) (http.Handler, error) {
	store, err := idempotency.NewPostgres(pool, idempotency.PostgresConfig{})
	if err != nil {
		return nil, err
	}
	keys, err := idempotency.New(store, idempotency.Config{Scope: idempotency.SingleTenant})
	if err != nil {
		return nil, err
	}
	charge := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tx, _ := idempotency.Tx(r.Context()) // committed together with the answer
		var id int
		err := tx.QueryRow(r.Context(), "INSERT INTO charge DEFAULT VALUES RETURNING id").Scan(&id)
		if err != nil {
			http.Error(w, "try again", http.StatusInternalServerError) // rolls back
			return
		}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "charge %d\n", id)
	})
	once, err := keys.Wrap(charge, idempotency.Policy{Required: true})
	mux := http.NewServeMux()
	mux.Handle("POST /charges", once)
	return mux, err
}

func Example() {
	pool, drop := exampleDatabase()
	defer drop()
	handler, err := charges(pool)
	if err != nil {
		fmt.Println(err)
		return
	}
	server := httptest.NewServer(handler)
	defer server.Close()
	for range 2 {
		req, err := http.NewRequest(http.MethodPost, server.URL+"/charges", strings.NewReader("$100"))
		if err != nil {
			fmt.Println(err)
			return
		}
		req.Header.Set("Idempotency-Key", `"order-7"`)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%s, replayed: %q: ", res.Status, res.Header.Get("Idempotent-Replayed"))
		_, _ = io.Copy(os.Stdout, res.Body)
		res.Body.Close()
	}
	// Output:
	// 201 Created, replayed: "": charge 1
	// 201 Created, replayed: "true": charge 1
}
