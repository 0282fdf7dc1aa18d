package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// patience is how long a test waits for what should come within a second or two.
const patience = 30 * time.Second

// quiet tells nobody: what goes wrong here is meant to.
var quiet = idempotency.Config{Scope: idempotency.SingleTenant, Logger: slog.New(slog.DiscardHandler)}

// routes are what the tests' servers serve, in the test's process or in one of its own:
//
//	/charges  writes an effect
//	/gate     writes an effect, then waits in the database for the lock that a test holds
//	/idle     writes an effect, then waits for its request to be over
//	/stall    writes an effect, and never begins to answer its client
func routes(pool *pgxpool.Pool, store idempotency.Store, p idempotency.Policy) (http.Handler, error) {
	keys, err := idempotency.New(store, quiet)
	if err != nil {
		return nil, err
	}
	p.Required = true
	route, err := keys.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := effect(r.Context(), pool)
		if tx, ok := idempotency.Tx(r.Context()); ok && err == nil && r.URL.Path == "/gate" {
			_, err = tx.Exec(r.Context(), "SELECT pg_advisory_xact_lock_shared($1)", gateLock)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if r.URL.Path == "/idle" {
			<-r.Context().Done()
		}
		w.Header().Set("Location", "/charges/"+id)
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "charge %s\n", id)
	}), p)
	if err != nil {
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stall" && r.Header.Get("Stall") != "" {
			w = staller{w}
		}
		route.ServeHTTP(w, r)
	}), nil
}

// gateLock is the advisory lock behind which /gate waits.
const gateLock = 4711

// A staller is a connection on which the first byte of an answer never gets out.
type staller struct{ http.ResponseWriter }

func (staller) WriteHeader(int) { select {} }

// serverEnv makes the test binary a server on the database that it names. Its port is serverPort's.
const (
	serverEnv  = "ONCEBOX_IDEMPOTENCY_SERVER"
	serverPort = "ONCEBOX_IDEMPOTENCY_PORT"
)

// serve is the main of such a server: until SIGTERM, and then until the last request is answered.
func serve(url string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return err
	}
	cfg.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = "1s"
	idempotency.TunePool(cfg)
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer pool.Close()
	store, err := idempotency.NewPostgres(pool, idempotency.PostgresConfig{})
	if err != nil {
		return err
	}
	h, err := routes(pool, store, idempotency.Policy{Wait: time.Second})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv(serverPort))
	if err != nil {
		return err
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	if err := s.Shutdown(context.Background()); err != nil {
		return err
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// A process is a server of its own.
type process struct {
	*devstack.Process
	url string
}

func startServer(t *testing.T, database string) *process {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	port, err := devstack.FreePort()
	must(t, err)
	proc, err := devstack.StartProcess(devstack.ProcessConfig{Path: self, Output: t.Output(),
		Env: []string{serverEnv + "=" + database, fmt.Sprintf("%s=%d", serverPort, port)}})
	must(t, err)
	t.Cleanup(func() { must(t, proc.Kill()) })
	p := &process{proc, fmt.Sprintf("http://127.0.0.1:%d", port)}
	stacktest.Eventually(t, patience, "the server serves", func() (bool, error) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
		if err == nil {
			conn.Close()
		}
		return err == nil, err
	})
	return p
}

// here serves in the test's own process.
func here(t *testing.T, pool *pgxpool.Pool, store idempotency.Store, p idempotency.Policy) string {
	t.Helper()
	h, err := routes(pool, store, p)
	must(t, err)
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

type reply struct {
	status   int
	replayed bool
	body     string
	after    string
}

// client opens a connection for each request: Go sends one with an Idempotency-Key again by itself when a kept one dies.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}

func post(url, key string, header ...string) (reply, error) {
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader("charge"))
	if err != nil {
		return reply{}, err
	}
	req.Header.Set("Idempotency-Key", key)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header.Get("Idempotent-Replayed") == "true", string(b), res.Header.Get("Retry-After")}, err
}

// mustPost is post for where an answer has to come.
func mustPost(t *testing.T, url, key string) reply {
	t.Helper()
	got, err := post(url, key)
	must(t, err)
	return got
}

// postInTheBackground posts under the key k, and returns what comes of it.
func postInTheBackground(url string, header ...string) <-chan result {
	done := make(chan result, 1)
	go func() {
		got, err := post(url, "k", header...)
		done <- result{got, err}
	}()
	return done
}

type result struct {
	reply
	err error
}

func wantFirst(t *testing.T, got reply) reply {
	t.Helper()
	if got.status != http.StatusCreated || got.replayed {
		t.Errorf("got %+v, want 201, not replayed", got)
	}
	return got
}

func wantReplay(t *testing.T, got, first reply) {
	t.Helper()
	if got.status != http.StatusCreated || !got.replayed || first.body != "" && got.body != first.body {
		t.Errorf("got %+v, want the replay of %+v", got, first)
	}
}

func wantRows(t *testing.T, pool *pgxpool.Pool, effects, records int) {
	t.Helper()
	e, k := count(t, pool, "effect"), count(t, pool, "oncebox.idempotency_keys")
	if e != effects || k != records {
		t.Errorf("%d effects and %d records, want %d and %d", e, k, effects, records)
	}
}

// hold takes the lock that /gate waits for, until release is called.
func hold(t *testing.T, pool *pgxpool.Pool) (release func()) {
	t.Helper()
	tx, err := pool.Begin(context.Background())
	must(t, err)
	_, err = tx.Exec(context.Background(), "SELECT pg_advisory_xact_lock($1)", gateLock)
	must(t, err)
	release = func() { _ = tx.Rollback(context.Background()) }
	t.Cleanup(release)
	return release
}

// waitGate returns when a session waits for that lock.
func waitGate(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	stacktest.Eventually(t, patience, "the handler is in the middle of its work", func() (bool, error) {
		var waiting int
		err := pool.QueryRow(context.Background(), `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND NOT granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, gateLock).Scan(&waiting)
		return waiting == 1, err
	})
}
