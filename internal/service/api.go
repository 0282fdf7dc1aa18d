package service

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/danielgtaylor/huma/v2/validation"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

type loggerKey struct{}

// requestTimeout is how long an operation may take, its body's coming and its wait for the database included.
const requestTimeout = 15 * time.Second

// setUpHuma sets what huma has for the whole process: what went wrong inside is logged, by the API's own logger, and not told.
var setUpHuma = sync.OnceFunc(func() {
	huma.ValidateStrictCasing = true // encoding/json would take Amount for amount, past the checks of amount
	huma.NewErrorWithContext = func(ctx huma.Context, status int, msg string, errs ...error) huma.StatusError {
		if status >= http.StatusInternalServerError {
			return failed(ctx, errors.Join(errs...))
		}
		return huma.NewError(status, msg, errs...)
	}
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		p := newProblem(status, cmp.Or(slugs[status], "invalid"), msg)
		for _, err := range errs {
			p.Errors = append(p.Errors, place(err))
		}
		return p
	}
})

func failed(ctx huma.Context, err error) *problem {
	log, _ := ctx.Context().Value(loggerKey{}).(*slog.Logger)
	log.ErrorContext(ctx.Context(), "request failed", "method", ctx.Method(), "operation", ctx.Operation().OperationID, "error", err)
	if unreachable(err) {
		ctx.SetHeader("Retry-After", "1")
		return newProblem(http.StatusServiceUnavailable, "store-unavailable", "Try again, with the same Idempotency-Key if there was one.")
	}
	return newProblem(http.StatusInternalServerError, "internal", "What went wrong is logged.")
}

// place tells where err found something wrong. What was sent is not sent back: neither the value, nor a name that is unknown.
func place(err error) problemPlace {
	d, ok := err.(huma.ErrorDetailer)
	if !ok {
		return problemPlace{Message: err.Error()}
	}
	p := problemPlace{Message: d.ErrorDetail().Message, Location: d.ErrorDetail().Location}
	switch {
	case p.Message == validation.MsgUnexpectedProperty, strings.HasPrefix(p.Message, "unknown query parameter"):
		p.Location, _, _ = strings.Cut(p.Location, ".")
	case strings.Contains(p.Message, "Go "), strings.HasPrefix(p.Message, "json:"):
		p.Message = "the body is not the JSON that is expected here"
	}
	return p
}

// newDescription is an API without operations, and the mux that will serve them.
func newDescription(name, version string) (huma.API, *http.ServeMux) {
	setUpHuma()
	cfg := huma.DefaultConfig("Oncebox "+name, version)
	cfg.Info.Description = "What is wrong with a request is told by a problem document (RFC 9457), of a type that docs/problems.md explains."
	cfg.CreateHooks = nil // no $schema in the bodies
	// These pages are served by docs: huma's own make the document anew while others read it, and load scripts from elsewhere.
	cfg.DocsPath, cfg.SchemasPath, cfg.OpenAPIPath = "", "", ""
	cfg.RejectUnknownQueryParameters = true
	format := huma.Format{ // escapes <, > and &, which huma's own does not
		Marshal:   func(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) },
		Unmarshal: json.Unmarshal,
	}
	cfg.Formats = map[string]huma.Format{"application/json": format, "json": format}
	mux := http.NewServeMux()
	return humago.New(mux, cfg), mux
}

// NewAPI serves what routes adds, on plain net/http, with problem documents for errors, /openapi.json and /docs/. Around, if any,
// stands between the requests that can be read and the operations, the last one outermost.
func NewAPI(name, version string, log *slog.Logger, reg prometheus.Registerer, routes func(huma.API), around ...func(http.Handler) http.Handler) http.Handler {
	api, mux := newDescription(name, version)
	routes(api)
	docs(mux, api.OpenAPI())

	labels := prometheus.Labels{"service": name}
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "http", Name: "requests_total",
		Help: "Requests answered.", ConstLabels: labels}, []string{"method", "code"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "http", Name: "request_seconds",
		Help: "Time to answer.", ConstLabels: labels, Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}, []string{"method"})
	reg.MustRegister(requests, seconds)
	operations := http.Handler(mux)
	for _, a := range around {
		operations = a(operations)
	}
	operations = strict(operations)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A client that goes away leaves its request: it is done to its end, and a retry is answered from it.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), requestTimeout)
		defer cancel()
		r = r.WithContext(context.WithValue(ctx, loggerKey{}, log))
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Link", `</openapi.json>; rel="service-desc describedby"`)            // RFC 8631
		w.Header().Set("Cache-Control", "private, no-cache")                                 // may be kept, and is asked for again by its ETag
		if clean := path.Clean(r.URL.Path); r.URL.Path != clean && r.URL.Path != clean+"/" { // the mux would redirect it
			nothingHere.write(w)
			return
		}
		if h, pattern := mux.Handler(r); pattern == "" {
			refuse(w, r, h)
			return
		}
		operations.ServeHTTP(w, r)
	})
	return promhttp.InstrumentHandlerCounter(requests, promhttp.InstrumentHandlerDuration(seconds, handler))
}

var nothingHere = newProblem(http.StatusNotFound, "not-found", "There is nothing here.")

// refuse answers with a problem document as h, the mux's own 404 or 405, would in plain text.
func refuse(w http.ResponseWriter, r *http.Request, h http.Handler) {
	plain := &headOnly{header: w.Header()}
	h.ServeHTTP(plain, r)
	p := nothingHere
	if plain.status == http.StatusMethodNotAllowed {
		p = newProblem(plain.status, "method-not-allowed", "See the Allow header.")
	}
	p.write(w)
}

// headOnly keeps a response's status and headers.
type headOnly struct {
	header http.Header
	status int
}

func (h *headOnly) Header() http.Header         { return h.header }
func (h *headOnly) Write(b []byte) (int, error) { return len(b), nil }
func (h *headOnly) WriteHeader(status int)      { h.status = status }

// unreachable says whether err means that the database could not be asked, or that its answer did not come. In the second case
// nobody knows what happened, until the request is repeated under its key.
func unreachable(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		// 57P01 to 57P03: shut down, crashed, starting up; class 53: out of connections, disk or memory; class 28: not let in
		return strings.HasPrefix(pg.Code, "57P") || strings.HasPrefix(pg.Code, "53") || strings.HasPrefix(pg.Code, "28")
	}
	_, connect := errors.AsType[*pgconn.ConnectError](err)
	_, network := errors.AsType[net.Error](err)
	return connect || network || pgconn.Timeout(err) || pgconn.SafeToRetry(err) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
