package broker

import (
	"fmt"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox"
)

// A Publisher publishes Watermill messages to the streams that hold their topics, which are subjects. It is for messages
// that need no transaction; those that do go through an outbox. It is safe for concurrent use.
type Publisher struct {
	js jetstream.JetStream
}

// NewPublisher returns a Publisher that waits up to timeout for each acknowledgement.
func NewPublisher(nc *nats.Conn, timeout time.Duration) (*Publisher, error) {
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(timeout))
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	return &Publisher{js: js}, nil
}

// Publish stores the messages one after the other and returns at the first that the broker did not acknowledge: those before
// it are stored, it may be, those behind it are not. A message's UUID is its Nats-Msg-Id, so that publishing it again within
// the stream's duplicate window stores nothing.
func (p *Publisher) Publish(topic string, messages ...*message.Message) error {
	for _, m := range messages {
		msg, err := wireMessage(topic, m)
		if err != nil {
			return fmt.Errorf("broker: message %.64q: %w", m.UUID, err)
		}
		if _, err := p.js.PublishMsg(m.Context(), msg, jetstream.WithMsgID(m.UUID), jetstream.WithRetryAttempts(0)); err != nil {
			return fmt.Errorf("broker: publish %.64q to %s: %w", m.UUID, topic, err)
		}
	}
	return nil
}

// Close does nothing: the connection is its maker's.
func (p *Publisher) Close() error { return nil }

// wireMessage is m as it goes onto the wire. Metadata that the broker would take for orders to itself are refused.
func wireMessage(subject string, m *message.Message) (*nats.Msg, error) {
	msg := &nats.Msg{Subject: subject, Data: m.Payload, Header: make(nats.Header, len(m.Metadata)+4)}
	for name, value := range m.Metadata {
		lower := strings.ToLower(name)
		if strings.HasPrefix(lower, "nats-") || lower == oncebox.HeaderRefused {
			return nil, fmt.Errorf("%w: metadata %q is the broker's own", oncebox.ErrInvalid, name)
		}
		msg.Header[name] = []string{value}
	}
	return msg, nil
}
