package redisstore_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/idempotency/redisstore"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

func TestMain(m *testing.M) {
	if addr, ok := os.LookupEnv(serverEnv); ok {
		fmt.Fprintln(os.Stderr, serve(addr))
		os.Exit(1)
	}
	stacktest.Main(m)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// patience is how long a test waits for what should come within a second or two.
const patience = 30 * time.Second

// brisk are a twentieth of the default times.
var brisk = redisstore.Config{Lease: 750 * time.Millisecond, Margin: 100 * time.Millisecond, CommandTimeout: 500 * time.Millisecond,
	Logger: slog.New(slog.DiscardHandler)}

func connect(t testing.TB, server *devstack.Redis) *redis.Client {
	t.Helper()
	o, err := redis.ParseURL(server.URL())
	must(t, err)
	o.ContextTimeoutEnabled = true
	c := redis.NewClient(o)
	t.Cleanup(func() { c.Close() })
	return c
}

func store(t testing.TB, c redis.UniversalClient, cfg redisstore.Config) *redisstore.Store {
	t.Helper()
	s, err := redisstore.New(context.Background(), c, cfg)
	must(t, err)
	t.Cleanup(func() {
		over, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Close(over) // what Redis was not told does not matter any more
	})
	return s
}

// effects makes the tables that handlers write to: one whose rows are guarded by their request's key, one whose are not.
func effects(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	_, err := pool.Exec(context.Background(), `CREATE TABLE effect (id text NOT NULL);
		CREATE TABLE guarded (id text NOT NULL, tenant_id text, idem_key bytea, UNIQUE (tenant_id, idem_key))`)
	must(t, err)
}

func unguardedEffect(ctx context.Context, pool *pgxpool.Pool) (id string, err error) {
	id = uuid.NewString()
	_, err = pool.Exec(ctx, "INSERT INTO effect VALUES ($1)", id)
	return id, err
}

// guardedEffect finds the effect that the request has had before, if it has.
func guardedEffect(ctx context.Context, pool *pgxpool.Pool) (id string, err error) {
	req, ok := idempotency.RequestOf(ctx)
	if !ok {
		_, err = pool.Exec(ctx, "INSERT INTO guarded (id) VALUES ($1)", uuid.NewString())
		return "", err
	}
	id = uuid.NewString()
	err = pool.QueryRow(ctx, "INSERT INTO guarded VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING id", id, req.Tenant, req.Key[:]).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		err = pool.QueryRow(ctx, "SELECT id FROM guarded WHERE tenant_id = $1 AND idem_key = $2", req.Tenant, req.Key[:]).Scan(&id)
	}
	return id, err
}

func count(t testing.TB, pool *pgxpool.Pool, from string) (n int) {
	t.Helper()
	must(t, pool.QueryRow(context.Background(), "SELECT count(*) FROM "+from).Scan(&n))
	return n
}

// A handler is what the tests' servers serve. A request with the header Gate waits, before its effect, for the lock that a test
// holds; one with After waits behind it, one with Slow for that long.
type handler struct {
	pool    *pgxpool.Pool
	guarded bool
}

// gateLock is the advisory lock behind which a request waits.
const gateLock = 4711

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	err := h.wait(ctx, r.Header.Get("Gate"))
	effect := unguardedEffect
	if h.guarded {
		effect = guardedEffect
	}
	var id string
	if err == nil {
		id, err = effect(ctx, h.pool)
	}
	if err == nil {
		err = h.wait(ctx, r.Header.Get("After"))
	}
	if d, parsed := time.ParseDuration(r.Header.Get("Slow")); parsed == nil {
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
	}
	if err == nil && r.Header.Get("Fail") != "" {
		err = errors.New("out of luck")
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Location", "/charges/"+id)
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, "charge %s\n", id)
}

func (h handler) wait(ctx context.Context, asked string) error {
	if asked == "" {
		return nil
	}
	_, err := h.pool.Exec(ctx, "SELECT pg_advisory_xact_lock_shared($1)", gateLock)
	return err
}

