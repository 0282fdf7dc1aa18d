package broker_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// ids reads messages until the one with the id last, and acks them.
func ids(t *testing.T, out <-chan *message.Message, last string) (got []string) {
	t.Helper()
	end := time.After(20 * time.Second)
	for {
		select {
		case m := <-out:
			m.Ack()
			if got = append(got, m.UUID); m.UUID == last {
				return got
			}
		case <-end:
			t.Fatalf("%s did not come: got %d messages, %v", last, len(got), got)
		}
	}
}

// The durable was made on a stream that has lost its end since: it is ahead, and would skip what is stored next.
func TestADurableThatIsAheadOfItsStreamSkipsNothing(t *testing.T) {
	t.Parallel()
	r := owned(t)
	r.publish(messages(5, func(int) string { return "k" })...)
	_, err := r.js.CreateConsumer(context.Background(), "TEST", jetstream.ConsumerConfig{Durable: "group", FilterSubject: "test.>",
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: 100, AckPolicy: jetstream.AckExplicitPolicy})
	must(t, err)
	out, err := r.subscriber().Subscribe(context.Background(), "test.>")
	must(t, err)
	r.consumer("it is made again", func(i *jetstream.ConsumerInfo) bool { return i.Delivered.Stream < 100 })
	r.publish(event("k", 6).Message())
	// It never delivered anything, so that no time tells what has taken the lost ones' places: all of the stream comes.
	if got := ids(t, out, event("", 6).ID); len(got) != 6 || got[0] != event("", 1).ID {
		t.Errorf("got %v, want all six", got)
	}
}

// The broker comes back with an older state of the stream's disk, and what takes the lost messages' places is stored before
// anybody looks.
func TestAStreamThatIsRolledBackIsReadFromWhereItWas(t *testing.T) {
	t.Parallel()
	r := owned(t)
	out, err := r.subscriber().Subscribe(context.Background(), "test.>")
	must(t, err)
	r.publish(messages(10, func(int) string { return "k" })...)
	ids(t, out, event("", 10).ID)
	r.consumer("ten are acknowledged", func(i *jetstream.ConsumerInfo) bool { return i.AckFloor.Stream == 10 })
	disk, saved := stacktest.StreamFolder(t, r.server, "TEST"), filepath.Join(t.TempDir(), "saved")
	ctx := context.Background()
	restart := func(while func()) {
		t.Helper()
		must(t, r.server.Stop(ctx))
		while()
		must(t, r.server.Restart(ctx))
	}
	restart(func() { stacktest.CopyFolder(t, disk, saved) })
	stacktest.Eventually(t, 10*time.Second, "connected again", func() (bool, error) { return r.nc.IsConnected(), nil })
	for i := 11; i <= 20; i++ {
		r.publish(event("k", i).Message())
	}
	ids(t, out, event("", 20).ID)
	r.consumer("twenty are acknowledged", func(i *jetstream.ConsumerInfo) bool { return i.AckFloor.Stream == 20 })
	restart(func() {
		must(t, os.RemoveAll(disk))
		stacktest.CopyFolder(t, saved, disk)
	})
	stacktest.Eventually(t, 10*time.Second, "connected again", func() (bool, error) { return r.nc.IsConnected(), nil })
	s, err := r.js.Stream(ctx, "TEST")
	must(t, err)
	if last := s.CachedInfo().State.LastSeq; last != 10 {
		t.Fatalf("the stream ends at %d: it was not rolled back", last)
	}
	for i := 21; i <= 35; i++ {
		r.publish(event("k", i).Message())
	}
	got := ids(t, out, event("", 35).ID)
	for i := 21; i <= 35; i++ {
		if !strings.Contains(fmt.Sprint(got), event("", i).ID) {
			t.Errorf("message %d was skipped", i)
		}
	}
}

// What took the lost messages' places was acknowledged by the durable unseen: only the messages themselves tell.
func TestMessagesInTheLostOnesPlacesAreNotTakenForThem(t *testing.T) {
	t.Parallel()
	r := owned(t)
	ctx := context.Background()
	s := r.subscriber(func(c *broker.SubscriberConfig) { c.MinRetry, c.MaxRetry = 2*time.Second, 4*time.Second })
	out, err := s.Subscribe(ctx, "test.>")
	must(t, err)
	r.publish(messages(10, func(int) string { return "k" })...)
	ids(t, out, event("", 10).ID)
	r.consumer("ten are acknowledged", func(i *jetstream.ConsumerInfo) bool { return i.AckFloor.Stream == 10 })
	// Before the subscriber looks again.
	must(t, r.js.DeleteStream(ctx, "TEST"))
	_, _, err = r.sink().Open(ctx, 0)
	must(t, err)
	for i := 11; i <= 25; i++ {
		r.publish(event("k", i).Message())
	}
	_, err = r.js.CreateConsumer(ctx, "TEST", jetstream.ConsumerConfig{Durable: "group", FilterSubject: "test.>",
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: 16, AckPolicy: jetstream.AckExplicitPolicy})
	must(t, err)
	if got := ids(t, out, event("", 25).ID); len(got) != 15 {
		t.Errorf("got %v", got)
	}
}

