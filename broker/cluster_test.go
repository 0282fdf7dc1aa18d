package broker_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// A durable of three servers sends its messages later than what it says of the request for them. More messages wait here than may be
// unacknowledged: each has to come, and at once, rather than after AckWait.
func TestMoreThanMayBeUnacknowledgedComesFromACluster(t *testing.T) {
	const unacked, messages = 50, 500
	nc, _ := manyInACluster(t, messages, 10)
	ctx := context.Background()
	sub, err := broker.NewSubscriber(nc, broker.SubscriberConfig{Stream: "MANY", Group: "all", AckWait: time.Minute, MaxAckPending: unacked,
		Lanes: 4, Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	t.Cleanup(func() { must(t, sub.Close()) })
	out, err := sub.Subscribe(ctx, "many.>")
	must(t, err)
	limit := time.After(30 * time.Second)
	for n := range messages {
		var m *message.Message
		select {
		case m = <-out:
			m.Ack()
		case <-limit:
			t.Fatalf("%d of %d messages came within half of AckWait", n, messages)
		}
	}
}

// A request ends when the next message has no room, and before its last ones are there: they are taken although it was the last request.
func TestCloseLeavesNothingOnItsWayFromACluster(t *testing.T) {
	nc, js := manyInACluster(t, 600, 10_000)
	ctx := context.Background()
	for range 20 {
		sub, err := broker.NewSubscriber(nc, broker.SubscriberConfig{Stream: "MANY", Group: "all", AckWait: time.Minute, MaxBytes: 64 << 10,
			Lanes: 4, Logger: slog.New(slog.DiscardHandler)})
		must(t, err)
		out, err := sub.Subscribe(ctx, "many.>")
		must(t, err)
		(<-out).Ack()
		go func() {
			for m := range out {
				m.Ack()
			}
		}()
		must(t, sub.Close())
		stacktest.Eventually(t, 10*time.Second, "all that was handed out is acknowledged", func() (bool, error) {
			c, err := js.Consumer(ctx, "MANY", "all")
			return err == nil && c.CachedInfo().NumAckPending == 0, err
		})
	}
}

// A connection into a server that stands still stays open. Its client has to find that out, and go to another one.
func TestAServerThatStandsStillIsLeftForAnother(t *testing.T) {
	servers := threeServers(t)
	var urls []string
	for _, s := range servers {
		urls = append(urls, s.URL())
	}
	nc, err := broker.Connect(strings.Join(urls, ","), t.Name(), slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(nc.Close)
	on := nc.ConnectedUrl()
	for _, s := range servers {
		if s.URL() == on {
			must(t, s.Pause())
		}
	}
	stacktest.Eventually(t, 30*time.Second, "the connection is to another server", func() (bool, error) {
		now := nc.ConnectedUrl()
		return now != "" && now != on, nil
	})
}

func threeServers(t *testing.T) []*devstack.NATS {
	t.Helper()
	servers, err := devstack.StartNATSCluster(context.Background(), 3, devstack.NATSConfig{})
	must(t, err)
	for _, s := range servers {
		t.Cleanup(func() { must(t, s.Remove()) })
	}
	return servers
}

// manyInACluster stores messages of some size three times.
func manyInACluster(t *testing.T, messages, size int) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	ctx := context.Background()
	servers := threeServers(t)
	nc, err := nats.Connect(servers[0].URL())
	must(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	must(t, err)
	declared := broker.Stream("MANY", "many.>")
	declared.Replicas = 3
	stacktest.Eventually(t, time.Minute, "the cluster has the stream", func() (bool, error) {
		_, err := js.CreateStream(ctx, declared)
		return err == nil, err
	})
	for range messages {
		_, err := js.Publish(ctx, "many.one", make([]byte, size))
		must(t, err)
	}
	return nc, js
}
