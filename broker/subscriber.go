package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
)

// SubscriberConfig configures a [Subscriber].
type SubscriberConfig struct {
	// Stream holds the topics. Its owner creates it; a subscriber waits until it is there. Required.
	Stream string
	// Group is the consumer group: subscribers of one group share the messages of a topic, each group gets all of them,
	// from the stream's first message on. It is the durable consumer's name, so it must not hold dots, stars or spaces,
	// and a group takes one topic of a stream. Required.
	Group string
	// Lanes is how many messages are in handlers at once. Messages of one key share a lane, so that they are handled one
	// after the other; a handler that calls [oncebox.Taken] is handed the next one meanwhile. Default 16.
	Lanes int
	// MaxBytes bounds the messages in hand, in bytes on the wire. A message
	// above it comes alone. Default 16 MiB.
	MaxBytes int
	// MaxAckPending is how many messages the broker hands out to the whole group before it waits for acknowledgements. Nacked
	// ones count until they are done. Default 256.
	MaxAckPending int
	// AckWait is after how long without a sign of life the broker hands a message out again. While a message is in hand
	// the subscriber gives that sign three times as often. Default 30 s.
	AckWait time.Duration
	// MinRetry and MaxRetry bound the pause before a nacked message comes again: doubled each time, with jitter. Attempts to
	// reach the broker are MinRetry to 2 s apart. Default 100 ms and 30 s.
	MinRetry, MaxRetry time.Duration
	// CloseTimeout bounds how long Close waits for messages in hand. Default 30 s.
	CloseTimeout time.Duration
	// LookEvery is how often the broker is asked how far the group is, for the metrics. Default 5 s.
	LookEvery time.Duration
	// Logger hears of outages. Default slog.Default().
	Logger *slog.Logger
	// Registerer gets the subscriber's metrics. Default: none does.
	Registerer prometheus.Registerer
}

func (c SubscriberConfig) withDefaults() SubscriberConfig {
	if c.Lanes == 0 {
		c.Lanes = 16
	}
	if c.MaxAckPending == 0 {
		c.MaxAckPending = 256
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = 16 << 20
	}
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{{&c.AckWait, 30 * time.Second}, {&c.MinRetry, 100 * time.Millisecond}, {&c.MaxRetry, 30 * time.Second},
		{&c.CloseTimeout, 30 * time.Second}, {&c.LookEvery, 5 * time.Second}} {
		if *d.value == 0 {
			*d.value = d.def
		}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

func (c SubscriberConfig) validate() error {
	switch {
	case c.Stream == "":
		return errors.New("broker: SubscriberConfig.Stream is required")
	case c.Group == "" || strings.ContainsAny(c.Group, ".*> /\\\t\r\n"):
		return fmt.Errorf("broker: SubscriberConfig.Group %q cannot be a durable consumer's name", c.Group)
	case c.Lanes < 1:
		return fmt.Errorf("broker: SubscriberConfig.Lanes is %d, below 1", c.Lanes)
	case c.MaxAckPending < c.Lanes:
		return fmt.Errorf("broker: SubscriberConfig.MaxAckPending, %d, is below Lanes, %d", c.MaxAckPending, c.Lanes)
	case c.MaxBytes < 64<<10:
		return fmt.Errorf("broker: SubscriberConfig.MaxBytes is %d, below 64 KiB", c.MaxBytes)
	case c.CloseTimeout < 0 || c.LookEvery < 0:
		return fmt.Errorf("broker: SubscriberConfig: CloseTimeout %s and LookEvery %s must not be below 0", c.CloseTimeout, c.LookEvery)
	case c.AckWait < 0 || c.MinRetry < 0 || c.MaxRetry < c.MinRetry:
		return fmt.Errorf("broker: SubscriberConfig: AckWait %s, MinRetry %s and MaxRetry %s do not fit", c.AckWait, c.MinRetry, c.MaxRetry)
	}
	return nil
}

// checkEvery is how often the durable is looked at while nothing seems to be wrong.
const checkEvery = time.Minute

// maxPullPause is how late a stream or a broker that is there again may be noticed.
const maxPullPause = 2 * time.Second

// A Subscriber is Watermill's, on a durable pull consumer. Delivery is at least once. A message is acknowledged after its
// handler acked it, and handed out again, later and later, after a nack. Messages of a key are handled in the stream's order
// as long as nothing is redelivered; a redelivered one comes behind its successors.
//
// A durable that is deleted is made again and starts from the stream's first message, since nobody knows any more what was
// acknowledged: an inbox makes that harmless. One that is ahead of its stream, because the stream lost its end, is made again
// from where the two still agree, so that what is stored in the lost messages' places is not skipped.
type Subscriber struct {
	js      jetstream.JetStream
	nc      *nats.Conn
	cfg     SubscriberConfig
	metrics *subscriberMetrics
	closing chan struct{} // pulling ends
	late    chan struct{} // waiting for messages in hand ends

	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// ErrClosed is what Subscribe returns after Close.
var ErrClosed = errors.New("broker: the subscriber is closed")

// NewSubscriber returns a Subscriber, or an error that names the option that is wrong. It does not touch the broker yet.
func NewSubscriber(nc *nats.Conn, cfg SubscriberConfig) (*Subscriber, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	return &Subscriber{js: js, nc: nc, cfg: cfg, metrics: newSubscriberMetrics(cfg), closing: make(chan struct{}), late: make(chan struct{})}, nil
}

// Subscribe hands out the messages of topic, a subject that may hold wildcards. It returns at once and goes on for as long
// as it takes to reach the broker and the stream. The channel is closed after Close, or when ctx is done, once each message
// that was handed out is acked or nacked, or CloseTimeout is over; the messages' contexts end then too.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	out := make(chan *message.Message)
	s.wg.Go(func() {
		defer close(out)
		s.run(ctx, topic, out)
	})
	return out, nil
}

// Close stops pulling, waits until each message in hand is handed out and acked or nacked, for CloseTimeout at most, and sends
// what it owes to the broker. What nobody took by then goes back; what is still in a handler comes again after AckWait. Later
// calls wait for the first.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
		late := time.AfterFunc(s.cfg.CloseTimeout, func() { close(s.late) })
		defer late.Stop()
	}
	s.mu.Unlock()
	s.wg.Wait()
	if !s.nc.IsConnected() {
		return nil // what is not acknowledged comes again
	}
	if err := s.nc.FlushTimeout(5 * time.Second); err != nil {
		return fmt.Errorf("broker: flush the acknowledgements: %w", err)
	}
	return nil
}

