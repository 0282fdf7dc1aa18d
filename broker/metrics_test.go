package broker_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// What waits is seen while it waits: behind a handler that stands still.
func TestMetricsTellWhatWaitsAndForHowLong(t *testing.T) {
	t.Parallel()
	r := owned(t)
	reg := prometheus.NewRegistry()
	const held, behind = 4, 6
	s := r.subscriber(func(c *broker.SubscriberConfig) {
		c.Lanes, c.MaxAckPending, c.LookEvery, c.Registerer = 1, held, 5*time.Millisecond, reg
	})
	out, err := s.Subscribe(context.Background(), "test.>")
	must(t, err)
	value := func(name string) float64 { return metric(t, reg, name) }
	began := time.Now()
	r.publish(messages(held+behind, func(int) string { return "k" })...)
	first := <-out
	stacktest.Eventually(t, 10*time.Second, "the metrics tell what waits", func() (bool, error) {
		return value("pending") == behind && value("unacked") == held && value("in_hand") == held, nil
	})
	stacktest.Eventually(t, 10*time.Second, "the oldest message in hand grows old", func() (bool, error) {
		return value("oldest_in_hand_seconds") > 0.1, nil
	})
	if age, most := value("oldest_in_hand_seconds"), time.Since(began).Seconds(); age > most {
		t.Errorf("a message is in hand for %v s, and was published %v s ago", age, most)
	}
	if at := value("looked_at_seconds"); at < float64(began.Unix()) {
		t.Errorf("looked at %v, before the test", at)
	}
	first.Ack()
	for range held + behind - 1 {
		(<-out).Ack()
	}
	stacktest.Eventually(t, 10*time.Second, "the metrics tell that nothing waits", func() (bool, error) {
		return value("pending") == 0 && value("unacked") == 0 && value("in_hand") == 0 && value("oldest_in_hand_seconds") == 0 &&
			value("delay_seconds") == held+behind, nil
	})
}

// What comes again and was handled before is not counted as handled late, as far as its handler says so. A durable that is made
// again hands it out as if for the first time.
func TestWhatWasHandledBeforeIsNoDelay(t *testing.T) {
	t.Parallel()
	r := owned(t)
	reg := prometheus.NewRegistry()
	out, err := r.subscriber(func(c *broker.SubscriberConfig) { c.Registerer = reg }).Subscribe(context.Background(), "test.>")
	must(t, err)
	const n = 5
	r.publish(messages(n, func(int) string { return "k" })...)
	for range n {
		(<-out).Ack()
	}
	r.consumer("all are acknowledged", func(i *jetstream.ConsumerInfo) bool { return i.AckFloor.Stream == n })
	must(t, r.js.DeleteConsumer(context.Background(), "TEST", "group"))
	for i := range n {
		m := <-out
		if d := oncebox.Delivered(m.Context()); d != 1 {
			t.Errorf("message %d is handed out for the %dth time: it has to look like a new one", i, d)
		}
		if i > 0 { // the first one's effect was lost, and is had now
			oncebox.Repeated(m.Context())
		}
		m.Ack()
	}
	stacktest.Eventually(t, 10*time.Second, "all are acknowledged again", func() (bool, error) {
		return metric(t, reg, "acked_total") == 2*n && metric(t, reg, "in_hand") == 0, nil
	})
	if got := metric(t, reg, "delay_seconds"); got != n+1 {
		t.Errorf("%v delays are counted of %d messages, one of which was handled twice", got, n)
	}
}

// metric is the value of a gauge or a counter, or how often a histogram has counted.
func metric(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	must(t, err)
	for _, f := range families {
		if f.GetName() == "oncebox_subscriber_"+name {
			m := f.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
