package orders_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/service"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/orders"
	"github.com/oncebox/oncebox/outbox"
)

// A forgetful store lets every request through and keeps nothing: with it a POST costs what it costs without a key.
type forgetful struct{}

func (forgetful) Begin(ctx context.Context, _ idempotency.Request) (idempotency.Attempt, idempotency.Outcome, error) {
	return ranOnce{ctx}, idempotency.Outcome{State: idempotency.Fresh}, nil
}

type ranOnce struct{ ctx context.Context }

func (a ranOnce) Context() context.Context                           { return a.ctx }
func (ranOnce) Complete(context.Context, idempotency.Response) error { return nil }
func (ranOnce) Abandon(context.Context, idempotency.Applied) error   { return nil }

// BenchmarkKeys measures POST /v1/orders over HTTP, on a Postgres that syncs: without a store of keys, with one for the first time,
// and again. The three take turns, so that what else the machine does meets all of them; the ratios are of the medians.
func BenchmarkKeys(b *testing.B) {
	server := stacktest.OwnPostgres(b, devstack.PostgresConfig{Fsync: true})
	cfg, err := pgxpool.ParseConfig(server.URL("postgres"))
	must(b, err)
	cfg.MaxConns = 24
	idempotency.TunePool(cfg)
	pool, err := pgxpool.NewWithConfig(b.Context(), cfg)
	must(b, err)
	b.Cleanup(pool.Close)
	must(b, migrations.Up(b.Context(), pool, migrations.Outbox, migrations.Idempotency, migrations.Orders))
	w, err := outbox.NewWriter(outbox.WriterConfig{Source: orders.Name})
	must(b, err)
	const workers, turns, turn = 16, 9, 300 * time.Millisecond
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: workers}}
	serve := func(store idempotency.Store) string {
		log, reg := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
		s := orders.New(pool, w, orders.Config{Wake: func() {}, Registerer: reg})
		keys, err := service.Keys(store, s.Keys(), func() {}, log, reg)
		must(b, err)
		api := httptest.NewServer(service.NewAPI(orders.Name, "test", log, reg, s.Routes, keys))
		b.Cleanup(api.Close)
		return api.URL + "/v1/orders"
	}
	pg, err := idempotency.NewPostgres(pool, idempotency.PostgresConfig{})
	must(b, err)
	without, with := serve(forgetful{}), serve(pg)
	var seq atomic.Int64
	run := func(url string, key func() int64) float64 {
		var done atomic.Int64
		var wg sync.WaitGroup
		begun := time.Now()
		for range workers {
			wg.Go(func() {
				for time.Since(begun) < turn {
					req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
					must(b, err)
					req.Header.Set("Content-Type", "application/json")
					req.Header.Set("Idempotency-Key", fmt.Sprint("key-", key()))
					res, err := client.Do(req)
					if err != nil {
						b.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, res.Body)
					res.Body.Close()
					if res.StatusCode == http.StatusCreated {
						done.Add(1)
					} else if res.StatusCode != http.StatusConflict {
						b.Error(res.Status)
					}
				}
			})
		}
		wg.Wait()
		return float64(done.Load()) / time.Since(begun).Seconds()
	}
	fresh := func() int64 { return seq.Add(1) }
	var replayed atomic.Int64
	again := func() int64 { return 1 + replayed.Add(1)%200 }
	run(with, fresh) // warm: and 200 keys are there
	run(without, fresh)
	var rates [3][]float64
	for range turns {
		rates[0] = append(rates[0], run(without, fresh))
		rates[1] = append(rates[1], run(with, fresh))
		rates[2] = append(rates[2], run(with, again))
	}
	var median [3]float64
	for i := range rates {
		slices.Sort(rates[i])
		median[i] = rates[i][turns/2]
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median[0], "without/s")
	b.ReportMetric(median[1], "first/s")
	b.ReportMetric(median[2], "replay/s")
	b.ReportMetric(median[1]/median[0], "first/without")
	b.ReportMetric(median[2]/median[1], "replay/first")
}
