package broker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type rig struct {
	t      *testing.T
	server *devstack.NATS
	nc     *nats.Conn
	js     jetstream.JetStream
}

func newRig(t *testing.T, opts ...func(*devstack.NATSConfig)) *rig {
	t.Helper()
	server := stacktest.NATS(t, opts...)
	nc, err := broker.Connect(server.URL(), "test", slog.New(slog.NewTextHandler(t.Output(), nil)))
	must(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	must(t, err)
	return &rig{t: t, server: server, nc: nc, js: js}
}

// owned is a rig with the stream TEST.
func owned(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	_, _, err := r.sink().Open(context.Background(), 0)
	must(t, err)
	return r
}

func (r *rig) sink() *broker.Sink {
	r.t.Helper()
	s, err := broker.NewSink(r.nc, broker.Stream("TEST", "test.>"), broker.SinkConfig{})
	must(r.t, err)
	return s
}

// subscriber is one at short times.
func (r *rig) subscriber(change ...func(*broker.SubscriberConfig)) *broker.Subscriber {
	r.t.Helper()
	cfg := broker.SubscriberConfig{Stream: "TEST", Group: "group", AckWait: 600 * time.Millisecond,
		MinRetry: 10 * time.Millisecond, MaxRetry: 200 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(r.t.Output(), nil))}
	for _, f := range change {
		f(&cfg)
	}
	s, err := broker.NewSubscriber(r.nc, cfg)
	must(r.t, err)
	r.t.Cleanup(func() { must(r.t, s.Close()) })
	return s
}

func (r *rig) publish(messages ...*message.Message) {
	r.t.Helper()
	p, err := broker.NewPublisher(r.nc, 5*time.Second)
	must(r.t, err)
	must(r.t, p.Publish("test.happened.v1", messages...))
}

func event(key string, n int) oncebox.Event {
	return oncebox.Event{ID: fmt.Sprintf("0190b5a0-0000-7000-8000-%012d", n), Source: "test", Type: "test.happened.v1", Key: key,
		Version: int64(n), Data: fmt.Appendf(nil, "%d", n)}
}

func messages(n int, key func(i int) string) []*message.Message {
	out := make([]*message.Message, n)
	for i := range out {
		out[i] = event(key(i), i+1).Message()
	}
	return out
}

// consumer waits until the durable is as cond wants it.
func (r *rig) consumer(what string, cond func(*jetstream.ConsumerInfo) bool) {
	r.t.Helper()
	stacktest.Eventually(r.t, 10*time.Second, what, func() (bool, error) {
		c, err := r.js.Consumer(context.Background(), "TEST", "group")
		if err != nil {
			return false, err
		}
		return cond(c.CachedInfo()), nil
	})
}

func TestASubscriberGetsWhatAPublisherSent(t *testing.T) {
	t.Parallel()
	r := owned(t)
	e := event("k", 1)
	e.Headers = map[string]string{"x-region": "eu west"}
	e.Data = []byte("\x00\xff data")
	r.publish(e.Message(), event("k", 2).Message())
	out, err := r.subscriber().Subscribe(context.Background(), "test.>")
	must(t, err)
	m := <-out
	got, err := oncebox.Decode(m)
	must(t, err)
	if got.ID != e.ID || got.Key != e.Key || got.Headers["x-region"] != "eu west" || string(got.Data) != string(e.Data) {
		t.Errorf("got %+v, want %+v", got, e)
	}
	if n := oncebox.Delivered(m.Context()); n != 1 {
		t.Errorf("delivered %d times, want 1", n)
	}
	m.Ack()
	m = <-out
	m.Ack()
	if m.UUID != event("k", 2).ID {
		t.Errorf("the second message is %s", m.UUID)
	}
	r.consumer("both are acknowledged", func(i *jetstream.ConsumerInfo) bool { return i.AckFloor.Stream == 2 })
}

func TestPublishingAgainStoresNothing(t *testing.T) {
	t.Parallel()
	r := owned(t)
	for range 3 {
		r.publish(event("k", 1).Message())
	}
	s, err := r.js.Stream(context.Background(), "TEST")
	must(t, err)
	if n := s.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("%d messages, want 1", n)
	}
}

