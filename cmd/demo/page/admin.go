package page

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// An Admin is a service's admin listener, as an operator asks it. Token goes with what the listener does not do for everybody;
// it stays on this side of the page.
type Admin struct {
	Name, URL, Token string
}

// admins is for questions that are answered at once or not at all: a process may be stopped.
var admins = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// refusal is what an admin listener answered instead of what it was asked for.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

// ask sends a request and reads the JSON of its answer into v, where v is not nil.
func (a Admin) ask(ctx context.Context, method, path string, query url.Values, v any) error {
	body, err := a.do(ctx, method, path+"?"+query.Encode())
	if err != nil || v == nil {
		return err
	}
	return json.Unmarshal(body, v)
}

func (a Admin) do(ctx context.Context, method, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, a.URL+path, nil)
	if err != nil {
		return nil, err
	}
	if a.Token != "" && method != http.MethodGet {
		req.Header.Set("Authorization", "Bearer "+a.Token)
	}
	res, err := admins.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", a.Name, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", a.Name, err)
	}
	if res.StatusCode != http.StatusOK {
		var problem struct{ Title, Detail string }
		text := string(body)
		if json.Unmarshal(body, &problem) == nil && problem.Title != "" {
			text = problem.Title + ": " + problem.Detail
		}
		return nil, &refusal{res.StatusCode, a.Name + ": " + text}
	}
	return body, nil
}

// Ready tells whether the service serves.
func (a Admin) Ready(ctx context.Context) bool {
	_, err := a.do(ctx, http.MethodGet, "/readyz")
	return err == nil
}

// Metrics are a service's, of one moment.
type Metrics map[string]*dto.MetricFamily

// Metrics asks for all.
func (a Admin) Metrics(ctx context.Context) (Metrics, error) {
	body, err := a.do(ctx, http.MethodGet, "/metrics")
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("metrics of %s: %w", a.Name, err)
	}
	return families, nil
}

// Sum is the sum over the counters and gauges of that name which have this label, or all of them for none.
func (m Metrics) Sum(name, label, value string) float64 {
	sum := 0.0
	for _, s := range m[name].GetMetric() {
		has := label == ""
		for _, l := range s.GetLabel() {
			has = has || l.GetName() == label && l.GetValue() == value
		}
		if has {
			sum += s.GetCounter().GetValue() + s.GetGauge().GetValue()
		}
	}
	return sum
}

// buckets are the counts of a histogram by their upper bounds, of all its series together.
func (m Metrics) buckets(name string) map[float64]float64 {
	counts := map[float64]float64{}
	for _, s := range m[name].GetMetric() {
		for _, b := range s.GetHistogram().GetBucket() {
			counts[b.GetUpperBound()] += float64(b.GetCumulativeCount())
		}
	}
	return counts
}

// quantile is the upper bound of the bucket in which the share q of what was counted between two moments ends, 0 if nothing
// was. Above the last bound it is the last.
func quantile(q float64, before, now map[float64]float64) float64 {
	all := now[math.Inf(1)] - before[math.Inf(1)]
	if all <= 0 {
		return 0
	}
	least, last := math.Inf(1), 0.0
	for bound, n := range now {
		if math.IsInf(bound, 1) {
			continue
		}
		last = max(last, bound)
		if n-before[bound] >= q*all {
			least = min(least, bound)
		}
	}
	return min(least, last)
}
