package broker

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/oncebox/oncebox"
)

// storeCarefully stores one event and waits for it. An event that the stream holds already counts as stored; one whose id the
// stream only remembers is stored under another message id.
func (s *Sink) storeCarefully(ctx context.Context, e oncebox.Event) error {
	c := s.chain
	if err := c.flush(ctx); err != nil {
		return err
	}
	ack, err := s.publish(ctx, e, "")
	if err != nil {
		return err
	}
	if ack.Duplicate {
		// The stream remembers the id. That it still holds the message is another matter: its end may have been lost since.
		there, err := s.holds(ctx, ack.Sequence, e.ID)
		switch {
		case err != nil:
			return err
		case there && ack.Sequence <= c.sent:
			s.noSeq++
			return nil
		case there:
			return &refusal{text: fmt.Sprintf("stored at %d by another writer", ack.Sequence)}
		}
		if ack, err = s.publish(ctx, e, e.ID+"."+nuid.Next()); err != nil {
			return err
		}
	}
	if ack.Sequence != c.sent+1 {
		return &refusal{text: fmt.Sprintf("stored at %d, not at %d", ack.Sequence, c.sent+1)}
	}
	c.sent, c.acked, c.unasked.last, c.lastID = ack.Sequence, ack.Sequence, ack.Sequence, ""
	return nil
}

// publish sends e once, under another message id than its own unless that is "": what follows a lost acknowledgement is for the relay, which reads back before it sends again.
func (s *Sink) publish(ctx context.Context, e oncebox.Event, msgID string) (*jetstream.PubAck, error) {
	c := s.chain
	c.message(&e)
	if msgID != "" {
		c.set(jetstream.MsgIDHeader, msgID)
	}
	c.set(jetstream.ExpectedLastSeqHeader, strconv.FormatUint(c.sent, 10))
	ack, err := s.js.PublishMsg(ctx, &c.msg, jetstream.WithRetryAttempts(0))
	if api := (*jetstream.APIError)(nil); errors.As(err, &api) {
		return nil, &refusal{code: int(api.ErrorCode), text: api.Description}
	}
	return ack, err
}

func (s *Sink) holds(ctx context.Context, seq uint64, id string) (bool, error) {
	m, err := s.stream.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return m.Header.Get(oncebox.HeaderID) == id, nil
}
