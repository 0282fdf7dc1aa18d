package idempotency

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"
)

// An Operator is a store whose records can be looked up, and those of an unknown outcome resolved, by a person who has found out
// what happened.
type Operator interface {
	// Lookup returns a record and its state: Replay, Busy or Unknown, and zero for a key that the store does not know.
	Lookup(ctx context.Context, tenant string, key KeyHash) (Record, State, error)
	// Resolve ends the state Unknown: retries get r, or, when r is nil, one is executed. It returns [ErrNotUnknown] when there is
	// nothing to resolve.
	Resolve(ctx context.Context, tenant string, key KeyHash, r *Response) error
}

// ErrNotUnknown is returned by an Operator's Resolve for a request whose outcome is not unknown.
var ErrNotUnknown = errors.New("idempotency: the request's outcome is not unknown")

// Admin serves an Operator's work; it belongs on a listener that only operators reach. The key is in the header Idempotency-Key,
// so that it is in no log of addresses, and the tenant in the query:
//
//	GET    /?tenant=acme    what is known of the key: state, principal, method, path, times, status; never a body
//	PUT    /?tenant=acme    its outcome was unknown and it was carried out: {"status":201,"location":"/v1/charges/7","content_type":"application/json","body":"…"}
//	DELETE /?tenant=acme    its outcome was unknown and nothing happened: a retry may execute it
func Admin(op Operator) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		tenant, key, ok := named(w, r)
		if !ok {
			return
		}
		rec, state, err := op.Lookup(r.Context(), tenant, key)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		names := map[State]string{0: "none", Replay: "answered", Busy: "in-progress", Unknown: "outcome-unknown"}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(struct {
			State     string    `json:"state"`
			Principal string    `json:"principal,omitempty"`
			Method    string    `json:"method,omitempty"`
			Path      string    `json:"path,omitempty"`
			Status    int       `json:"status,omitempty"`
			Location  string    `json:"location,omitempty"`
			CreatedAt time.Time `json:"created_at,omitzero"`
			ExpiresAt time.Time `json:"expires_at,omitzero"`
		}{names[state], rec.Principal, rec.Method, rec.Path, rec.Response.Status, rec.Response.Header.Get("Location"), rec.CreatedAt, rec.ExpiresAt})
	})
	mux.HandleFunc("PUT /{$}", func(w http.ResponseWriter, r *http.Request) {
		tenant, key, ok := named(w, r)
		if !ok {
			return
		}
		var in struct {
			Status      int    `json:"status"`
			Location    string `json:"location"`
			ContentType string `json:"content_type"`
			Body        string `json:"body"`
		}
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&in); err != nil || in.Status < 200 || in.Status > 499 {
			http.Error(w, "the body must be JSON with a status from 200 to 499", http.StatusBadRequest)
			return
		}
		res := Response{Status: in.Status, Header: http.Header{}, Body: []byte(in.Body)}
		for name, value := range map[string]string{"Location": in.Location, "Content-Type": in.ContentType} {
			if value != "" {
				res.Header.Set(name, value)
			}
		}
		resolved(w, op.Resolve(r.Context(), tenant, key, &res))
	})
	mux.HandleFunc("DELETE /{$}", func(w http.ResponseWriter, r *http.Request) {
		if tenant, key, ok := named(w, r); ok {
			resolved(w, op.Resolve(r.Context(), tenant, key, nil))
		}
	})
	return mux
}

// named reads whose key a request is about.
func named(w http.ResponseWriter, r *http.Request) (tenant string, key KeyHash, ok bool) {
	k, err := parseKey(r.Header.Values(HeaderKey), false)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return "", key, false
	}
	return r.URL.Query().Get("tenant"), HashKey(k), true
}

func resolved(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, ErrNotUnknown):
		http.Error(w, err.Error(), http.StatusConflict)
	case err != nil:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}
