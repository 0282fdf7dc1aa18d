package service

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/exaring/otelpgx"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/outbox"
)

// A trace's context travels as W3C traceparent, in HTTP and in events. Baggage is not read: it is the client's to write.
var propagator = propagation.TraceContext{}

// A tracing is where a service's spans go.
type tracing struct {
	provider trace.TracerProvider
	on       bool
	shutdown func(context.Context) error
}

// startTracing sends spans to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names; the other OTEL_ variables hold too. Without
// it there are no spans, and a traceparent that a client sends still goes all the way and into the logs.
func startTracing(ctx context.Context, name string, log *slog.Logger) (*tracing, error) {
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" {
		return &tracing{provider: noop.NewTracerProvider(), shutdown: func(context.Context) error { return nil }}, nil
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("traces", "error", err) }))
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_ENDPOINT: %w", err)
	}
	res, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", name)), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	p := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(res))
	return &tracing{provider: p, on: true, shutdown: p.Shutdown}, nil
}

// TraceParent is the trace context of ctx for an event that is written now, "" if there is none.
func TraceParent(ctx context.Context) string {
	c := propagation.MapCarrier{}
	propagator.Inject(ctx, c)
	return c["traceparent"]
}

// queries makes a span of each statement of a pool, with its text and without its arguments.
func (t *tracing) queries(cfg *pgxpool.Config) {
	if t.on {
		cfg.ConnConfig.Tracer = otelpgx.NewTracer(otelpgx.WithTracerProvider(t.provider))
	}
}

// requests makes a span of each request.
func (t *tracing) requests(next http.Handler) http.Handler {
	return otelhttp.NewHandler(next, "request", otelhttp.WithTracerProvider(t.provider), otelhttp.WithPropagators(propagator),
		otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return r.Method }))
}

// events makes a span of each event that h handles, in the trace in which the event was written. What h answers is written in
// that span.
func (t *tracing) events(consumer string, h inbox.Handler, log *slog.Logger) inbox.Handler {
	return func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
		ctx, span := t.handling(ctx, consumer, &e)
		err := h(ctx, tx, e)
		handled(ctx, span, log, e, err)
		return err
	}
}

// answers does the same for the answers that the outside gave.
func (t *tracing) answers(consumer string, settle settler, log *slog.Logger) settler {
	return func(ctx context.Context, tx pgx.Tx, e oncebox.Event, answer []byte) error {
		return t.events(consumer, func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error { return settle(ctx, tx, e, answer) }, log)(ctx, tx, e)
	}
}

type settler = func(ctx context.Context, tx pgx.Tx, e oncebox.Event, answer []byte) error

// groups does the same for events that are handled together, and makes one more span, of the group, with a link to each of theirs.
func (t *tracing) groups(consumer string, h inbox.GroupHandler, log *slog.Logger) inbox.GroupHandler {
	return func(ctx context.Context, tx pgx.Tx, es []oncebox.Event) []error {
		es = slices.Clone(es)
		ctxs, spans, links := make([]context.Context, len(es)), make([]trace.Span, len(es)), make([]trace.Link, len(es))
		for i := range es {
			ctxs[i], spans[i] = t.handling(ctx, consumer, &es[i])
			links[i] = trace.LinkFromContext(ctxs[i])
		}
		ctx, group := t.tracer().Start(ctx, "handle a group", trace.WithSpanKind(trace.SpanKindConsumer), trace.WithLinks(links...))
		defer group.End()
		errs := h(ctx, tx, es)
		for i, e := range es {
			var err error
			if errs != nil {
				err = errs[i]
			}
			handled(ctxs[i], spans[i], log, e, err)
		}
		return errs
	}
}

// publishes makes a span of each event that sink is given, in the trace in which the event was written. It ends when the log has it.
func (t *tracing) publishes(sink *broker.Sink) outbox.Sink {
	if !t.on {
		return sink
	}
	return &tracedSink{Sink: sink, tracing: t}
}

type tracedSink struct {
	*broker.Sink
	tracing *tracing
	ended   uint64       // of the events given since Open
	open    []trace.Span // of those behind them
}

func (s *tracedSink) Open(ctx context.Context, known uint64) (uint64, time.Time, error) {
	s.ended, s.open = 0, nil
	return s.Sink.Open(ctx, known)
}

func (s *tracedSink) Store(ctx context.Context, es []oncebox.Event) (stored, last uint64, err error) {
	for _, e := range es {
		written := propagator.Extract(ctx, propagation.MapCarrier{"traceparent": e.TraceParent})
		_, span := s.tracing.tracer().Start(written, "publish "+e.Type, trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(
			attribute.String("messaging.system", "nats"), attribute.String("messaging.message.id", e.ID),
			attribute.String("messaging.destination.name", e.Type)))
		s.open = append(s.open, span)
	}
	stored, last, err = s.Sink.Store(ctx, es)
	s.end(stored, err)
	return stored, last, err
}

func (s *tracedSink) Flush(ctx context.Context) (stored, last uint64, err error) {
	stored, last, err = s.Sink.Flush(ctx)
	s.end(stored, err)
	return stored, last, err
}

// end ends the spans of the events that are stored, and of all where the chain has failed.
func (s *tracedSink) end(stored uint64, err error) {
	for s.ended < stored && len(s.open) > 0 {
		s.open[0].End()
		s.open = s.open[1:]
		s.ended++
	}
	if err == nil {
		return
	}
	for _, span := range s.open {
		span.SetStatus(codes.Error, "not known to be stored: the relay reads back, and sends again what is missing")
		span.End()
	}
	s.open = nil
}

func (t *tracing) tracer() trace.Tracer {
	return t.provider.Tracer("github.com/oncebox/oncebox/internal/service")
}

// handling begins the span of e and puts it into e, for what answers it.
func (t *tracing) handling(ctx context.Context, consumer string, e *oncebox.Event) (context.Context, trace.Span) {
	ctx = propagator.Extract(ctx, propagation.MapCarrier{"traceparent": e.TraceParent})
	ctx, span := t.tracer().Start(WithTenant(ctx, e.TenantID), "handle "+e.Type, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(
		attribute.String("messaging.system", "nats"), attribute.String("messaging.consumer.group.name", consumer),
		attribute.String("messaging.message.id", e.ID), attribute.String("messaging.destination.name", e.Type)))
	if own := TraceParent(ctx); own != "" {
		e.TraceParent = own
	}
	return ctx, span
}

func handled(ctx context.Context, span trace.Span, log *slog.Logger, e oncebox.Event, err error) {
	if err != nil {
		span.SetStatus(codes.Error, "not handled")
	}
	span.End()
	log.DebugContext(ctx, "event", "type", e.Type, "id", e.ID, "key", e.Key, "handled", err == nil)
}
