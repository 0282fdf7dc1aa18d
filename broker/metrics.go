package broker

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
)

type subscriberMetrics struct {
	acked, nacked, redelivered prometheus.Counter
	delay                      prometheus.Histogram
	pending, unacked, lookedAt prometheus.Gauge
	inHand                     prometheus.Collector
	oldest                     prometheus.Collector
	hand                       atomic.Pointer[hand] // the subscription's; nil before and after
}

func newSubscriberMetrics(cfg SubscriberConfig) *subscriberMetrics {
	labels := prometheus.Labels{"stream": cfg.Stream, "group": cfg.Group}
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "oncebox", Subsystem: "subscriber", Name: name, Help: help, ConstLabels: labels}
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts(opts(name, help)))
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts(opts(name, help)))
	}
	m := &subscriberMetrics{
		acked:       counter("acked_total", "Messages acknowledged."),
		nacked:      counter("nacked_total", "Messages given back, to come again."),
		redelivered: counter("redelivered_total", "Messages received that had been handed out before."),
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "oncebox", Subsystem: "subscriber", Name: "delay_seconds",
			Help: "From a message's storing in the stream to the end of its handling; what had been handled before is not counted.", ConstLabels: labels,
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10)}),
		pending:  gauge("pending", "Messages in the stream that the group was not handed yet, as of looked_at_seconds."),
		unacked:  gauge("unacked", "Messages that the group was handed and has not acknowledged, as of looked_at_seconds."),
		lookedAt: gauge("looked_at_seconds", "When the broker was last asked for pending and unacked, in Unix time."),
	}
	m.inHand = prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("in_hand", "Messages that this process holds, waiting or in a handler.")),
		func() float64 { n, _ := m.held(); return n })
	m.oldest = prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("oldest_in_hand_seconds", "How long this process holds the message that it holds longest; 0: none.")),
		func() float64 { _, age := m.held(); return age })
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(m.acked, m.nacked, m.redelivered, m.delay, m.pending, m.unacked, m.lookedAt, m.inHand, m.oldest)
	}
	return m
}

// held counts what is in hand, and says for how many seconds the oldest of it is.
func (m *subscriberMetrics) held() (n, oldest float64) {
	h := m.hand.Load()
	if h == nil {
		return 0, 0
	}
	return h.count()
}

// watch asks the broker every so often how far the group is, also while all of its handlers stand still.
func (m *subscriberMetrics) watch(ctx context.Context, js jetstream.JetStream, cfg SubscriberConfig) {
	t := time.NewTicker(cfg.LookEvery)
	defer t.Stop()
	for {
		if c, err := js.Consumer(ctx, cfg.Stream, cfg.Group); err == nil { // looked_at_seconds tells when it does not work
			info := c.CachedInfo()
			m.pending.Set(float64(info.NumPending))
			m.unacked.Set(float64(info.NumAckPending))
			m.lookedAt.SetToCurrentTime()
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