func TestThePublisherRefusesOrdersToTheBroker(t *testing.T) {
	t.Parallel()
	r := owned(t)
	p, err := broker.NewPublisher(r.nc, time.Second)
	must(t, err)
	for _, name := range []string{"Nats-Rollup", "nats-expected-last-sequence", oncebox.HeaderRefused} {
		m := event("k", 1).Message()
		m.Metadata[name] = "x"
		if err := p.Publish("test.happened.v1", m); !errors.Is(err, oncebox.ErrInvalid) {
			t.Errorf("metadata %s: got %v, want ErrInvalid", name, err)
		}
	}
}

func TestAMessageWithAHeaderSentTwiceIsHandedOnMarked(t *testing.T) {
	t.Parallel()
	r := owned(t)
	_, err := r.js.PublishMsg(context.Background(), &nats.Msg{Subject: "test.x", Header: nats.Header{
		"ce-id": {"a", "b"}, "ce-specversion": {"1.0"}, "other": {"1", "2"}}})
	must(t, err)
	out, err := r.subscriber().Subscribe(context.Background(), "test.>")
	must(t, err)
	m := <-out
	if _, err := oncebox.Decode(m); !errors.Is(err, oncebox.ErrInvalid) || !strings.Contains(err.Error(), "ce-id is sent 2 times") {
		t.Errorf("Decode returned %v", err)
	}
	if m.Metadata["other"] != "1, 2" {
		t.Errorf("the other header is %q", m.Metadata["other"])
	}
	m.Ack()
}

func TestANackedMessageComesAgainLaterAndLater(t *testing.T) {
	t.Parallel()
	r := owned(t)
	r.publish(event("k", 1).Message())
	out, err := r.subscriber().Subscribe(context.Background(), "test.>")
	must(t, err)
	for want := 1; want <= 5; want++ {
		m := <-out
		if n := oncebox.Delivered(m.Context()); n != want {
			t.Errorf("delivered %d times, want %d", n, want)
		}
		if want < 5 {
			m.Nack()
		} else {
			m.Ack()
		}
	}
	r.consumer("it is acknowledged", func(i *jetstream.ConsumerInfo) bool { return i.AckFloor.Stream == 1 && i.NumAckPending == 0 })
}

// The handlers of one key see the stream's order, one at a time, while those of other keys run beside them.
func TestMessagesOfAKeyAreHandledInOrderAndOthersAtTheSameTime(t *testing.T) {
	t.Parallel()
	r := owned(t)
	const n, keys = 400, 10
	r.publish(messages(n, func(i int) string { return fmt.Sprint("key-", i%keys) })...)
	out, err := r.subscriber().Subscribe(context.Background(), "test.>")
	must(t, err)
	var (
		mu       sync.Mutex
		versions = map[string][]int64{}
		running  = map[string]int{}
		wg       sync.WaitGroup
	)
	first, second := <-out, <-out // the second comes while the first is in hand
	for i := range n {
		m := first
		switch {
		case i == 1:
			m = second
		case i > 1:
			m = <-out
		}
		wg.Go(func() {
			e, err := oncebox.Decode(m)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			versions[e.Key] = append(versions[e.Key], e.Version)
			if running[e.Key]++; running[e.Key] > 1 {
				t.Errorf("two handlers of %s at once", e.Key)
			}
			mu.Unlock()
			defer m.Ack()
			mu.Lock()
			defer mu.Unlock()
			if running[e.Key]--; running[e.Key] == 0 {
				delete(running, e.Key)
			}
		})
	}
	wg.Wait()
	for key, v := range versions {
		if !slices.IsSorted(v) || len(v) != n/keys {
			t.Errorf("%s came as %v", key, v)
		}
	}
}

func TestAHandlerSlowerThanAckWaitKeepsItsMessage(t *testing.T) {
	t.Parallel()
	r := owned(t)
	r.publish(event("k", 1).Message())
	out, err := r.subscriber().Subscribe(context.Background(), "test.>")
	must(t, err)
	m := <-out
	select {
	case again := <-out:
		t.Errorf("%s came again while it was being handled", again.UUID)
		again.Ack()
	case <-time.After(3 * 600 * time.Millisecond): // three times AckWait
	}
	m.Ack()
	r.consumer("it is acknowledged, delivered once", func(i *jetstream.ConsumerInfo) bool {
		return i.AckFloor.Stream == 1 && i.Delivered.Consumer == 1
	})
}

func TestASubscriberWaitsForItsStream(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	out, err := r.subscriber().Subscribe(context.Background(), "test.>")
	must(t, err)
	_, _, err = r.sink().Open(context.Background(), 0)
	must(t, err)
	r.publish(event("k", 1).Message())
	(<-out).Ack()
}

