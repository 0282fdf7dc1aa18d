package idempotency_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/idempotency/storetest"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
)

// poolWith is a pool on a fresh database, with settings of its sessions.
func poolWith(t testing.TB, settings map[string]string, change ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(stacktest.PostgresURL(t, migrations.Idempotency))
	must(t, err)
	cfg.MaxConns = 8
	maps.Copy(cfg.ConnConfig.RuntimeParams, settings)
	for _, c := range change {
		c(cfg)
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	must(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func TestTheIsolationIsTheStoresOwn(t *testing.T) {
	t.Parallel()
	t.Run("default-transaction-isolation-repeatable-read-on-server", func(t *testing.T) {
		for _, level := range []string{"repeatable read", "serializable"} {
			t.Run(level, func(t *testing.T) {
				wantReadCommitted(t, poolWith(t, map[string]string{"default_transaction_isolation": level}))
				storetest.Run(t, func(t testing.TB) storetest.Backend {
					return backend(t, poolWith(t, map[string]string{"default_transaction_isolation": level}))
				}, "100-across-2-processes", "owner-commits-while-duplicate-waits", "50-concurrent-on-an-expired-key")
			})
		}
	})
}

// wantReadCommitted looks at the transaction that a handler is lent: under another level its look behind the lock would be one
// from before the lock.
func wantReadCommitted(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	a, _, err := postgres(t, pool, idempotency.PostgresConfig{}).Begin(t.Context(), idempotency.Request{Tenant: "t", Retention: time.Hour})
	must(t, err)
	tx, _ := idempotency.Tx(a.Context())
	var level string
	must(t, tx.QueryRow(t.Context(), "SHOW transaction_isolation").Scan(&level))
	must(t, a.Abandon(t.Context(), idempotency.NotApplied))
	if level != "read committed" {
		t.Errorf("the handler's transaction is %s", level)
	}
}

// Invariant: the primary key alone decides which of several attempts is committed.
func TestThePrimaryKeyDecides(t *testing.T) {
	t.Parallel()
	pool, _ := database(t)
	const n = 5
	var inside atomic.Int64
	all := make(chan struct{})
	var urls []string
	for range n { // each with flights of its own
		keys, err := idempotency.New(postgres(t, pool, idempotency.PostgresConfig{}).WithoutLock(), quiet)
		must(t, err)
		route, err := keys.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			id, err := effect(r.Context(), pool)
			if err != nil {
				t.Error(err)
			}
			if inside.Add(1) == n {
				close(all)
			}
			<-all
			w.WriteHeader(http.StatusCreated)
			fmt.Fprint(w, id)
		}), idempotency.Policy{})
		must(t, err)
		s := httptest.NewServer(route)
		t.Cleanup(s.Close)
		urls = append(urls, s.URL)
	}
	var answers []<-chan result
	for _, url := range urls {
		answers = append(answers, postInTheBackground(url))
	}
	firsts, bodies := 0, map[string]bool{}
	for _, a := range answers {
		got := <-a
		must(t, got.err)
		if got.status != http.StatusCreated {
			t.Errorf("got %+v", got.reply)
		}
		bodies[got.body] = true
		if !got.replayed {
			firsts++
		}
	}
	if inside.Load() != n || firsts != 1 || len(bodies) != 1 {
		t.Errorf("%d handlers ran, %d answers were first, with %d bodies; want %d, 1, 1", inside.Load(), firsts, len(bodies), n)
	}
	wantRows(t, pool, 1, 1)
}

func TestAStoreThatIsAwayIsA503(t *testing.T) {
	t.Parallel()
	server := stacktest.OwnPostgres(t, devstack.PostgresConfig{})
	pool, err := pgxpool.New(t.Context(), server.URL("postgres"))
	must(t, err)
	t.Cleanup(pool.Close)
	must(t, migrations.Up(t.Context(), pool, migrations.Idempotency))
	effects(t, pool)
	url := here(t, pool, postgres(t, pool, idempotency.PostgresConfig{}), idempotency.Policy{Timeout: 2 * time.Second})
	first := wantFirst(t, mustPost(t, url, "k"))
	must(t, server.Stop(t.Context()))
	for range 2 { // on a connection that was cut, and on none
		got := mustPost(t, url, "l")
		if got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, "store-unavailable") || !regexp.MustCompile("^[1-5]$").MatchString(got.after) {
			t.Errorf("got %+v", got)
		}
	}
	must(t, server.Restart(t.Context()))
	wantReplay(t, mustPost(t, url, "k"), first)
	wantRows(t, pool, 1, 1)
}
