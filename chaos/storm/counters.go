package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// counters are what a program counted, over all of its processes. What a process counted after it was last asked is lost with it:
// each is a lower bound. No promise is judged by them, only whether a guard had work.
type counters struct {
	mu   sync.Mutex
	past map[string]float64 // of processes that are gone
	last map[string]float64 // of the one of now, when last asked
}

// next begins with a new process.
func (c *counters) next() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.past == nil {
		c.past = map[string]float64{}
	}
	for name, v := range c.last {
		c.past[name] += v
	}
	c.last = nil
}

func (c *counters) set(last map[string]float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = last
}

func (c *counters) total(name string) float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.past[name] + c.last[name]
}

// gauge is what the process of now said last.
func (c *counters) gauge(name string) float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last[name]
}

// look asks the process of now for all that it counts. Series of a name are summed, also by outcome, class and kind: name/outcome.
func (p *program) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	asked := p.now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.admin+"/metrics", nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: /metrics: %s", p.name, res.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(res.Body)
	if err != nil {
		return err
	}
	sums := map[string]float64{}
	for name, f := range families {
		if strings.HasPrefix(name, "go_") && name != "go_goroutines" {
			continue
		}
		for _, m := range f.GetMetric() {
			v := value(m)
			sums[name] += v
			for _, l := range m.GetLabel() {
				switch l.GetName() {
				case "outcome", "class", "kind":
					sums[name+"/"+l.GetValue()] += v
				}
			}
		}
	}
	if p.now() == asked { // else what it told goes to the wrong account
		p.counters.set(sums)
	}
	return nil
}

func value(m *dto.Metric) float64 { return m.GetCounter().GetValue() + m.GetGauge().GetValue() }

// counted is the sum over all programs, or those of a service.
func (w *world) counted(name string) (sum int) {
	for _, p := range w.programs {
		sum += int(p.counters.total(name))
	}
	return sum
}
