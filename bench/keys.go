package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox/bench/measure"
	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/internal/trial"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

const (
	firstRun   = "first run of a key"
	replay     = "replay"
	withoutKey = "without a key"
)

// keyClients is how many clients send requests at once.
const keyClients = 32

// keys is row 11.
func (b *bench) keys() measure.Row {
	const duplicates = "200 duplicates at once"
	name := fmt.Sprintf("%d clients", keyClients)
	return measure.Row{Number: 11, Work: "POST with an Idempotency-Key", Notes: []string{
		"A server process with one handler, which inserts an order and its event; at one address behind the middleware with the Postgres store, at the other without it.",
		replay + ": the requests of keys whose answers are kept. " + duplicates + ": 200 clients send one new key at the same moment, again and again, while another one asks for /healthz. " +
			"Each is answered as the first was, or 409 while that one runs; one order is made of each key.",
	}, Cases: []measure.Case{
		{Name: name, Contenders: []measure.Contender{
			{Name: firstRun, Role: measure.Ours, Run: b.keyed("/keyed", func(int64) string { return uuid.NewString() })},
			{Name: replay, Role: measure.Ours, Run: b.keyed("/keyed", func(n int64) string { return fmt.Sprintf("replayed-%d", n%100) })},
			{Name: withoutKey, Role: measure.Limit, Run: b.keyed("/plain", func(int64) string { return uuid.NewString() })},
		}},
		{Name: duplicates, Contenders: []measure.Contender{{Name: firstRun, Role: measure.Ours, Run: b.duplicates}}},
	}, Aims: []measure.Aim{
		measure.Of("with a key, of the same without", name, "requests/s", firstRun, withoutKey, 0.65),
		measure.Of("replay × first run", name, "requests/s", replay, firstRun, 3),
		{What: "/healthz meanwhile, p99 ms", Over: measure.Ref{Case: duplicates, Contender: firstRun, Metric: "healthz p99 ms"}, Want: 10, AtMost: true},
	}}
}

// keyServer runs the server on a database of its own while use does what it does.
func (b *bench) keyServer(ctx context.Context, use func(*database, *process) (measure.Figures, error)) (_ measure.Figures, err error) {
	db, err := b.database(ctx, "keys", func(ctx context.Context, pool *pgxpool.Pool) error {
		return migrations.Up(ctx, pool, migrations.Outbox, migrations.Orders, migrations.Idempotency)
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.drop(ctx)) }()
	p, err := b.again(ctx, "keys", db.url, "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.end(ctx)) }()
	return use(db, p)
}

// keyed measures requests, each under the key that key makes of its number. The first hundred come before the clock starts.
func (b *bench) keyed(path string, key func(int64) string) func(context.Context) (measure.Figures, error) {
	return func(ctx context.Context) (measure.Figures, error) {
		return b.keyServer(ctx, func(_ *database, p *process) (measure.Figures, error) {
			var n atomic.Int64
			next := func() error {
				_, err := post(ctx, p.url+path, key(n.Add(1)))
				return err
			}
			for range 100 {
				if err := next(); err != nil {
					return nil, err
				}
			}
			length := size(b, 3*time.Second, 500*time.Millisecond)
			var g errgroup.Group
			began, before := time.Now(), n.Load()
			for range keyClients {
				g.Go(func() error {
					for time.Since(began) < length {
						if err := next(); err != nil {
							return err
						}
					}
					return nil
				})
			}
			err := g.Wait()
			return measure.Figures{"requests/s": float64(n.Load()-before) / time.Since(began).Seconds()}, err
		})
	}
}

// duplicates sends 200 of a key at once, while /healthz is asked.
func (b *bench) duplicates(ctx context.Context) (measure.Figures, error) {
	const atOnce = 200
	return b.keyServer(ctx, func(db *database, p *process) (measure.Figures, error) {
		bursts := size(b, 20, 4)
		var asked []time.Duration
		began := time.Now()
		err := beside(ctx, func(ctx context.Context) (err error) {
			asked, err = askHealth(ctx, p)
			return err
		}, func(ctx context.Context) error {
			for range bursts {
				key := uuid.NewString()
				var g errgroup.Group
				for range atOnce {
					g.Go(func() error {
						status, _, err := ask(ctx, p.url+"/keyed", key)
						if err == nil && status != http.StatusCreated && status != http.StatusConflict {
							err = fmt.Errorf("a duplicate was answered %d", status)
						}
						return err
					})
				}
				if err := g.Wait(); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		took := time.Since(began)
		var orders int
		if err := db.QueryRow(ctx, "SELECT count(*) FROM orders WHERE tenant_id <> 'past'").Scan(&orders); err != nil {
			return nil, err
		}
		if orders != bursts {
			return nil, fmt.Errorf("%d orders of %d keys", orders, bursts)
		}
		return measure.Figures{"requests/s": float64(atOnce*bursts) / took.Seconds(), "healthz p99 ms": measure.Percentile(asked, 0.99)}, nil
	})
}

// askHealth asks again and again, 5 ms after the answer before, until ctx is done.
func askHealth(ctx context.Context, p *process) (took []time.Duration, err error) {
	for trial.Pause(ctx, 5*time.Millisecond) == nil {
		began := time.Now()
		res, err := httpClient.Get(p.admin + "/healthz")
		if err != nil {
			return nil, err
		}
		_ = res.Body.Close()
		took = append(took, time.Since(began))
	}
	if len(took) == 0 {
		return nil, errors.New("/healthz was never asked")
	}
	return took, nil
}

const orderBody = `{"customer_id":"customer-1","amount":1999,"currency":"USD","description":"two tickets"}`

// ask asks for an order under a key.
func ask(ctx context.Context, url, key string) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(orderBody))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", key)
	res, err := httpClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	body, err = io.ReadAll(res.Body)
	return res.StatusCode, body, err
}

// post asks for an order that has to be made, now or before, and returns its id.
func post(ctx context.Context, url, key string) (id string, err error) {
	status, body, err := ask(ctx, url, key)
	if err != nil {
		return "", err
	}
	if status != http.StatusCreated {
		return "", fmt.Errorf("POST %s answered %d: %s", url, status, body)
	}
	var made struct{ ID string }
	return made.ID, json.Unmarshal(body, &made)
}

// serveKeys is the server of this row.
func serveKeys(ctx context.Context) error {
	return serve(ctx, func(mux *http.ServeMux, pool *pgxpool.Pool) error {
		w, err := outbox.NewWriter(outbox.WriterConfig{Source: benchSource})
		if err != nil {
			return err
		}
		store, err := idempotency.NewPostgres(pool, idempotency.PostgresConfig{})
		if err != nil {
			return err
		}
		keys, err := idempotency.New(store, idempotency.Config{Scope: idempotency.SingleTenant, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		once, err := keys.Wrap(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			tx, _ := idempotency.Tx(r.Context())
			o, err := readOrder(r)
			if err == nil {
				err = o.insertWithEvent(r.Context(), tx, w)
			}
			answer(rw, o, err)
		}), idempotency.Policy{Required: true})
		if err != nil {
			return err
		}
		mux.Handle("POST /keyed", once)
		mux.HandleFunc("POST /plain", func(rw http.ResponseWriter, r *http.Request) {
			o, err := readOrder(r)
			if err == nil {
				err = pgx.BeginFunc(r.Context(), pool, func(tx pgx.Tx) error { return o.insertWithEvent(r.Context(), tx, w) })
			}
			answer(rw, o, err)
		})
		return nil
	})
}