func TestADurableThatIsGoneIsMadeAgain(t *testing.T) {
	t.Parallel()
	r := owned(t)
	out, err := r.subscriber().Subscribe(context.Background(), "test.>")
	must(t, err)
	r.publish(event("k", 1).Message())
	(<-out).Ack()
	r.consumer("the first is acknowledged", func(i *jetstream.ConsumerInfo) bool { return i.AckFloor.Stream == 1 })
	must(t, r.js.DeleteConsumer(context.Background(), "TEST", "group"))
	r.publish(event("k", 2).Message())
	for want := 1; want <= 2; want++ { // from the first message on: nobody knows what was acknowledged
		m := <-out
		if m.UUID != event("k", want).ID {
			t.Errorf("got %s, want message %d", m.UUID, want)
		}
		m.Ack()
	}
}

func TestASubscriberOutlivesItsBroker(t *testing.T) {
	t.Parallel()
	r := owned(t)
	out, err := r.subscriber().Subscribe(context.Background(), "test.>")
	must(t, err)
	r.publish(event("k", 1).Message())
	(<-out).Ack()
	r.consumer("the first is acknowledged", func(i *jetstream.ConsumerInfo) bool { return i.AckFloor.Stream == 1 })
	must(t, r.server.Kill())
	must(t, r.server.Restart(context.Background()))
	stacktest.Eventually(t, 10*time.Second, "connected again", func() (bool, error) { return r.nc.IsConnected(), nil })
	r.publish(event("k", 2).Message())
	m := <-out
	for m.UUID != event("k", 2).ID { // the broker may have lost the first acknowledgement
		m.Ack()
		m = <-out
	}
	m.Ack()
}

func TestCloseWaitsForWhatIsInHandAndLosesNoAcknowledgement(t *testing.T) {
	t.Parallel()
	r := owned(t)
	const n = 100
	r.publish(messages(n, func(i int) string { return fmt.Sprint(i) })...)
	s := r.subscriber(func(c *broker.SubscriberConfig) { c.AckWait = time.Minute })
	out, err := s.Subscribe(context.Background(), "test.>")
	must(t, err)
	first := <-out
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	var handled atomic.Int64
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for m := range out {
			m.Ack()
			handled.Add(1)
		}
	}()
	select {
	case err := <-closed:
		t.Errorf("Close returned %v while a message was in hand", err)
	case <-time.After(200 * time.Millisecond):
	}
	first.Ack()
	must(t, <-closed)
	<-drained
	r.consumer("what was handed out is acknowledged", func(i *jetstream.ConsumerInfo) bool {
		return i.NumAckPending == 0 && i.AckFloor.Consumer == uint64(handled.Load())+1
	})
	if _, err := s.Subscribe(context.Background(), "test.>"); !errors.Is(err, broker.ErrClosed) {
		t.Errorf("Subscribe after Close: %v", err)
	}
}

func TestAStreamThatDiffersIsAnError(t *testing.T) {
	t.Parallel()
	r := owned(t)
	cfg := broker.Stream("TEST", "test.>")
	cfg.MaxBytes = 1 << 20
	s, err := broker.NewSink(r.nc, cfg, broker.SinkConfig{})
	must(t, err)
	if _, _, err := s.Open(context.Background(), 0); !errors.Is(err, broker.ErrStreamDiffers) || !strings.Contains(err.Error(), "max_bytes") {
		t.Errorf("got %v, want ErrStreamDiffers that names max_bytes", err)
	}
	stream, err := r.js.Stream(context.Background(), "TEST")
	must(t, err)
	if got := stream.CachedInfo().Config.MaxBytes; got != broker.Stream("TEST").MaxBytes {
		t.Errorf("the stream was changed to %d bytes", got)
	}
}

func TestSubscriberConfigIsChecked(t *testing.T) {
	t.Parallel()
	for _, cfg := range []broker.SubscriberConfig{
		{Group: "g"}, {Stream: "S"}, {Stream: "S", Group: "a.b"}, {Stream: "S", Group: "g", Lanes: -1},
		{Stream: "S", Group: "g", MaxAckPending: 1}, {Stream: "S", Group: "g", AckWait: -1}, {Stream: "S", Group: "g", MinRetry: time.Hour},
	} {
		if _, err := broker.NewSubscriber(nil, cfg); err == nil {
			t.Errorf("NewSubscriber took %+v", cfg)
		}
	}
}
