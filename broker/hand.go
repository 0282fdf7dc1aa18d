package broker

import (
	"context"
	"fmt"
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/internal/crash"
)

// A holding is what is known of a message in hand.
type holding struct {
	size  int // in bytes
	since time.Time
}

// A hand holds the messages that the broker has handed out, in lanes by key.
type hand struct {
	s     *Subscriber
	ctx   context.Context // of the subscription: when it is done, nobody may be listening any more
	out   chan<- *message.Message
	lanes []chan *nats.Msg
	seed  maphash.Seed
	wg    sync.WaitGroup
	seen  seen

	mu    sync.Mutex
	held  map[*nats.Msg]holding // for keepAlive, room and the metrics
	bytes int
	freed chan struct{} // a message has left

	unsent int       // acknowledgements, since toldAt
	toldAt time.Time // when that was logged
}

func newHand(ctx context.Context, s *Subscriber, out chan<- *message.Message) *hand {
	h := &hand{s: s, ctx: ctx, out: out, lanes: make([]chan *nats.Msg, s.cfg.Lanes), seed: maphash.MakeSeed(),
		held: map[*nats.Msg]holding{}, freed: make(chan struct{}, 1)}
	for i := range h.lanes {
		lane := make(chan *nats.Msg, s.cfg.MaxAckPending) // as many as the broker hands out: take hardly ever waits
		h.lanes[i] = lane
		h.wg.Go(func() {
			for m := range lane {
				h.handle(m)
			}
		})
	}
	return h
}

// empty waits until everything in hand is done.
func (h *hand) empty() {
	for _, lane := range h.lanes {
		close(lane)
	}
	h.wg.Wait()
}

// room waits until at least half of MaxBytes is free and returns how much is; 0 when ctx is done.
func (h *hand) room(ctx context.Context) int {
	for ctx.Err() == nil {
		h.mu.Lock()
		free := h.s.cfg.MaxBytes - h.bytes
		h.mu.Unlock()
		if 2*free >= h.s.cfg.MaxBytes {
			return free
		}
		h.wait(ctx)
	}
	return 0
}

// wait returns when a message has left the hand, and after a while.
func (h *hand) wait(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-h.freed:
	case <-time.After(pullWait):
	}
}

// take puts a message in its key's lane. Messages without a key share one.
func (h *hand) take(m *nats.Msg) {
	h.seen.note(m)
	size := len(m.Data) + len(m.Subject) + len(m.Reply)
	for name, values := range m.Header {
		for _, v := range values {
			size += len(name) + len(v) + len(": \r\n")
		}
	}
	h.mu.Lock()
	h.held[m] = holding{size: size, since: time.Now()}
	h.bytes += size
	h.mu.Unlock()
	lane := maphash.String(h.seed, m.Header.Get(oncebox.HeaderKey)) % uint64(len(h.lanes))
	h.lanes[lane] <- m
}

func (h *hand) leave(m *nats.Msg) {
	h.mu.Lock()
	h.bytes -= h.held[m].size
	delete(h.held, m)
	h.mu.Unlock()
	select {
	case h.freed <- struct{}{}:
	default:
	}
}

// handle hands m out and returns when its lane may go on: it is acked or nacked, or its handler has put it in order.
func (h *hand) handle(m *nats.Msg) {
	delivered, stored := 1, time.Now()
	if meta, err := m.Metadata(); err == nil {
		delivered, stored = int(meta.NumDelivered), meta.Timestamp
	}
	if delivered > 1 {
		h.s.metrics.redelivered.Inc()
	}
	ctx, cancel := context.WithCancel(oncebox.WithDelivered(h.ctx, delivered))
	taken := make(chan struct{})
	ctx = oncebox.WithTaken(ctx, sync.OnceFunc(func() { close(taken) }))
	var repeated atomic.Bool
	ctx = oncebox.WithRepeated(ctx, func() { repeated.Store(true) })
	wm := watermillMessage(m)
	wm.SetContext(ctx)
	select {
	case h.out <- wm:
	case <-h.ctx.Done():
		wm.Nack()
	case <-h.s.late:
		wm.Nack()
	}
	end := func() {
		defer cancel()
		defer h.leave(m)
		if h.settle(m, wm, delivered) && !repeated.Load() { // one that comes again after a year was not handled a year late
			h.s.metrics.delay.Observe(time.Since(stored).Seconds())
		}
	}
	select {
	case <-wm.Acked():
		end()
	case <-wm.Nacked():
		end()
	case <-taken:
		h.wg.Go(end)
	case <-h.s.late:
		end()
	}
}

// settle tells the broker what the handler said of a message, and returns whether it was acked.
func (h *hand) settle(m *nats.Msg, wm *message.Message, delivered int) (acked bool) {
	select {
	case <-wm.Acked():
	case <-wm.Nacked():
	case <-h.s.late:
	}
	var err error
	select {
	case <-wm.Acked():
		acked = true
		if err = crash.Before("broker-ack"); err == nil {
			err = crash.After("broker-ack", m.Ack())
		}
		h.s.metrics.acked.Inc()
	case <-wm.Nacked():
		if err = crash.Before("broker-nak"); err == nil {
			err = crash.After("broker-nak", m.NakWithDelay(h.s.backoff(delivered)))
		}
		h.s.metrics.nacked.Inc()
	default:
		h.s.cfg.Logger.Warn("broker: closed with a message in its handler", "stream", h.s.cfg.Stream, "group", h.s.cfg.Group, "message", wm.UUID)
	}
	if err != nil { // it comes again after AckWait
		h.notSent(err)
	}
	return acked
}

// notSent tells of acknowledgements that the broker does not get, in one line a second: when it is away that is each one.
func (h *hand) notSent(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unsent++
	if time.Since(h.toldAt) < time.Second {
		return
	}
	h.s.cfg.Logger.Warn("broker: acknowledgements not sent", "stream", h.s.cfg.Stream, "group", h.s.cfg.Group, "messages", h.unsent, "error", err)
	h.unsent, h.toldAt = 0, time.Now()
}

// count is how many messages are in hand, and for how many seconds the oldest is.
func (h *hand) count() (n, oldest float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, held := range h.held {
		oldest = max(oldest, time.Since(held.since).Seconds())
	}
	return float64(len(h.held)), oldest
}

// keepAlive tells the broker that the messages in hand are being worked on, so that it does not hand them out again meanwhile.
func (h *hand) keepAlive(ctx context.Context) {
	t := time.NewTicker(max(h.s.cfg.AckWait/3, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		h.mu.Lock()
		held := make([]*nats.Msg, 0, len(h.held))
		for m := range h.held {
			held = append(held, m)
		}
		h.mu.Unlock()
		for _, m := range held {
			_ = m.InProgress() // if it does not arrive, the message comes again
		}
	}
}

// watermillMessage never fails: what it cannot carry as it came is marked, and [oncebox.Decode] says why.
func watermillMessage(m *nats.Msg) *message.Message {
	headers := m.Header
	id := headers.Get(oncebox.HeaderID)
	if id == "" {
		id = headers.Get(nats.MsgIdHdr)
	}
	wm := message.NewMessage(id, m.Data)
	for name, values := range headers {
		wm.Metadata[name] = strings.Join(values, ", ")
		if len(values) > 1 && strings.HasPrefix(strings.ToLower(name), "ce-") {
			wm.Metadata[oncebox.HeaderRefused] = fmt.Sprintf("header %s is sent %d times", name, len(values))
		}
	}
	return wm
}
