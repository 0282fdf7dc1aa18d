package page

import (
	"fmt"
	"html"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/go-analyze/charts"
)

// historyLength is how many seconds the charts show.
const historyLength = 120

// A moment is what the charts are drawn of: counters of the services, as of then.
type moment struct {
	at                             time.Time
	asked, stored, handled         float64 // requests to orders, its events stored, messages that billing handled
	unsent, undelivered, unsettled float64 // in the outbox of orders, before billing, before orders
	requests, deliveries           map[float64]float64
}

// A history is the last moments, the oldest first.
type history struct{ moments []moment }

// add notes what the services said; one that is silent is as it was.
func (h *history) add(at time.Time, metrics []Metrics, desks []desk) {
	m := moment{}
	if len(h.moments) > 0 {
		m = h.moments[len(h.moments)-1]
	}
	m.at = at
	for i, d := range desks {
		said := metrics[i]
		switch {
		case said == nil:
		case d.Name == "orders":
			m.asked, m.stored = sumOf(said, "http_requests_total"), sumOf(said, "oncebox_relay_stored_total")
			m.unsent, m.unsettled = float64(d.Backlog), float64(d.Pending+d.Unacked)
			m.requests = said.buckets("http_request_seconds")
		default:
			m.handled, m.undelivered = sumOf(said, "oncebox_inbox_handled_total"), float64(d.Pending+d.Unacked)
			m.deliveries = said.buckets("oncebox_subscriber_delay_seconds")
		}
	}
	h.moments = append(h.moments[max(0, len(h.moments)-historyLength):], m)
}

func sumOf(m Metrics, name string) float64 { return m.Sum(name, "", "") }

// A chart is one of the console's: its title, what it shows in words, its unit, and each line's name and value at a moment and
// the one before it.
type chart struct {
	ID, title, says, unit string
	lines                 []line
}

type line struct {
	name string
	at   func(before, now moment) float64
}

// perSecond is a counter's growth. One that fell is of a process that was started again, and began at 0.
func perSecond(of func(moment) float64) func(moment, moment) float64 {
	return func(before, now moment) float64 {
		grown := of(now) - of(before)
		if grown < 0 {
			grown = of(now)
		}
		return grown / max(now.at.Sub(before.at).Seconds(), 0.1)
	}
}

func milliseconds(q float64, of func(moment) map[float64]float64) func(moment, moment) float64 {
	return func(before, now moment) float64 {
		was := of(before)
		if of(now)[math.Inf(1)] < was[math.Inf(1)] { // started again
			was = nil
		}
		return 1000 * quantile(q, was, of(now))
	}
}

func requests(m moment) map[float64]float64   { return m.requests }
func deliveries(m moment) map[float64]float64 { return m.deliveries }

var allCharts = []chart{
	{"rate", "Rate", "Requests that orders answered, events that its relay stored, and messages that billing handled, in each second.", "a second", []line{
		{"requests", perSecond(func(m moment) float64 { return m.asked })},
		{"events", perSecond(func(m moment) float64 { return m.stored })},
		{"charges", perSecond(func(m moment) float64 { return m.handled })}}},
	{"lag", "Lag", "Events in the outbox that are not in the stream, messages before billing, and answers before orders.", "messages", []line{
		{"outbox", func(_, now moment) float64 { return now.unsent }},
		{"billing", func(_, now moment) float64 { return now.undelivered }},
		{"answers", func(_, now moment) float64 { return now.unsettled }}}},
	{"latency", "Latency", "How long orders took to answer, at the median and at the 99th percentile, and from a message's storing until billing had handled it.", "ms", []line{
		{"p50", milliseconds(0.5, requests)},
		{"p99", milliseconds(0.99, requests)},
		{"delivery p99", milliseconds(0.99, deliveries)}}},
}