// run pulls until the end, whatever becomes of the broker, the stream or the durable meanwhile.
func (s *Subscriber) run(ctx context.Context, topic string, out chan<- *message.Message) {
	h := newHand(ctx, s, out)
	s.metrics.hand.Store(h)
	alive, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	go h.keepAlive(alive)
	defer h.empty()

	pull, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-s.closing:
			cancel()
		case <-pull.Done():
		}
	}()
	for attempt := 1; ; attempt++ {
		began := time.Now()
		err := s.pull(pull, topic, h)
		if pull.Err() != nil {
			return
		}
		if time.Since(began) > s.cfg.MaxRetry {
			attempt = 1
		}
		pause := min(s.backoff(attempt), maxPullPause)
		s.cfg.Logger.Warn("broker: pulling again", "stream", s.cfg.Stream, "group", s.cfg.Group, "in", pause, "error", err)
		select {
		case <-pull.Done():
			return
		case <-time.After(pause):
		}
	}
}

// pull makes the durable where it is missing and puts messages in hand until it fails or ctx is done.
func (s *Subscriber) pull(ctx context.Context, topic string, h *hand) error {
	var (
		checked  = s.nc.Stats().Reconnects - 1
		at       time.Time
		tooLarge bool
	)
	watched, stop := context.WithCancel(ctx)
	defer stop()
	go s.metrics.watch(watched, s.js, s.cfg)
	asked, err := newRequests(s.nc)
	if err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	defer asked.close(h.take)
	for ctx.Err() == nil {
		if connects := s.nc.Stats().Reconnects; connects != checked || time.Since(at) > checkEvery {
			if err := s.durable(ctx, topic, &h.seen); err != nil {
				return err
			}
			checked, at = connects, time.Now()
		}
		room := h.room(ctx)
		if room == 0 {
			break
		}
		began := time.Now()
		most := room
		if tooLarge {
			most = 0
		}
		n, err := asked.ask(s.cfg.Stream, s.cfg.Group, most, h.take)
		if err != nil {
			return fmt.Errorf("pull: %w", err)
		}
		// The broker answers at once that the next message does not fit. It comes when there is more room, and alone when all
		// the room there is was not enough.
		early := n == 0 && time.Since(began) < pullWait/2
		if tooLarge = early && room == s.cfg.MaxBytes; early && !tooLarge {
			h.wait(ctx)
		}
	}
	return ctx.Err()
}

// backoff is the pause before the n-th repetition: full jitter over the upper half of an exponential.
func (s *Subscriber) backoff(n int) time.Duration {
	d := s.cfg.MaxRetry
	if n < 32 {
		d = min(d, s.cfg.MinRetry<<(n-1))
	}
	return d/2 + rand.N(d/2+1)
}
