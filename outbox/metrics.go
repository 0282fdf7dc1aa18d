package outbox

import (
	"github.com/prometheus/client_golang/prometheus"
)

type relayMetrics struct {
	stored, skipped, rounds, failures, truncated prometheus.Counter
	leading, epoch, parked, backlog, oldest      prometheus.Gauge
	wakeups                                      *prometheus.CounterVec
	batchRows, publish                           prometheus.Histogram
}

func newRelayMetrics(r *Relay) *relayMetrics {
	labels := prometheus.Labels{"cursor": r.cfg.Name}
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "oncebox", Subsystem: "relay", Name: name, Help: help, ConstLabels: labels}
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts(opts(name, help)))
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts(opts(name, help)))
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "oncebox", Subsystem: "relay", Name: name, Help: help,
			ConstLabels: labels, Buckets: buckets})
	}
	m := &relayMetrics{
		stored:    counter("stored_total", "Events stored in the log."),
		skipped:   counter("skipped_total", "Events not sent because the log was seen to hold them."),
		rounds:    counter("rounds_total", "Rounds begun."),
		failures:  counter("failures_total", "Outages of the database or the log, and lost leases."),
		truncated: counter("slots_truncated_total", "Slots of the outbox's ring that retention emptied."),
		leading:   gauge("leading", "1 while this relay holds the lease."),
		epoch:     gauge("epoch", "The epoch under which this relay leads or led last."),
		parked:    gauge("parked", "Events that the log can never hold, or that wait for one; of the relay that leads."),
		backlog:   gauge("backlog_rows", "Committed events that are not stored yet, of the relay that leads, as of its last look."),
		oldest:    gauge("oldest_unsent_seconds", "Age of the oldest committed event that is not stored yet, of the relay that leads, as of its last look."),
		wakeups: prometheus.NewCounterVec(prometheus.CounterOpts(opts("wakeups_total", "Looks for new events, by what caused them.")),
			[]string{"cause"}),
		batchRows: histogram("batch_rows", "Events given to the log at once.", prometheus.ExponentialBuckets(1, 2, 11)),
		publish:   histogram("publish_seconds", "From giving events to the log until they are stored.", prometheus.ExponentialBuckets(0.0005, 2, 14)),
	}
	if r.cfg.Registerer == nil {
		return m
	}
	r.cfg.Registerer.MustRegister(m.stored, m.skipped, m.rounds, m.failures, m.truncated, m.leading, m.epoch, m.parked, m.backlog, m.oldest,
		m.wakeups, m.batchRows, m.publish)
	if log, ok := r.sink.(Reporter); ok {
		r.cfg.Registerer.MustRegister(
			prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("durable", "1 where what the log calls stored outlasts a loss of power.")), func() float64 {
				if durable, _ := log.Durable(); durable {
					return 1
				}
				return 0
			}),
			prometheus.NewCounterFunc(prometheus.CounterOpts(opts("refusals_total", "Chains of writes that the log refused.")),
				func() float64 { return float64(log.Refusals()) }),
			prometheus.NewCounterFunc(prometheus.CounterOpts(opts("fallbacks_total", "Times when events were stored one by one after refusals.")),
				func() float64 { return float64(log.Fallbacks()) }))
	}
	return m
}
