package service

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

func TestAnOperatorAsksTheRelay(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := stacktest.Postgres(t, migrations.Outbox)
	relay, err := outbox.NewRelay(pool, outbox.SinkOf(nil), outbox.RelayConfig{Name: "test"})
	must(t, err)
	for _, sql := range []string{
		"INSERT INTO oncebox.outbox_cursor (name) VALUES ('test')",
		"INSERT INTO oncebox.outbox_tick (cursor, n, epoch, snap, stream_seq, slot) VALUES ('test', 0, 0, '1:1:', 0, 0)",
		`INSERT INTO oncebox.outbox_parked (cursor, seq, id, source, topic, key, version, tenant_id, time, headers, payload, reason)
			VALUES ('test', 7, gen_random_uuid(), 's', 't', 'k', 1, '', now(), '{}', '', 'too large')`,
	} {
		_, err := pool.Exec(ctx, sql)
		must(t, err)
	}
	mux := http.NewServeMux()
	relayRoutes(mux, relay)
	api := httptest.NewServer(mux)
	t.Cleanup(api.Close)
	for _, c := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"GET", "/relay", 200, `"Parked":1`},
		{"GET", "/relay/parked", 200, `"Reason":"too large","Waits":false,"Asked":false`},
		{"POST", "/relay/parked/8/retry", 404, ""},
		{"POST", "/relay/parked/x/drop", 404, ""},
		{"POST", "/relay/parked/7/burn", 404, ""},
		{"GET", "/relay/parked/7/retry", 405, ""},
		{"POST", "/relay/parked/7/retry", 200, `"asked":1`},
		{"GET", "/relay/parked", 200, `"Asked":true`},
	} {
		req, err := http.NewRequestWithContext(ctx, c.method, api.URL+c.path, nil)
		must(t, err)
		res, err := http.DefaultClient.Do(req)
		must(t, err)
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		must(t, err)
		if res.StatusCode != c.status || !strings.Contains(string(body), c.body) {
			t.Errorf("%s %s: %d %s; want %d with %s", c.method, c.path, res.StatusCode, body, c.status, c.body)
		}
	}
}
