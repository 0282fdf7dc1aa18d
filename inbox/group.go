package inbox

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncebox/oncebox"
)

// GroupConfig configures [Inbox.Group].
type GroupConfig struct {
	// Max is how many messages a group has at most. Default 100.
	Max int
	// Linger is how long a group that is not full waits for more. Default 0, not at all: a group takes what came while the one before it
	// ran, and so they grow with the load by themselves. More makes fewer transactions of a load between, and each message late.
	Linger time.Duration
	// Lanes is how many groups run at once, each on one connection. Messages of a key share a lane. Default 4.
	Lanes int
}

func (c GroupConfig) withDefaults() (GroupConfig, error) {
	if c.Max == 0 {
		c.Max = 100
	}
	if c.Lanes == 0 {
		c.Lanes = 4
	}
	switch {
	case c.Max < 1 || c.Max > 10000:
		return c, fmt.Errorf("inbox: GroupConfig.Max is %d, not within 1 and 10,000", c.Max)
	case c.Linger < 0:
		return c, fmt.Errorf("inbox: GroupConfig.Linger is %s, below 0", c.Linger)
	case c.Lanes < 1:
		return c, fmt.Errorf("inbox: GroupConfig.Lanes is %d, below 1", c.Lanes)
	}
	return c, nil
}

// Group handles the messages in hand together: inbox rows, effects and dead letters of a group commit in one transaction. It
// returns nil for a message as [Inbox.One] does, so nothing is acknowledged before its group's commit, and an error of one
// message takes none of the others with it.
//
// # How messages come in groups
//
// A subscriber hands over one message at a time, and Watermill's router calls the handler for each in a goroutine of its own.
// Such a call puts its message into the lane of its key, tells the subscriber so ([oncebox.Taken]), which then hands over the
// key's next one, and waits. The first message in an idle lane leads: its call waits until the lane holds Max messages, or for
// Linger, runs all of them as one group, and passes the lead on to the first that came meanwhile. So there is nothing to
// start or to stop; a key's messages keep the order in which the subscriber handed them over, also within a group; and two
// groups that share a key never run at once in one process. Across processes a key may be in two groups at once: see
// [Config.Ordered].
//
// The subscriber must hand out as many messages as the groups are to hold, Lanes × Max or more, without waiting for their
// acknowledgement.
func (in *Inbox) Group(h GroupHandler, cfg GroupConfig) (message.NoPublishHandlerFunc, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	lanes := make([]*lane, cfg.Lanes)
	for i := range lanes {
		lanes[i] = &lane{in: in, handler: h, cfg: cfg, full: make(chan struct{}, 1)}
	}
	seed := maphash.MakeSeed()
	return func(m *message.Message) error {
		d := in.receive(m)
		lanes[maphash.Comparable(seed, d.key())%uint64(len(lanes))].handle(m.Context(), d)
		return in.finish(d)
	}, nil
}

// A lane is where the messages of some keys wait for each other.
type lane struct {
	in      *Inbox
	handler GroupHandler
	cfg     GroupConfig
	full    chan struct{} // the queue has come to Max

	mu    sync.Mutex
	queue []*seat
	led   bool // one of those in the queue leads, or its group is running
	mood  mood // the leader's
}

// A seat is a message in a lane.
type seat struct {
	d    *delivery
	done chan struct{} // its group has run
	lead chan struct{} // it is the first in the queue, and the lane is its
}

func (l *lane) handle(ctx context.Context, d *delivery) {
	s := &seat{d: d, done: make(chan struct{}), lead: make(chan struct{})}
	l.mu.Lock()
	l.queue = append(l.queue, s)
	leads := !l.led
	l.led = true
	if len(l.queue) == l.cfg.Max {
		select {
		case l.full <- struct{}{}:
		default:
		}
	}
	l.mu.Unlock()
	oncebox.Taken(ctx)
	if !leads {
		select {
		case <-s.done:
			return
		case <-s.lead:
		}
	}
	l.run(ctx)
}

// run waits for company, runs the group and passes the lead on.
func (l *lane) run(ctx context.Context) {
	l.mu.Lock()
	complete := len(l.queue) >= l.cfg.Max
	select {
	case <-l.full: // of a queue that was
	default:
	}
	l.mu.Unlock()
	if !complete && l.cfg.Linger > 0 {
		select {
		case <-l.full:
		case <-time.After(l.cfg.Linger):
		case <-ctx.Done():
		}
	}
	l.mu.Lock()
	n := min(len(l.queue), l.cfg.Max)
	group := l.queue[:n:n]
	l.queue = l.queue[n:]
	l.mu.Unlock()

	ds := make([]*delivery, n)
	for i, s := range group {
		ds[i] = s.d
	}
	defer func() {
		for _, s := range group {
			close(s.done)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.led = len(l.queue) > 0; l.led {
			close(l.queue[0].lead)
		}
	}()
	l.in.handle(ctx, ds, l.handler, &l.mood)
	for _, d := range ds {
		if d.outcome == open { // never: but nobody may take it for done
			d.retry(errors.New("inbox: the group left the message out"))
		}
	}
}
