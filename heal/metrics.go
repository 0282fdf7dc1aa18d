package heal

import "github.com/prometheus/client_golang/prometheus"

type auditMetrics struct {
	resent prometheus.Counter
	differ *prometheus.GaugeVec
	failed *prometheus.CounterVec
}

func newAuditMetrics(reg prometheus.Registerer) *auditMetrics {
	m := &auditMetrics{
		resent: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "oncebox", Subsystem: "heal", Name: "resent_total",
			Help: "Events given to the relay to be sent again, since their consumer did not have them."}),
		differ: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "oncebox", Subsystem: "heal", Name: "different",
			Help: "Events in which outbox and inbox differed at the last look, by kind: missing, too_old, unknown, conflict."}, []string{"consumer", "kind"}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "oncebox", Subsystem: "heal", Name: "failures_total",
			Help: "Comparisons that could not be made."}, []string{"consumer"}),
	}
	if reg != nil {
		reg.MustRegister(m.resent, m.differ, m.failed)
	}
	return m
}

func (m *auditMetrics) observe(r Report) {
	if r.Error != "" {
		m.failed.WithLabelValues(r.Consumer).Inc()
		return
	}
	for kind, n := range map[string]int{"missing": r.Missing - r.TooOld, "too_old": r.TooOld, "unknown": r.Unknown, "conflict": r.Conflicts} {
		m.differ.WithLabelValues(r.Consumer, kind).Set(float64(n))
	}
}