// A stream that is deleted while it is read, and made again: what is in the new one comes.
func TestAStreamThatIsMadeAgainIsReadFromItsBeginning(t *testing.T) {
	t.Parallel()
	r := owned(t)
	out, err := r.subscriber().Subscribe(context.Background(), "test.>")
	must(t, err)
	r.publish(messages(5, func(int) string { return "k" })...)
	ids(t, out, event("", 5).ID)
	must(t, r.js.DeleteStream(context.Background(), "TEST"))
	_, _, err = r.sink().Open(context.Background(), 0)
	must(t, err)
	r.publish(event("k", 6).Message(), event("k", 7).Message())
	if got := ids(t, out, event("", 7).ID); len(got) != 2 {
		t.Errorf("got %v", got)
	}
}

func TestAGroupTakesOneTopic(t *testing.T) {
	t.Parallel()
	r := owned(t)
	_, err := r.subscriber().Subscribe(context.Background(), "test.a.>")
	must(t, err)
	r.consumer("the first has made it", func(*jetstream.ConsumerInfo) bool { return true })
	_, err = r.subscriber().Subscribe(context.Background(), "test.b.>")
	must(t, err)
	r.publish(event("k", 1).Message())
	r.consumer("it is the first one's still", func(i *jetstream.ConsumerInfo) bool { return i.Config.FilterSubject == "test.a.>" })
}

// No more is in hand than MaxBytes, and a message that is larger than all of it comes too.
func TestTheHandIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	r := owned(t)
	large := func(i, size int) *message.Message {
		m := event(fmt.Sprint("k", i), i).Message()
		m.Payload = make([]byte, size)
		return m
	}
	const n, size, bound = 20, 40 << 10, 128 << 10
	for i := 1; i <= n; i++ {
		r.publish(large(i, size))
	}
	r.publish(large(n+1, 900<<10)) // more than all the hand holds
	r.publish(large(n+2, 0))
	out, err := r.subscriber(func(c *broker.SubscriberConfig) { c.MaxBytes, c.AckWait = bound, time.Minute }).Subscribe(context.Background(), "test.>")
	must(t, err)
	first := <-out
	r.consumer("what fits is in hand", func(i *jetstream.ConsumerInfo) bool {
		if i.NumAckPending > bound/size {
			t.Errorf("%d messages of %d bytes are in hand, the bound is %d", i.NumAckPending, size, bound)
		}
		return i.NumAckPending >= bound/size/2
	})
	first.Ack()
	seen := map[string]bool{first.UUID: true}
	for len(seen) < n+2 {
		m := <-out
		seen[m.UUID] = true
		m.Ack()
	}
}

func TestOddHeadersAreCarried(t *testing.T) {
	t.Parallel()
	r := owned(t)
	e := event("k", 1)
	m := nats.NewMsg("test.x")
	for name, value := range e.Message().Metadata {
		m.Header[strings.ToUpper(name)] = []string{value}
	}
	for i := range 500 {
		m.Header[fmt.Sprint("x-", i)] = []string{""}
	}
	_, err := r.js.PublishMsg(context.Background(), m)
	must(t, err)
	out, err := r.subscriber().Subscribe(context.Background(), "test.>")
	must(t, err)
	w := <-out
	w.Ack()
	got, err := oncebox.Decode(w)
	must(t, err)
	if got.ID != e.ID || got.Key != e.Key || len(got.Headers) != 500 {
		t.Errorf("got %s of key %s with %d headers", got.ID, got.Key, len(got.Headers))
	}
}

// A handler that says that it has put a message in order is handed the key's next one, in order, before it is done.
func TestATakenMessageLetsTheNextOfItsKeyCome(t *testing.T) {
	t.Parallel()
	r := owned(t)
	const n = 50
	r.publish(messages(n, func(int) string { return "k" })...)
	out, err := r.subscriber().Subscribe(context.Background(), "test.>")
	must(t, err)
	var taken []*message.Message
	for i := 1; i <= n; i++ {
		m := <-out
		if m.UUID != event("", i).ID {
			t.Fatalf("%s came as number %d", m.UUID, i)
		}
		oncebox.Taken(m.Context())
		oncebox.Taken(m.Context()) // twice is once
		taken = append(taken, m)
	}
	var wg sync.WaitGroup
	for _, m := range taken {
		wg.Go(func() { m.Ack() })
	}
	wg.Wait()
	r.consumer("all are acknowledged, delivered once", func(i *jetstream.ConsumerInfo) bool {
		return i.AckFloor.Stream == n && i.Delivered.Consumer == n
	})
}

// Nobody reads any more: Close gives back what nobody took, and ends.
func TestCloseEndsWhenNobodyTakesTheMessages(t *testing.T) {
	t.Parallel()
	r := owned(t)
	r.publish(messages(10, func(i int) string { return fmt.Sprint(i) })...)
	s := r.subscriber(func(c *broker.SubscriberConfig) { c.CloseTimeout, c.AckWait = 50*time.Millisecond, time.Minute })
	out, err := s.Subscribe(context.Background(), "test.>")
	must(t, err)
	kept := <-out
	r.consumer("all are in hand", func(i *jetstream.ConsumerInfo) bool { return i.NumAckPending == 10 })
	must(t, s.Close())
	kept.Ack() // too late
	// The tenth comes again, and nobody takes it.
	out, err = r.subscriber(func(c *broker.SubscriberConfig) { c.CloseTimeout = 50 * time.Millisecond }).Subscribe(context.Background(), "test.>")
	must(t, err)
	for range 9 {
		(<-out).Ack()
	}
}