func (h handler) behind(s idempotency.Store) (http.Handler, error) {
	keys, err := idempotency.New(s, idempotency.Config{Scope: idempotency.SingleTenant, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	return keys.Wrap(h, idempotency.Policy{Required: true, Guarded: h.guarded, Wait: 50 * time.Millisecond})
}

// serverEnv makes the test binary a server on that port, with databaseEnv and redisEnv, guarded.
const (
	serverEnv   = "ONCEBOX_REDISSTORE_SERVER"
	databaseEnv = "ONCEBOX_REDISSTORE_DATABASE"
	redisEnv    = "ONCEBOX_REDISSTORE_REDIS"
)

func serve(addr string) error {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, os.Getenv(databaseEnv))
	if err != nil {
		return err
	}
	o, err := redis.ParseURL(os.Getenv(redisEnv))
	if err != nil {
		return err
	}
	o.ContextTimeoutEnabled = true
	s, err := redisstore.New(ctx, redis.NewClient(o), brisk)
	if err != nil {
		return err
	}
	h, err := handler{pool, true}.behind(s)
	if err != nil {
		return err
	}
	server := &http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: 5 * time.Second}
	return server.ListenAndServe()
}

// A process is a server of its own.
type process struct {
	*devstack.Process
	url string
}

func startServer(t *testing.T, pool *pgxpool.Pool, r *devstack.Redis) *process {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	port, err := devstack.FreePort()
	must(t, err)
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	proc, err := devstack.StartProcess(devstack.ProcessConfig{Path: self, Output: t.Output(),
		Env: []string{serverEnv + "=" + addr, databaseEnv + "=" + pool.Config().ConnString(), redisEnv + "=" + r.URL()}})
	must(t, err)
	t.Cleanup(func() { must(t, proc.Kill()) })
	stacktest.Eventually(t, patience, "the server serves", func() (bool, error) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err == nil, err
	})
	return &process{proc, "http://" + addr}
}

// here serves in the test's own process.
func here(t *testing.T, pool *pgxpool.Pool, s idempotency.Store, guarded bool) string {
	t.Helper()
	h, err := handler{pool, guarded}.behind(s)
	must(t, err)
	web := httptest.NewServer(h)
	t.Cleanup(web.Close)
	return web.URL
}

type reply struct {
	status         int
	replayed       bool
	body, location string
	after          string
}

// client opens a connection for each request: Go sends one with an Idempotency-Key again by itself when a kept one dies.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}

func try(url, key string, header ...string) (reply, error) {
	req, err := http.NewRequest(http.MethodPost, url+"/charges", strings.NewReader("charge"))
	if err != nil {
		return reply{}, err
	}
	req.Header.Set("Idempotency-Key", key)
	for _, name := range header {
		name, value, _ := strings.Cut(name, "=")
		req.Header.Set(name, cmp.Or(value, "yes"))
	}
	res, err := client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header.Get("Idempotent-Replayed") == "true", string(b), res.Header.Get("Location"), res.Header.Get("Retry-After")}, err
}

func post(t *testing.T, url string, header ...string) reply {
	t.Helper()
	got, err := try(url, "k", header...)
	must(t, err)
	return got
}

type result struct {
	reply
	err error
}

func postInTheBackground(url string, header ...string) <-chan result {
	done := make(chan result, 1)
	go func() {
		got, err := try(url, "k", header...)
		done <- result{got, err}
	}()
	return done
}

// hold takes the lock that a request waits for, until release is called.
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

func waitGate(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	stacktest.Eventually(t, patience, "the handler is in the middle of its work", func() (bool, error) {
		var waiting int
		err := pool.QueryRow(context.Background(), `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND NOT granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, gateLock).Scan(&waiting)
		return waiting == 1, err
	})
}

func wantFirst(t *testing.T, got reply) reply {
	t.Helper()
	if got.status != http.StatusCreated || got.replayed {
		t.Errorf("got %+v, want 201, not replayed", got)
	}
	return got
}

// wantSame checks that the answer is the first one's by what a rebuilt one keeps.
func wantSame(t *testing.T, got, first reply) {
	t.Helper()
	if got.status != first.status || got.location != first.location {
		t.Errorf("got %+v, want status and place of %+v", got, first)
	}
}

func wantRefused(t *testing.T, got reply, status int, code string) {
	t.Helper()
	if got.status != status || !strings.Contains(got.body, `"code":"`+code+`"`) {
		t.Errorf("got %+v, want %d %s", got, status, code)
	}
}

func wantEffects(t *testing.T, pool *pgxpool.Pool, want int) {
	t.Helper()
	if n := count(t, pool, "effect") + count(t, pool, "guarded"); n != want {
		t.Errorf("%d effects, want %d", n, want)
	}
}
