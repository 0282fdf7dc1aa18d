package broker_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/broker"
)

// Watermill's own suite: consumer groups, order, persistence, new groups that read what is old.
func TestWatermillsPubSubSuite(t *testing.T) {
	r := newRig(t)
	group := func(t *testing.T, name string) (message.Publisher, message.Subscriber) {
		p, err := broker.NewPublisher(r.nc, 30*time.Second)
		must(t, err)
		return owner{p, r.js}, &topics{rig: r, group: name}
	}
	// Several clients of one durable share its messages, and what one of them holds another may overtake: order is the stream's.
	features := tests.Features{ConsumerGroups: true, GuaranteedOrder: true, GuaranteedOrderWithSingleSubscriber: true, Persistent: true,
		ForceShort: os.Getenv("ONCEBOX_SOAK") == ""}
	t.Run("group", func(t *testing.T) {
		tests.TestPubSub(t, features, func(t *testing.T) (message.Publisher, message.Subscriber) { return group(t, "shared") }, group)
	})
	t.Run("a group each", func(t *testing.T) {
		features.NewSubscriberReceivesOldMessages = true
		tests.TestNewSubscriberReceivesOldMessages(t, tests.TestContext{TestID: tests.NewTestID(), Features: features},
			func(t *testing.T) (message.Publisher, message.Subscriber) { return group(t, watermill.NewShortUUID()) })
	})
}

// An owner is a publisher that has a stream for each topic: the suite sends one message id to several topics.
type owner struct {
	*broker.Publisher
	js jetstream.JetStream
}

func (o owner) Publish(topic string, messages ...*message.Message) error {
	return errors.Join(open(o.js, topic), o.Publisher.Publish(topic, messages...))
}

func open(js jetstream.JetStream, topic string) error {
	_, err := js.CreateStream(context.Background(), broker.Stream(topic, topic))
	return err
}

// topics are a subscriber for each topic.
type topics struct {
	rig   *rig
	group string

	mu   sync.Mutex
	subs []*broker.Subscriber
}

func (s *topics) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub, err := broker.NewSubscriber(s.rig.nc, broker.SubscriberConfig{Stream: topic, Group: s.group, AckWait: 30 * time.Second,
		MinRetry: 10 * time.Millisecond, MaxRetry: time.Second, CloseTimeout: 200 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	s.subs = append(s.subs, sub)
	return sub.Subscribe(ctx, topic)
}

func (s *topics) SubscribeInitialize(topic string) error { return open(s.rig.js, topic) }

func (s *topics) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for _, sub := range s.subs {
		err = errors.Join(err, sub.Close())
	}
	return err
}
