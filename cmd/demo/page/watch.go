package page

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/events"
)

// maxPassed is how many messages the page remembers for the journeys: those of five bursts of a thousand orders, in some 2 MiB.
const maxPassed = 10_000

// A passage is where an event stands in its stream.
type passage struct {
	first  uint64
	at     time.Time
	copies int
}

// passages are those of the last messages, by event id: the oldest makes room for the newest.
type passages struct {
	of   map[string]passage
	ids  []string // a ring, in the order in which they came
	next int
}

func newPassages() *passages {
	return &passages{of: make(map[string]passage, maxPassed), ids: make([]string, maxPassed)}
}

// note remembers a message, or that it is a copy of one.
func (p *passages) note(id string, seq uint64, at time.Time) {
	was, again := p.of[id]
	switch {
	case again && seq > was.first:
		was.copies++
		p.of[id] = was
	case !again:
		delete(p.of, p.ids[p.next])
		p.of[id], p.ids[p.next] = passage{first: seq, at: at}, id
		p.next = (p.next + 1) % len(p.ids)
	}
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
	id := strings.Clone(m.Headers().Get(oncebox.HeaderID)) // it is kept, and the message's other headers are not
	p.mu.Lock()
	defer p.mu.Unlock()
	p.passed.note(id, info.Sequence.Stream, info.Timestamp)
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
