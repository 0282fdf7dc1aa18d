package service

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/outbox"
)

// relayRoutes are what an operator asks a service's relay, on the admin listener: how it stands, and the events that its
// stream can never hold.
//
//	GET  /relay                     an outbox.Status
//	GET  /relay/parked              [outbox.ParkedEvent, …], the oldest first, 1,000 at most
//	POST /relay/parked/{seq}/retry  {"asked":1}: the active relay comes to it
//	POST /relay/parked/{seq}/drop   {"asked":1}
//
// Errors are problem documents: not-found for an event that is not parked, store-unavailable (503).
func relayRoutes(mux *http.ServeMux, relay *outbox.Relay) {
	mux.HandleFunc("GET /relay", func(w http.ResponseWriter, r *http.Request) {
		status, err := relay.Status(r.Context())
		answer(w, status, err)
	})
	mux.HandleFunc("GET /relay/parked", func(w http.ResponseWriter, r *http.Request) {
		parked, err := relay.Parked().List(r.Context(), 1000)
		answer(w, parked, err)
	})
	for what, do := range map[string]func(context.Context, ...int64) (int, error){"retry": relay.Parked().Retry, "drop": relay.Parked().Drop} {
		mux.HandleFunc("POST /relay/parked/{seq}/"+what, func(w http.ResponseWriter, r *http.Request) {
			n, err := do(r.Context(), number(r, "seq"))
			if err == nil && n == 0 {
				nothingHere.write(w)
				return
			}
			answer(w, map[string]int{"asked": n}, err)
		})
	}
}

// number is the path's, 0, which no row has, when it is none.
func number(r *http.Request, name string) int64 {
	n, err := strconv.ParseInt(r.PathValue(name), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// answer writes v, or the problem that err is. It tells an operator more than the API tells a client.
func answer(w http.ResponseWriter, v any, err error) {
	p, known := errors.AsType[*problem](err)
	switch {
	case known:
		p.write(w)
	case errors.Is(err, inbox.ErrNotDead):
		nothingHere.write(w)
	case err != nil:
		newProblem(http.StatusServiceUnavailable, "store-unavailable", err.Error()).write(w)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
}
