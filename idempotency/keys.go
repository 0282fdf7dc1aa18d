// Package idempotency gives retries of an HTTP request the first one's answer, byte for byte, instead of a second effect.
//
// [Keys] is a middleware for plain net/http. A client names its request by an Idempotency-Key header; of all requests of one
// tenant with one key at most one is committed while its record is kept, and every retry gets that one's stored answer.
//
// With the [Postgres] store the record, the answer's bytes and what the handler writes by [Tx] are one transaction: a crash
// leaves nothing half done. The store in redisstore is faster and promises less; storetest holds the suite that both pass.
package idempotency

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A Scope says whose request it is.
type Scope struct {
	// Tenant is within whom keys are unique. Where a live and a test environment share a store, its name is part of this.
	Tenant string
	// Principal is who sends it: a stable name of the caller, not a token that may be renewed between two tries. Another principal
	// of the tenant never gets the first one's answer.
	Principal string
}

// SingleTenant is the Scope function of a service that does not tell its callers apart.
func SingleTenant(*http.Request) (Scope, bool) { return Scope{Tenant: "default"}, true }

// Config configures [Keys].
type Config struct {
	// Scope says whose a request is; false refuses it with 401. It is called behind the authentication, which is around this
	// middleware. Required: a service without callers says so by [SingleTenant].
	Scope func(*http.Request) (Scope, bool)
	// Retention is how long answers are kept, by the store's clock. It must be longer than clients try, and than events are
	// delivered again. Default 72 h: a weekend and a day.
	Retention time.Duration
	// MaxWaiting is how many duplicates wait in this process for the one that is executed; further ones are answered 409 at once.
	// Default 256.
	MaxWaiting int
	// SettleTimeout is how long the store may take to keep an answer, or to tell what became of one. Default 5 s.
	SettleTimeout time.Duration
	// ProblemType is what the type of the middleware's problem documents begins with. Default "urn:oncebox:problem:".
	ProblemType string
	// ProblemDocs is the page that they link to. Default Oncebox's own.
	ProblemDocs string
	// Committed is called after each answer that is kept, with what the handler wrote, say to wake the relay of an outbox. It must
	// not block.
	Committed func()
	// Logger hears of a store's failures and handlers' panics, with 8 bytes of a key's hash and nothing of its request. Default
	// slog.Default().
	Logger *slog.Logger
	// Registerer gets the metric oncebox_idempotency_requests_total. Default: none does.
	Registerer prometheus.Registerer
}

// Keys is the middleware. It is safe for concurrent use.
type Keys struct {
	store    Store
	cfg      Config
	flights  flights
	requests *prometheus.CounterVec
}

