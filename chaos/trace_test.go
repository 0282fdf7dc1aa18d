package chaos

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/oncebox/oncebox/internal/stacktest"
)

// Invariant: the trace that a client began is in both services' logs and in the events between them, with no collector at all.
func TestOneTraceIsInBothServicesLogs(t *testing.T) {
	t.Parallel()
	debug := map[string]string{"LOG_LEVEL": "DEBUG"}
	s := startSystem(t, debug, debug)
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	a, err := s.orders.ask(t.Context(), http.MethodPost, "/v1/orders", anOrder, "Idempotency-Key", "traced",
		"traceparent", "00-"+trace+"-00f067aa0ba902b7-01", "baggage", "user=forged")
	if err != nil || a.status != http.StatusCreated {
		t.Fatalf("%v, %d %s", err, a.status, a.body)
	}
	s.order(t, "not-traced")
	s.settle(t)
	for _, svc := range []*service{s.orders, s.billing} {
		log, err := os.ReadFile(svc.log.Name())
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(log), `"trace_id":"`+trace+`"`); n == 0 {
			t.Errorf("the trace is not in %s's log", svc.name)
		}
		if n := one[int](t, svc.db, "SELECT count(*) FROM oncebox.outbox WHERE headers->>'ce-traceparent' LIKE $1", "00-"+trace+"-%"); n != 1 {
			t.Errorf("%d of %s's events are of the trace, want 1", n, svc.name)
		}
		if n := one[int](t, svc.db, "SELECT count(*) FROM oncebox.outbox WHERE headers::text LIKE '%forged%'"); n != 0 {
			t.Errorf("baggage is in %d of %s's events", n, svc.name)
		}
	}
}

// A collector keeps the spans that services send it.
type spanCollector struct {
	mu    sync.Mutex
	spans []tracedSpan
}

type tracedSpan struct{ service, name, trace, id, parent string }

func (c *spanCollector) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var req collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(body, &req)
	}
	if err != nil || r.URL.Path != "/v1/traces" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range req.GetResourceSpans() {
		service := ""
		for _, a := range rs.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				service = a.GetValue().GetStringValue()
			}
		}
		for _, ss := range rs.GetScopeSpans() {
			for _, sp := range ss.GetSpans() {
				c.spans = append(c.spans, tracedSpan{service, sp.GetName(), fmt.Sprintf("%x", sp.GetTraceId()),
					fmt.Sprintf("%x", sp.GetSpanId()), fmt.Sprintf("%x", sp.GetParentSpanId())})
			}
		}
	}
}

// find returns the only span of that service and name.
func (c *spanCollector) find(service, name string) (tracedSpan, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []tracedSpan
	for _, s := range c.spans {
		if s.service == service && s.name == name {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		return tracedSpan{}, false
	}
	return found[0], true
}

// Invariant: with a collector, a trace that nobody began before goes from the request through both services and back, each span
// below the one that caused it.
func TestSpansGoFromTheRequestThroughBothServices(t *testing.T) {
	t.Parallel()
	spans := &spanCollector{}
	server := httptest.NewServer(spans)
	t.Cleanup(server.Close)
	s := startSystem(t, nil, nil)
	for _, svc := range []*service{s.orders, s.billing} {
		svc.terminate(t)()
		svc.process = map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": server.URL, "OTEL_BSP_SCHEDULE_DELAY": "50"}
		svc.start(t)
	}
	s.order(t, "one")
	s.settle(t)
	var request, asked, charged, answered, settled tracedSpan
	stacktest.Eventually(t, patience, "the collector has the five spans", func() (bool, error) {
		var a, b, c, d, e bool
		request, a = spans.find("orders", "POST")
		charged, b = spans.find("billing", "handle orders.charge.requested.v1")
		settled, c = spans.find("orders", "handle billing.charge.succeeded.v1")
		asked, d = spans.find("orders", "publish orders.charge.requested.v1")
		answered, e = spans.find("billing", "publish billing.charge.succeeded.v1")
		return a && b && c && d && e, nil
	})
	// A relay publishes what a request or a handler wrote, and so does the other service handle it.
	for below, above := range map[tracedSpan]tracedSpan{asked: request, charged: request, answered: charged, settled: charged} {
		if below.trace != above.trace || below.parent != above.id {
			t.Errorf("one span is not below the other:\n%+v\n%+v", below, above)
		}
	}
	s.orders.terminate(t)() // with a collector, too, it stops in time
}
