package outbox_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/outbox"
)

// TestWatermillsPubSubSuite runs Watermill's suite over the whole way: a publisher that commits to the outbox, the relay, the stream,
// and the broker's subscriber.
//
// The whole list is here but for four. TestConcurrentSubscribeMultipleTopics publishes one message id to several topics, and an
// outbox's ids are its events': unique, whatever their type. TestReconnect wants a shell command that restarts the broker; the
// storm does that with real kills. TestPubSubStressTest is the same again many times over. TestConsumerGroups and
// TestNewSubscriberReceivesOldMessages take subscribers of another group, and so come apart.
func TestWatermillsPubSubSuite(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.declared = broker.Stream(stream, "pair.>")
	relay := r.relay(func(c *outbox.RelayConfig) { c.Lease = 5 * time.Second })
	features := tests.Features{ConsumerGroups: true, GuaranteedOrder: true, GuaranteedOrderWithSingleSubscriber: true, Persistent: true, ForceShort: true,
		NewSubscriberReceivesOldMessages: true, GenerateTopicFunc: func(c tests.TestContext) string { return "pair." + string(c.TestID) }}
	group := func(_ *testing.T, name string) (message.Publisher, message.Subscriber) {
		return committer{r, relay}, &groupOfTopics{rig: r, group: name}
	}
	shared := func(t *testing.T) (message.Publisher, message.Subscriber) { return group(t, "shared") }
	for name, test := range map[string]func(*testing.T, tests.TestContext, tests.PubSubConstructor){
		"TestPublishSubscribe":            tests.TestPublishSubscribe,
		"TestConcurrentSubscribe":         tests.TestConcurrentSubscribe,
		"TestPublishSubscribeInOrder":     tests.TestPublishSubscribeInOrder,
		"TestResendOnError":               tests.TestResendOnError,
		"TestNoAck":                       tests.TestNoAck,
		"TestContinueAfterSubscribeClose": tests.TestContinueAfterSubscribeClose,
		"TestConcurrentClose":             tests.TestConcurrentClose,
		"TestContinueAfterErrors":         tests.TestContinueAfterErrors,
		"TestPublisherClose":              tests.TestPublisherClose,
		"TestTopic":                       tests.TestTopic,
		"TestMessageCtx":                  tests.TestMessageCtx,
		"TestSubscribeCtx":                tests.TestSubscribeCtx,
	} {
		t.Run(name, func(t *testing.T) {
			test(t, tests.TestContext{TestID: tests.NewTestID(), Features: features}, shared)
		})
	}
	t.Run("TestConsumerGroups", func(t *testing.T) {
		tests.TestConsumerGroups(t, tests.TestContext{TestID: tests.NewTestID(), Features: features}, group)
	})
	t.Run("TestNewSubscriberReceivesOldMessages", func(t *testing.T) {
		tests.TestNewSubscriberReceivesOldMessages(t, tests.TestContext{TestID: tests.NewTestID(), Features: features},
			func(t *testing.T) (message.Publisher, message.Subscriber) { return group(t, watermill.NewShortUUID()) })
	})
}

// A committer publishes messages in a transaction of their own.
type committer struct {
	r     *rig
	relay *running
}

func (c committer) Publish(topic string, messages ...*message.Message) error {
	defer c.relay.Wake()
	for _, m := range messages { // of one key, for order: without one each message has its own
		m.Metadata.Set(oncebox.HeaderKey, topic)
	}
	return pgx.BeginFunc(context.Background(), c.r.pool, func(tx pgx.Tx) error {
		p, err := c.r.writer.Publisher(tx)
		if err != nil {
			return err
		}
		return p.Publish(topic, messages...)
	})
}

func (committer) Close() error { return nil }

// groupOfTopics is a subscriber for each topic, as a durable has one.
type groupOfTopics struct {
	rig   *rig
	group string

	mu   sync.Mutex
	subs []*broker.Subscriber
}

func (g *groupOfTopics) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	sub, err := broker.NewSubscriber(g.rig.nc, broker.SubscriberConfig{Stream: stream, Group: g.group + "-" + strings.ReplaceAll(topic, ".", "-"),
		AckWait: 30 * time.Second, MinRetry: 10 * time.Millisecond, MaxRetry: time.Second, CloseTimeout: 200 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	g.subs = append(g.subs, sub)
	return sub.Subscribe(ctx, topic)
}

func (g *groupOfTopics) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var err error
	for _, sub := range g.subs {
		err = errors.Join(err, sub.Close())
	}
	return err
}