// New returns Keys that remember in store, or an error that names the option that is wrong.
func New(store Store, cfg Config) (*Keys, error) {
	if store == nil {
		return nil, errors.New("idempotency: a Store is required")
	}
	if cfg.Scope == nil {
		return nil, errors.New("idempotency: Config.Scope is required: where callers are not told apart, say so by SingleTenant")
	}
	for _, o := range []struct {
		name  string
		value *time.Duration
		def   time.Duration
	}{{"Retention", &cfg.Retention, 72 * time.Hour}, {"SettleTimeout", &cfg.SettleTimeout, 5 * time.Second}} {
		if *o.value < 0 {
			return nil, fmt.Errorf("idempotency: Config.%s is %s, below 0", o.name, *o.value)
		}
		if *o.value == 0 {
			*o.value = o.def
		}
	}
	if cfg.MaxWaiting < 0 {
		return nil, fmt.Errorf("idempotency: Config.MaxWaiting is %d, below 0", cfg.MaxWaiting)
	}
	if cfg.MaxWaiting == 0 {
		cfg.MaxWaiting = 256
	}
	if cfg.ProblemType == "" {
		cfg.ProblemType = "urn:oncebox:problem:"
	}
	if cfg.ProblemDocs == "" {
		cfg.ProblemDocs = "https://github.com/oncebox/oncebox/blob/main/docs/idempotency.md"
	}
	if cfg.Committed == nil {
		cfg.Committed = func() {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Keys{store: store, cfg: cfg, requests: newRequests(cfg),
		flights: flights{flying: map[flightKey]*flight{}, limit: cfg.MaxWaiting}}, nil
}

// A Policy is what holds for one route. The zero value is one: keys are honoured, and nothing is assumed of the handler.
type Policy struct {
	// Required refuses a POST without a key. Other methods' keys are honoured where they are sent.
	Required bool
	// Kind says which keys the route takes, Strict that they must come in quotes, as the header's draft has them.
	Kind   KeyKind
	Strict bool
	// BodyKey returns the key that a body carries, such as a reference of the client's own, and "" if there is none. It counts where
	// the header is missing, and a header that says something else is refused. It needs Required. Default: none.
	BodyKey func(body []byte) string
	// Body says when two bodies are the same request.
	Body BodyMode
	// Guarded says that the handler's effect has a unique key of its own (RequestOf tells the hash to keep in it), and that a
	// second execution finds the first one's effect and answers with it. Stores without a transaction then execute again after a
	// crash, where they would otherwise answer outcome-unknown for as long as the record is kept.
	Guarded bool
	// FailOpen executes requests while the store is away, instead of refusing them with 503. It needs Guarded.
	FailOpen bool
	// TenantWide gives an answer to each principal of a tenant that sends the same key and request.
	TenantWide bool
	// AuthorizeReplay is asked before each answer from the store, since the handler with its checks does not run. An error is a
	// 403. Default: none.
	AuthorizeReplay func(r *http.Request, rec Record) error
	// KeepEffects commits what the handler wrote together with a refusal (402, 404, 409, 412) that is kept, such as a declined
	// payment. By default a store that can takes it back.
	KeepEffects bool
	// MediaTypes are the request media types that the route takes; others are refused with 415. Default: all.
	MediaTypes []string
	// Headers are kept with the answer beside Content-Type, Content-Language, Content-Disposition, Location, ETag, Last-Modified,
	// Link and Vary.
	Headers []string
	// MaxBody bounds a request's body in bytes; MaxResponse bounds what is kept of an answer's: a larger one goes to the first
	// client whole, and retries are told so. Default 1 MiB each.
	MaxBody, MaxResponse int
	// Timeout is the handler's, which goes on when its client has gone. Default 30 s.
	Timeout time.Duration
	// Wait is how long a duplicate waits for the first one's answer before it is told that it is in progress; below 0: not at
	// all. Default 250 ms.
	Wait time.Duration
}

func (p Policy) withDefaults() (Policy, error) {
	switch {
	case p.FailOpen && !p.Guarded:
		return p, errors.New("idempotency: Policy.FailOpen needs Guarded: nothing else would refuse a second effect")
	case p.BodyKey != nil && !p.Required:
		return p, errors.New("idempotency: Policy.BodyKey needs Required: where no key is needed, no body is looked at")
	case p.MaxBody < 0:
		return p, fmt.Errorf("idempotency: Policy.MaxBody is %d, below 0", p.MaxBody)
	case p.MaxResponse < 0:
		return p, fmt.Errorf("idempotency: Policy.MaxResponse is %d, below 0", p.MaxResponse)
	case p.Timeout < 0:
		return p, fmt.Errorf("idempotency: Policy.Timeout is %s, below 0", p.Timeout)
	}
	for _, name := range p.Headers {
		name = http.CanonicalHeaderKey(name)
		if slices.Contains(neverReplayed, name) || hasPrefixFold(name, "Access-Control-", "RateLimit-", "X-RateLimit-") {
			return p, fmt.Errorf("idempotency: Policy.Headers has %s, which is not to be given again", name)
		}
	}
	if p.MaxBody == 0 {
		p.MaxBody = 1 << 20
	}
	if p.MaxResponse == 0 {
		p.MaxResponse = 1 << 20
	}
	if p.Timeout == 0 {
		p.Timeout = 30 * time.Second
	}
	if p.Wait == 0 {
		p.Wait = 250 * time.Millisecond
	}
	return p, nil
}

// Wrap returns next behind the keys, or an error that names the field of p that is wrong. It belongs behind authentication, rate
// limits and routing, and inside of what compresses or adds CORS headers.
//
// GET, HEAD, OPTIONS and TRACE, and requests without a key, go through untouched. A request with a key is read whole, and
// runs at most once at a time: next's answer is held back until it is kept. Then retries get its status, its body's bytes and
// its lasting headers, and Idempotent-Replayed: true.
//
// Kept are all 2xx and 3xx, and 402, 404, 409 and 412 unless next calls [Discard]. Other 4xx are kept if it calls [Keep].
// Never kept are 401, 403, 408, 413, 415, 425, 429, any 5xx, a panic and a timeout: a retry executes again.
//
// Next's context ends by Policy.Timeout, not when the client goes away. Next must not use the ResponseWriter after it returns.
func (k *Keys) Wrap(next http.Handler, p Policy) (http.Handler, error) {
	p, err := p.withDefaults()
	if err != nil {
		return nil, err
	}
	return &route{Keys: k, Policy: p, next: next}, nil
}
