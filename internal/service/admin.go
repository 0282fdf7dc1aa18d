package service

import (
	"context"
	"encoding/json"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/outbox"
)

// health says how a service is.
type health struct {
	pool  *pgxpool.Pool
	nc    *nats.Conn
	keys  func(context.Context) error // asks the store of keys
	ready atomic.Bool                 // off before the start is complete and as soon as the stop begins
}

// routes are the admin listener's: alive, ready and by which part not, metrics, the relay, the dead letters, the
// Idempotency-Keys, what is compared and healed.
func (h *health) routes(reg prometheus.Gatherer, relay *outbox.Relay, dead *inbox.DeadLetters, keys idempotency.Operator, healing *healer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", h.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	relayRoutes(mux, relay)
	letterRoutes(mux, dead)
	mux.Handle("/keys/", http.StripPrefix("/keys", idempotency.Admin(keys)))
	healing.routes(mux)
	return mux
}

// readyz does not count NATS: what an outbox is for is to accept work while the broker is away. Nor does it count a store of keys
// beside the database: without it what needs no key is still answered.
func (h *health) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	parts := map[string]string{"service": "ok", "postgres": "ok", "nats": "ok"}
	status := http.StatusOK
	if !h.ready.Load() {
		parts["service"], status = "starting or stopping", http.StatusServiceUnavailable
	}
	if err := h.pool.Ping(ctx); err != nil {
		parts["postgres"], status = err.Error(), http.StatusServiceUnavailable
	}
	if !h.nc.IsConnected() {
		parts["nats"] = "not connected: events wait in the outbox"
	}
	if err := h.keys(ctx); err != nil {
		parts["keys"] = err.Error() + ": requests with an Idempotency-Key are refused"
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"ready": status == http.StatusOK, "parts": parts})
}
