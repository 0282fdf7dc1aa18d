package service

import (
	"fmt"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/oncebox/oncebox/idempotency"
)

// KeyProblems are the types that each operation which takes an Idempotency-Key may answer with.
var KeyProblems = []string{"key-invalid", "key-reused", "in-progress", "outcome-unknown", "unfinished"}

// Keys returns what puts a service's operations behind the keys of store: those of the methods that policies names. Wake is called
// after each answer that is kept. It belongs inside of what refuses a request that can never be carried out, whatever its key.
func Keys(store idempotency.Store, policies map[string]idempotency.Policy, wake func(), log *slog.Logger, reg prometheus.Registerer) (func(http.Handler) http.Handler, error) {
	keys, err := idempotency.New(store, idempotency.Config{
		Scope: func(r *http.Request) (idempotency.Scope, bool) {
			return idempotency.Scope{Tenant: Tenant(r.Context()), Principal: Principal(r.Context())}, true
		},
		ProblemType: problemPrefix, Committed: wake, Logger: log, Registerer: reg})
	if err != nil {
		return nil, fmt.Errorf("idempotency keys: %w", err)
	}
	return func(next http.Handler) http.Handler {
		behind := make(map[string]http.Handler, len(policies))
		for method, p := range policies {
			p.MaxBody, p.Timeout = bodyLimit, requestTimeout
			if behind[method], err = keys.Wrap(next, p); err != nil {
				panic(fmt.Sprintf("service: the keys of %s: %v", method, err)) // they are a constant of the program
			}
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if h, ok := behind[r.Method]; ok {
				h.ServeHTTP(w, r)
				return
			}
			next.ServeHTTP(w, r)
		})
	}, nil
}
