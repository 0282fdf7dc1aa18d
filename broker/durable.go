package broker

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A seen is the last message that a subscription was handed: where it stood and when it was stored there.
type seen struct {
	mu  sync.Mutex
	seq uint64
	at  time.Time
}

func (s *seen) note(m *nats.Msg) {
	meta, err := m.Metadata()
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if meta.Sequence.Stream > s.seq {
		s.seq, s.at = meta.Sequence.Stream, meta.Timestamp
	}
}

func (s *seen) get() (uint64, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seq, s.at
}

func (s *seen) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq, s.at = 0, time.Time{}
}

// durable makes the topic's consumer where it is missing, and again where it is ahead of its stream.
func (s *Subscriber) durable(ctx context.Context, topic string, last *seen) error {
	want := jetstream.ConsumerConfig{
		Durable:       s.cfg.Group,
		FilterSubject: topic,
		DeliverPolicy: jetstream.DeliverAllPolicy,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       s.cfg.AckWait,
		MaxDeliver:    -1, // when to give up is the inbox's to decide
		MaxAckPending: s.cfg.MaxAckPending,
	}
	stream, err := s.js.Stream(ctx, s.cfg.Stream)
	if err != nil {
		return fmt.Errorf("look at the stream: %w", err)
	}
	c, err := stream.Consumer(ctx, want.Durable)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		last.forget()
	case err != nil:
		return fmt.Errorf("look at the consumer: %w", err)
	default:
		info := c.CachedInfo()
		if info.Config.FilterSubject != topic {
			return fmt.Errorf("the group %s takes the topic %q already, and a group takes one", want.Durable, info.Config.FilterSubject)
		}
		start, err := s.rolledBack(ctx, stream, info, last)
		if err != nil {
			return err
		}
		if start == 0 {
			// Where it began is not to be changed any more.
			want.DeliverPolicy, want.OptStartSeq = info.Config.DeliverPolicy, info.Config.OptStartSeq
			break
		}
		s.cfg.Logger.Error("broker: the stream has lost its end, the consumer is made again", "stream", s.cfg.Stream,
			"group", s.cfg.Group, "from", start, "delivered", info.Delivered.Stream, "acknowledged", info.AckFloor.Stream)
		if err := stream.DeleteConsumer(ctx, want.Durable); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return fmt.Errorf("delete the consumer: %w", err)
		}
		last.forget()
		want.DeliverPolicy, want.OptStartSeq = jetstream.DeliverByStartSequencePolicy, start
	}
	if _, err := stream.CreateOrUpdateConsumer(ctx, want); err != nil {
		return fmt.Errorf("make the consumer: %w", err)
	}
	return nil
}

// rolledBack returns the sequence from which on the consumer has to be handed messages again because the stream lost its end
// behind its back, 0 if it did not. A consumer that is ahead of the stream shows it; once the stream has grown again, only a
// message that is not the one which we saw there.
func (s *Subscriber) rolledBack(ctx context.Context, stream jetstream.Stream, info *jetstream.ConsumerInfo, last *seen) (uint64, error) {
	state := stream.CachedInfo().State
	if info.Delivered.Stream > state.LastSeq { // it may have grown since it was looked at, before the consumer was
		now, err := stream.Info(ctx)
		if err != nil {
			return 0, fmt.Errorf("look at the stream: %w", err)
		}
		state = now.State
	}
	seq, at := last.get()
	switch {
	case info.Delivered.Stream > state.LastSeq && seq == 0 && info.Delivered.Last == nil:
		return max(state.FirstSeq, 1), nil // nobody knows what has taken the lost ones' places
	case info.Delivered.Stream > state.LastSeq:
		if seq == 0 {
			at = *info.Delivered.Last
		}
	case seq == 0 || seq < state.FirstSeq || info.Delivered.Stream < seq:
		return 0, nil
	default:
		t, err := storedAt(ctx, stream, seq)
		if err != nil || t.IsZero() || t.Equal(at) {
			return 0, err
		}
	}
	// What took the lost messages' places was stored after the last one that was seen.
	first, end, err := max(int(state.FirstSeq), 1), int(state.LastSeq)+1, error(nil)
	n := sort.Search(max(end-first, 0), func(i int) bool {
		if err != nil {
			return true
		}
		var t time.Time
		t, err = storedAt(ctx, stream, uint64(first+i))
		return t.After(at.Add(-time.Minute)) // the broker's clock may have been set back; an inbox makes the minute harmless
	})
	if err != nil {
		return 0, err
	}
	return min(uint64(first+n), info.AckFloor.Stream+1), nil
}

// storedAt is when a message was stored, zero if it is not there.
func storedAt(ctx context.Context, stream jetstream.Stream, seq uint64) (time.Time, error) {
	m, err := stream.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("look at message %d: %w", seq, err)
	}
	return m.Time, nil
}
