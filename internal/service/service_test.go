package service

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAWrongSettingIsNamed(t *testing.T) {
	t.Parallel()
	good := Options{Database: Database{DatabaseURL: "postgres://x", MaxConns: 4}, AckWait: time.Second, Lease: time.Second, Lanes: 1, StopTimeout: time.Second, RetainEvery: time.Second, TendEvery: time.Second,
		Access: Access{Auth: "off", MaxHTTPConns: 1}}
	must(t, good.validate("orders"))
	for name, change := range map[string]func(*Options){
		"ORDERS_DATABASE_URL":                 func(o *Options) { o.DatabaseURL = "" },
		"ORDERS_DATABASE_MAX_CONNS":           func(o *Options) { o.MaxConns = 1 },
		"ORDERS_DATABASE_PASSWORD_FILE":       func(o *Options) { o.PasswordFile = "/nowhere" },
		"ORDERS_RELAY_DATABASE_PASSWORD_FILE": func(o *Options) { o.RelayPassword = "x" },
		"ORDERS_ACK_WAIT":                     func(o *Options) { o.AckWait = 0 },
		"ORDERS_LEASE":                        func(o *Options) { o.Lease = -1 },
		"ORDERS_LANES":                        func(o *Options) { o.Lanes = 0 },
		"ORDERS_STOP_TIMEOUT":                 func(o *Options) { o.StopTimeout = 0 },
		"ORDERS_RETAIN_EVERY":                 func(o *Options) { o.RetainEvery = 0 },
		"ORDERS_TEND_EVERY":                   func(o *Options) { o.TendEvery = 0 },
		"ORDERS_MAX_HTTP_CONNS":               func(o *Options) { o.Access.MaxHTTPConns = 0 },
		"ORDERS_API_KEYS_FILE":                func(o *Options) { o.Access.Auth = "keys" },
		"ORDERS_AUTH=off":                     func(o *Options) { o.Access.APIKeysFile = "keys" },
	} {
		o := good
		change(&o)
		if err := o.validate("orders"); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want an error that names %s", err, name)
		}
	}
}

// A client that cannot know what happened is told to try again with the same key, and nothing of the inside.
func TestADatabaseThatIsAwayIsA503(t *testing.T) {
	t.Parallel()
	server := stacktest.OwnPostgres(t, devstack.PostgresConfig{})
	pool, err := pgxpool.New(t.Context(), server.URL("postgres"))
	must(t, err)
	t.Cleanup(pool.Close)
	api := httptest.NewServer(NewAPI("test", "1", slog.New(slog.DiscardHandler), prometheus.NewRegistry(), func(api huma.API) {
		huma.Get(api, "/now", func(ctx context.Context, _ *struct{}) (*struct{ Body string }, error) {
			var out struct{ Body string }
			return &out, pool.QueryRow(ctx, "SELECT now()::text").Scan(&out.Body)
		})
		huma.Get(api, "/secret", func(context.Context, *struct{}) (*struct{}, error) {
			return nil, errors.New("password: hunter2")
		})
	}))
	t.Cleanup(api.Close)
	get := func(path string) (status int, header http.Header, body string) {
		res, err := http.Get(api.URL + path)
		must(t, err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		must(t, err)
		return res.StatusCode, res.Header, string(b)
	}
	if status, _, body := get("/now"); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	must(t, server.Stop(t.Context()))
	for range 2 { // on a connection that was cut, and on none
		status, header, body := get("/now")
		if status != http.StatusServiceUnavailable || header.Get("Retry-After") == "" || !strings.Contains(body, "store-unavailable") ||
			strings.Contains(body, "127.0.0.1") {
			t.Errorf("%d %s", status, body)
		}
	}
	if status, _, body := get("/secret"); status != http.StatusInternalServerError || strings.Contains(body, "hunter2") {
		t.Errorf("%d %s", status, body)
	}
}

func TestAStageThatHangsTakesNoTimeOfTheNext(t *testing.T) {
	t.Parallel()
	ran := false
	stop(t.Context(), slog.New(slog.DiscardHandler),
		stage{"one that hangs", 20 * time.Millisecond, func(ctx context.Context) error { return within(ctx, func() error { <-t.Context().Done(); return nil }) }},
		stage{"the next", time.Minute, func(ctx context.Context) error { ran = ctx.Err() == nil; return nil }})
	if !ran {
		t.Error("the next stage had no time")
	}
}
