package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncebox/oncebox"
)

// A Sink is where a relay stores events: a log that keeps their order, such as a stream with this relay as its only writer.
// A relay calls it from one goroutine.
//
// Positions are the log's own and grow by one with each event that it stores.
type Sink interface {
	// Open begins a chain of writes behind whatever stands in the log, and returns the log's last position, 0 when it is
	// empty, and when it was made, zero if it does not say. A relay opens the sink at its start and again after each error
	// of Store and Flush. What an older chain has still in flight must not come between the writes of the new one. known is
	// the highest position that the relay knows of: a log that has to be made anew begins above it.
	//
	// A last position before one that Store returned says that the log lost its end; another time of making, that the
	// log is a new one.
	Open(ctx context.Context, known uint64) (last uint64, created time.Time, err error)
	// Last returns what Open does, and leaves the chain as it is.
	Last(ctx context.Context, known uint64) (last uint64, created time.Time, err error)
	// ReadBack calls stored with the id of each event that the log holds behind position after, up to upTo.
	ReadBack(ctx context.Context, after, upTo uint64, stored func(id string)) error
	// Check says why the log can never hold e, whatever its state: the relay parks such an event. It asks nobody.
	Check(e oncebox.Event) error
	// Store appends events in this order, behind those of the calls before, and may return while they are still on their
	// way. stored is how many of the events given since Open are in the log for certain, durably, and all before them with
	// them; last is the log's last position as far as it is known. With an error the log may hold more of them than stored
	// says: the relay opens the sink again and reads back. An event that the log holds already is stored.
	Store(ctx context.Context, events []oncebox.Event) (stored, last uint64, err error)
	// Flush waits until all events given since Open are stored.
	Flush(ctx context.Context) (stored, last uint64, err error)
}

// A Reporter is a [Sink] that tells more of itself. Its methods may be called from any goroutine.
type Reporter interface {
	// Durable says whether what was stored outlasts a loss of power at the log, as of the last Open, and in words why.
	Durable() (ok bool, why string)
	// Refusals is how often the log refused a chain of writes.
	Refusals() uint64
	// Fallbacks is how often events were stored one by one since the log refused them together.
	Fallbacks() uint64
}

// SinkOf returns a Sink over any Watermill publisher, one event a call, with the event's type as topic. Such a log cannot be
// read back: after an outage or a crash the events since the last save are sent again, in order, those of RelayConfig.SaveEvery and of
// the pause until the relay's next look. It refuses nothing for good.
func SinkOf(p message.Publisher) Sink { return &publisherSink{p: p} }

type publisherSink struct {
	p      message.Publisher
	stored uint64
}

// Open has no position to tell: the relay then keeps its own.
func (s *publisherSink) Open(context.Context, uint64) (uint64, time.Time, error) {
	s.stored = 0
	return 0, time.Time{}, nil
}

func (*publisherSink) Last(context.Context, uint64) (uint64, time.Time, error) {
	return 0, time.Time{}, nil
}

func (*publisherSink) ReadBack(context.Context, uint64, uint64, func(string)) error { return nil }

func (*publisherSink) Check(oncebox.Event) error { return nil }

func (s *publisherSink) Store(ctx context.Context, events []oncebox.Event) (uint64, uint64, error) {
	for _, e := range events {
		m := e.Message()
		m.SetContext(ctx)
		if err := s.p.Publish(e.Type, m); err != nil {
			return s.stored, 0, fmt.Errorf("publish %s: %w", e.ID, err)
		}
		s.stored++
	}
	return s.stored, 0, nil
}

func (s *publisherSink) Flush(context.Context) (uint64, uint64, error) { return s.stored, 0, nil }
