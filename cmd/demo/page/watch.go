package page

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/events"
)

// maxPassed is how many messages the page remembers for the journeys.
const maxPassed = 50_000

// A passage is where an event stands in its stream.
type passage struct {
	first  uint64
	at     time.Time
	copies int
}

// watch reads both streams beside the services, as consumers that leave no trace.
func (p *Page) watch(ctx context.Context) (stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, f := range stops {
			f()
		}
	}
	for _, name := range []string{events.OrdersStream, events.BillingStream} {
		consumer, err := p.lab.JetStream.OrderedConsumer(ctx, name, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverNewPolicy})
		if err != nil {
			stop()
			return nil, fmt.Errorf("watch %s: %w", name, err)
		}
		consuming, err := consumer.Consume(func(m jetstream.Msg) { p.saw(name, m) })
		if err != nil {
			stop()
			return nil, fmt.Errorf("watch %s: %w", name, err)
		}
		stops = append(stops, consuming.Stop)
	}
	return stop, nil
}

// saw remembers a message, and tells those of the run from their copies.
func (p *Page) saw(stream string, m jetstream.Msg) {
	info, err := m.Metadata()
	if err != nil {
		return // no message of a stream
	}
	id := m.Headers().Get(oncebox.HeaderID)
	p.mu.Lock()
	defer p.mu.Unlock()
	was, again := p.passed[id]
	switch {
	case again && info.Sequence.Stream > was.first:
		was.copies++
		p.passed[id] = was
	case len(p.passed) < maxPassed:
		p.passed[id] = passage{first: info.Sequence.Stream, at: info.Timestamp}
	}
	r := p.run
	if stream != events.OrdersStream || !bytes.Contains(m.Data(), []byte(r.customers())) {
		return
	}
	if r.published[id] {
		r.copies++
	}
	r.published[id] = true
	p.touch()
}