// svg draws the chart. Its colours are the style sheet's: lines have the classes s0, s1, s2, and texts t.
func (c chart) svg(h history) (string, error) {
	data, last := make([][]float64, len(c.lines)), make([]string, len(c.lines))
	names := make([]string, len(c.lines))
	for i, l := range c.lines {
		names[i] = l.name
		for j := 1; j < len(h.moments); j++ {
			data[i] = append(data[i], l.at(h.moments[j-1], h.moments[j]))
		}
		for len(data[i]) < historyLength { // what was before the page was
			data[i] = append([]float64{0}, data[i]...)
		}
		last[i] = fmt.Sprintf("%s %.0f", l.name, data[i][len(data[i])-1])
	}
	p := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: 520, Height: 210})
	o := charts.NewLineChartOptionWithData(data)
	o.Theme, o.Padding = sentinels, charts.NewBoxEqual(4)
	o.Legend.SeriesNames = names
	o.Symbol = charts.Symbol{Shape: charts.SymbolNone}
	o.LineStrokeWidth = 2
	o.ValueFormatter = func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 32) }
	o.XAxis.Show, o.YAxis[0].Min, o.YAxis[0].LabelCount = new(false), new(0.0), 4
	if err := p.LineChart(o); err != nil {
		return "", fmt.Errorf("draw %s: %w", c.ID, err)
	}
	b, err := p.Bytes()
	if err != nil {
		return "", fmt.Errorf("draw %s: %w", c.ID, err)
	}
	return c.named(styled(string(b)), strings.Join(last, ", ")), nil
}

// named gives the drawing its name, and its numbers of now as text.
func (c chart) named(svg, now string) string {
	open, rest, _ := strings.Cut(svg, ">")
	id := "chart-" + c.ID
	return fmt.Sprintf(`%s role="img" aria-labelledby="%s-t" aria-describedby="%s-d"><title id="%s-t">%s, %s</title><desc id="%s-d">%s Now: %s.</desc>%s`,
		open, id, id, id, c.title, c.unit, id, html.EscapeString(c.says), now, rest)
}

// sentinels are colours that stand for what is drawn in them: see styled.
var sentinels = charts.MakeTheme(charts.ThemeOption{
	AxisStrokeColor: sentinel(10), AxisSplitLineColor: sentinel(10), BackgroundColor: charts.ColorTransparent,
	TextColor: sentinel(11), TextColorLegend: sentinel(11), TextColorXAxis: sentinel(11), TextColorYAxis: sentinel(11), TextColorTitle: sentinel(11),
	SeriesColors: []charts.Color{sentinel(1), sentinel(2), sentinel(3)},
})

func sentinel(n uint8) charts.Color { return charts.Color{R: n, G: n, B: n, A: 255} }

var (
	styles    = regexp.MustCompile(`style="([^"]*)"`)
	classOf   = map[string]string{"stroke:rgb(1,1,1)": "s0", "stroke:rgb(2,2,2)": "s1", "stroke:rgb(3,3,3)": "s2", "stroke:rgb(10,10,10)": "axis", "fill:rgb(11,11,11)": "t"}
	styledFor = regexp.MustCompile(`^(stroke-width|font-size|fill:none|stroke:none)`)
)

// styled has classes in place of the style attributes, which the page's policy forbids.
func styled(svg string) string {
	return styles.ReplaceAllStringFunc(svg, func(attr string) string {
		var class string
		var out []string
		for s := range strings.SplitSeq(strings.TrimSuffix(strings.TrimPrefix(attr, `style="`), `"`), ";") {
			if c, ok := classOf[s]; ok {
				class = c
				continue
			}
			if name, value, ok := strings.Cut(s, ":"); ok && styledFor.MatchString(s) {
				out = append(out, fmt.Sprintf(`%s=%q`, name, value))
			}
		}
		if class != "" {
			out = append(out, fmt.Sprintf(`class=%q`, class))
		} else if len(out) == 0 || !strings.Contains(attr, "rgb") {
			out = append(out, `fill="none"`)
		}
		return strings.Join(out, " ")
	})
}
