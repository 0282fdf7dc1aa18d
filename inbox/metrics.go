package inbox

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	handled, noops, unknown, retried, held, outages, pruned prometheus.Counter
	dead                                                    *prometheus.CounterVec
	groupSize                                               prometheus.Histogram
	forgotten                                               prometheus.Gauge
	inHand                                                  inHand
}

func newMetrics(cfg Config) *metrics {
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "oncebox", Subsystem: "inbox", Name: name, Help: help,
			ConstLabels: prometheus.Labels{"consumer": cfg.Consumer}}
	}
	m := &metrics{
		handled: prometheus.NewCounter(opts("handled_total", "Messages whose effect was committed.")),
		noops:   prometheus.NewCounter(opts("noops_total", "Messages that were done before and changed nothing.")),
		unknown: prometheus.NewCounter(opts("unknown_total", "Messages of a type that the handler does not know.")),
		retried: prometheus.NewCounter(opts("retried_total", "Messages that went back to the broker, to come again.")),
		held:    prometheus.NewCounter(opts("held_total", "Times that a message went back for want of its predecessor.")),
		outages: prometheus.NewCounter(opts("outages_total", "Transactions that found the database away and were tried again.")),
		pruned:  prometheus.NewCounter(opts("pruned_total", "Messages that were forgotten.")),
		dead:    prometheus.NewCounterVec(opts("dead_total", "Messages that became dead letters."), []string{"class"}),
		groupSize: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "oncebox", Subsystem: "inbox",
			Name: "group_size", Help: "Messages that were to be handled in one transaction.",
			ConstLabels: prometheus.Labels{"consumer": cfg.Consumer}, Buckets: []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000}}),
		forgotten: prometheus.NewGauge(prometheus.GaugeOpts(opts("forgotten_seconds",
			"How much older messages may be that still come than what is remembered; 0: all that may come is."))),
		inHand: inHand{since: map[*delivery]time.Time{}},
	}
	if cfg.Registerer != nil {
		oldest := prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("oldest_in_hand_seconds", "How long the oldest message in hand has been there.")), m.inHand.oldest)
		cfg.Registerer.MustRegister(m.handled, m.noops, m.unknown, m.retried, m.held, m.outages, m.pruned, m.dead, m.groupSize, m.forgotten, oldest)
	}
	return m
}

// inHand are the messages that are being handled.
type inHand struct {
	mu    sync.Mutex
	since map[*delivery]time.Time
}

func (h *inHand) add(d *delivery) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.since[d] = d.since
}

func (h *inHand) remove(d *delivery) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.since, d)
}

// oldest is the age of the oldest in seconds, 0 if there is none.
func (h *inHand) oldest() float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	var age time.Duration
	for _, since := range h.since {
		age = max(age, time.Since(since))
	}
	return age.Seconds()
}
