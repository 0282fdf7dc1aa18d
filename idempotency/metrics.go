package idempotency

import "github.com/prometheus/client_golang/prometheus"

// The outcomes by which requests with a key are counted, each once.
const (
	wasExecuted   = "executed"    // the handler ran and its answer is kept
	wasNotKept    = "not_kept"    // the handler ran and its answer is not kept
	wasReplayed   = "replayed"    // an answer was given again
	wasConflict   = "conflict"    // another attempt is running, or the answer was too large to keep
	wasMismatch   = "mismatch"    // the key came with another request before
	wasUnknown    = "unknown"     // an attempt ended without a word
	wasStoreError = "store_error" // the store could not be asked, or not told
	wasRejected   = "rejected"    // refused before the store was asked, or by AuthorizeReplay
)

func newRequests(cfg Config) *prometheus.CounterVec {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "oncebox", Subsystem: "idempotency", Name: "requests_total",
		Help: "Requests with an Idempotency-Key, or that needed one, by what came of them."}, []string{"outcome"})
	for _, outcome := range []string{wasExecuted, wasNotKept, wasReplayed, wasConflict, wasMismatch, wasUnknown, wasStoreError, wasRejected} {
		requests.WithLabelValues(outcome)
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(requests)
	}
	return requests
}
