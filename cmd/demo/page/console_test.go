package page

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// Where the services run in containers the link's loss still works, and what kills says why it does not.
func TestWithoutPowerOverProcessesAFaultSaysWhy(t *testing.T) {
	t.Parallel()
	p := New(Lab{Containers: true}, Settings{})
	off := map[string]bool{}
	for _, f := range p.Faults() {
		off[f.ID] = f.Off != ""
	}
	for _, c := range p.Chapters() {
		off[c.ID] = c.Off != ""
	}
	for id, want := range map[string]bool{
		"kill-billing": true, "kill-orders": true, "kill-relay": true, "killer": true, "pause-nats": true, "roll-back": true, "cut-postgres": true,
		"duplicates": true, "poison": false, "lost-reply": false, "keys": false, "unique": false, "outbox": true,
	} {
		if got, known := off[id]; !known || got != want {
			t.Errorf("%s: off is %t, want %t", id, got, want)
		}
	}
	if err := p.Break("kill-billing"); err == nil || p.busy != "" {
		t.Errorf("a fault without power gave %v", err)
	}
}

// An operator's order from another origin reaches no service.
func TestOperatingFromElsewhereIsRefused(t *testing.T) {
	t.Parallel()
	asked := 0
	admin := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	t.Cleanup(admin.Close)
	p := New(Lab{Admins: []Admin{{Name: "billing", URL: admin.URL, Token: "secret"}}}, Settings{})
	for name, value := range map[string]string{"Origin": "https://elsewhere.example", "Sec-Fetch-Site": "cross-site"} {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/api/operate", strings.NewReader(`{"service":"billing","kind":"letter","do":"drop","n":1}`))
		req.Host = address
		req.Header.Set(name, value)
		res := httptest.NewRecorder()
		p.Handler(address).ServeHTTP(res, req)
		if res.Code != http.StatusForbidden || asked != 0 {
			t.Errorf("%s: %d, the service was asked %d times", name, res.Code, asked)
		}
	}
	for _, o := range []order{{Service: "elsewhere", Kind: "letter", Do: "drop", N: 1}, {Service: "billing", Kind: "letter", Do: "burn", N: 1}, {Service: "billing", Kind: "parked", Do: "drop"}} {
		if _, err := o.send(t.Context(), Admin{URL: admin.URL}); o.Kind == "parked" && !errors.Is(err, errUnknown) {
			t.Errorf("%+v: %v", o, err)
		}
		if _, err := p.operate(t.Context(), o); !errors.Is(err, errUnknown) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestQuantileIsOfWhatWasCountedBetween(t *testing.T) {
	t.Parallel()
	inf := math.Inf(1)
	before := map[float64]float64{0.1: 1000, 1: 1000, 10: 1000, inf: 1000}
	now := map[float64]float64{0.1: 1050, 1: 1098, 10: 1099, inf: 1100}
	for q, want := range map[float64]float64{0.5: 0.1, 0.9: 1, 0.99: 10, 1: 10} {
		if got := quantile(q, before, now); got != want {
			t.Errorf("%g: %g, want %g", q, got, want)
		}
	}
	if got := quantile(0.5, now, now); got != 0 {
		t.Errorf("of nothing: %g", got)
	}
}

// A chart is XML, has a name and its numbers as text, and no style attribute, which the page's policy would have the browser drop.
func TestAChartIsNamedAndHasNoStyle(t *testing.T) {
	t.Parallel()
	var h history
	at := time.Unix(0, 0)
	for i := range 500 {
		h.add(at.Add(time.Duration(i)*time.Second), []Metrics{nil, nil}, []desk{{Name: "orders", Backlog: int64(i)}, {Name: "billing"}})
	}
	if len(h.moments) > historyLength+1 {
		t.Errorf("%d moments are kept", len(h.moments))
	}
	for _, c := range allCharts {
		svg, err := c.svg(h)
		if err != nil {
			t.Fatal(err)
		}
		for d := xml.NewDecoder(strings.NewReader(svg)); ; {
			if _, err := d.Token(); err != nil {
				if !errors.Is(err, io.EOF) {
					t.Errorf("%s: %v", c.ID, err)
				}
				break
			}
		}
		for _, want := range []string{"<title ", "<desc ", " Now: ", `role="img"`, `class="s0"`, `class="s1"`, `class="s2"`, `class="t"`} {
			if !strings.Contains(svg, want) {
				t.Errorf("%s has no %s", c.ID, want)
			}
		}
		if strings.Contains(svg, "style=") || strings.Contains(svg, "rgb(") {
			t.Errorf("%s has styles of its own", c.ID)
		}
	}
}
