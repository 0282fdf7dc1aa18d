package broker_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/stacktest"
)

func TestAcknowledgementsThatAreNotSentAreToldOfTogether(t *testing.T) {
	t.Parallel()
	r := owned(t)
	const many = 100
	r.publish(messages(many, func(i int) string { return fmt.Sprint(i) })...)
	var told bytes.Buffer // which the handler of a logger writes to under a lock
	s := r.subscriber(func(c *broker.SubscriberConfig) {
		c.Logger, c.Lanes, c.MaxAckPending, c.CloseTimeout = slog.New(slog.NewTextHandler(&told, nil)), many, many, 50*time.Millisecond
	})
	out, err := s.Subscribe(context.Background(), "test.>")
	must(t, err)
	var taken []*message.Message
	for range many / 2 {
		taken = append(taken, <-out)
	}
	must(t, r.server.Kill())
	stacktest.Eventually(t, 5*time.Second, "the connection is gone", func() (bool, error) { return !r.nc.IsConnected(), nil })
	for _, m := range taken {
		m.Ack()
	}
	must(t, s.Close())
	if n := strings.Count(told.String(), "acknowledgements not sent"); n < 1 || n > 3 {
		t.Errorf("%d lines tell of it, want one a second:\n%s", n, &told)
	}
}
