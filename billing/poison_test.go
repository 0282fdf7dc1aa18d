package billing_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// A line is billing at a real broker: from the stream of orders to the charge.
type line struct {
	*rig
	nc *nats.Conn
	js jetstream.JetStream
}

// newLine returns a line that handles as a set, and starts it when the test calls the function.
func newLine(t *testing.T) (*line, func()) {
	t.Helper()
	l := &line{}
	var handle message.NoPublishHandlerFunc
	l.rig = rigOf(t, func(in *inbox.Inbox, s *billing.Service) (message.NoPublishHandlerFunc, error) {
		var err error
		handle, err = in.Group(s.GroupHandler(), inbox.GroupConfig{})
		return handle, err
	})
	l.nc = stacktest.Connect(t, stacktest.NATS(t))
	var err error
	l.js, err = jetstream.New(l.nc)
	must(t, err)
	sink, err := broker.NewSink(l.nc, broker.Stream(events.OrdersStream, events.OrdersSubjects), broker.SinkConfig{})
	must(t, err)
	_, _, err = sink.Open(context.Background(), 0)
	must(t, err)
	return l, func() {
		sub, err := broker.NewSubscriber(l.nc, broker.SubscriberConfig{Stream: events.OrdersStream, Group: billing.Name,
			MinRetry: 10 * time.Millisecond, MaxAckPending: 1000, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
		must(t, err)
		router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
		must(t, err)
		router.AddConsumerHandler(billing.Name, events.OrdersSubjects, sub, handle)
		go func() { _ = router.Run(context.Background()) }()
		t.Cleanup(func() {
			must(t, sub.Close())
			must(t, router.Close())
		})
	}
}

// settled waits until the consumer has acknowledged everything, and returns how many deliveries that took.
func (l *line) settled() uint64 {
	l.t.Helper()
	var deliveries uint64
	stacktest.Eventually(l.t, time.Minute, "everything is acknowledged", func() (bool, error) {
		c, err := l.js.Consumer(context.Background(), events.OrdersStream, billing.Name)
		if err != nil {
			return false, err
		}
		stream, err := l.js.Stream(context.Background(), events.OrdersStream)
		if err != nil {
			return false, err
		}
		i := c.CachedInfo()
		deliveries = i.Delivered.Consumer
		// Not by what is pending: right after a consumer is made that is 0.
		return i.AckFloor.Stream == stream.CachedInfo().State.LastSeq, nil
	})
	return deliveries
}

// What can come over a wire and is no good: each is one dead letter, or is refused by the broker, and no loop.
func TestEachBadMessageIsOneDeadLetter(t *testing.T) {
	t.Parallel()
	t.Run("poison-bad-json-missing-ce-id-multi-valued-header", func(t *testing.T) {
		header := func(change func(nats.Header)) func(*nats.Msg) { return func(m *nats.Msg) { change(m.Header) } }
		set := func(name, value string) func(*nats.Msg) {
			return header(func(h nats.Header) { h[name] = []string{value} })
		}
		unset := func(name string) func(*nats.Msg) { return header(func(h nats.Header) { delete(h, name) }) }
		data := func(format string) func(*nats.Msg) {
			return func(m *nats.Msg) {
				m.Data = []byte(strings.ReplaceAll(format, "ORDER", m.Header.Get(oncebox.HeaderKey)))
			}
		}
		body := func(field string) func(*nats.Msg) { return data(`{"order_id":"ORDER",` + field + `}`) }
		const refused, ignored = "refused by the broker", "acknowledged"
		bad := []struct {
			name   string
			change func(*nats.Msg)
			class  string
		}{
			{"nothing at all", func(m *nats.Msg) { m.Header, m.Data = nil, nil }, "undecodable"},
			{"random bytes", func(m *nats.Msg) { m.Header, m.Data = nil, []byte{0, 1, 0xff, 0xfe, 0x80} }, "undecodable"},
			{"no headers", func(m *nats.Msg) { m.Header = nil }, "undecodable"},
			{"another version of the envelope", set("ce-specversion", "2.0"), "undecodable"},
			{"no id", unset("ce-id"), "undecodable"},
			{"an empty id", set("ce-id", ""), "undecodable"},
			{"an id of 40,000 bytes", set("ce-id", strings.Repeat("x", 40000)), "undecodable"},
			{"headers of 100,000 bytes", set("x-long", strings.Repeat("x", 100000)), refused},
			{"an id that is sent twice", header(func(h nats.Header) { h["ce-id"] = []string{"a", "b"} }), "undecodable"},
			{"an id in two cases", set("CE-Id", "another"), "undecodable"},
			{"an id in the headers and another in the body", func(m *nats.Msg) {
				m.Data = fmt.Appendf(nil, `{"specversion":"1.0","id":%q,"source":"orders","type":%q,"partitionkey":%q,"datacontenttype":"application/json","data":%s}`,
					uuid.NewString(), m.Header.Get(oncebox.HeaderType), m.Header.Get(oncebox.HeaderKey), m.Data)
				m.Header = nats.Header{"ce-id": m.Header["ce-id"], "content-type": {"application/cloudevents+json"}}
			}, "undecodable"},
			{"no source", unset("ce-source"), "undecodable"},
			{"no type", unset("ce-type"), "undecodable"},
			{"an unknown type", set("ce-type", "orders.order.framed.v1"), ignored},
			{"a time that is none", set("ce-time", "yesterday"), "undecodable"},
			{"a negative version", set("ce-sequence", "-1"), "undecodable"},
			{"a version that is no number", set("ce-sequence", "one"), "undecodable"},
			{"a key that cannot be unescaped", set("ce-partitionkey", "%zz"), "undecodable"},
			{"a key with a NUL", set("ce-partitionkey", "%00"), "undecodable"},
			{"a tenant that is no UTF-8", set("ce-tenantid", "%ff"), "undecodable"},
			{"the key of another order", set("ce-partitionkey", uuid.NewString()), "malformed"},
			{"no data", func(m *nats.Msg) { m.Data = nil }, "malformed"},
			{"null", data("null"), "malformed"},
			{"an array", data("[]"), "malformed"},
			{"cut off", data(`{"order_id":"ORDER","amount":`), "malformed"},
			{"random bytes as data", func(m *nats.Msg) { m.Data = []byte{0, 1, 0xff, 0xfe, 0x80} }, "malformed"},
			{"an order id that is none", data(`{"order_id":"17","customer_id":"c","amount":1,"currency":"USD"}`), "malformed"},
			{"the order of another key", data(`{"order_id":"` + uuid.NewString() + `","customer_id":"c","amount":1,"currency":"USD"}`), "malformed"},
			{"more behind the end", data(`{"order_id":"ORDER","customer_id":"c","amount":1,"currency":"USD"}{}`), "malformed"},
			{"depth 20,000", func(m *nats.Msg) { m.Data = bytes.Repeat([]byte("["), 20000) }, "malformed"},
			{"a megabyte of spaces", func(m *nats.Msg) { m.Data = bytes.Repeat([]byte(" "), 1<<20-4096) }, "malformed"},
			{"no amount", body(`"customer_id":"c","currency":"USD"`), "malformed"},
			{"a negative amount", body(`"customer_id":"c","amount":-1,"currency":"USD"`), "malformed"},
			{"a fraction of a cent", body(`"customer_id":"c","amount":1.5,"currency":"USD"`), "malformed"},
			{"an amount that overflows", body(`"customer_id":"c","amount":9223372036854775808,"currency":"USD"`), "malformed"},
			{"an amount in words", body(`"customer_id":"c","amount":"1","currency":"USD"`), "malformed"},
			{"two amounts", body(`"customer_id":"c","amount":1,"amount":2,"currency":"USD"`), "malformed"},
			{"two amounts in two cases", body(`"customer_id":"c","amount":1,"Amount":2,"currency":"USD"`), "malformed"},
			{"a currency that is none", body(`"customer_id":"c","amount":1,"currency":"usd"`), "malformed"},
			{"a customer with a NUL", body(`"customer_id":"a\u0000b","amount":1,"currency":"USD"`), "malformed"},
			{"a customer that is no UTF-8", body(`"customer_id":"` + "\xff" + `","amount":1,"currency":"USD"`), "malformed"},
			{"a forged reply subject", func(m *nats.Msg) { m.Reply, m.Data = "$JS.ACK.ORDERS.billing.1.1.1.1.1", []byte("{}") }, refused},
			{"an order to roll up", set("Nats-Rollup", "all"), refused},
			{"an expected sequence", set("Nats-Expected-Last-Sequence", "7777"), refused},
			{"an expected message id", set("Nats-Expected-Last-Msg-Id", "another"), refused},
			{"an expected sequence of its subject", set("Nats-Expected-Last-Subject-Sequence", "7777"), refused},
			{"an expected stream", set("Nats-Expected-Stream", "ANOTHER"), refused},
		}
		l, start := newLine(t)
		var wantDead, wantDone, stored int
		ids := map[string]string{}
		for _, c := range bad {
			m := wire(request())
			c.change(m)
			if m.Reply != "" {
				must(t, l.nc.PublishMsg(m))
				must(t, l.nc.Flush())
			} else if _, err := l.js.PublishMsg(context.Background(), m); (err != nil) != (c.class == refused) {
				t.Fatalf("%s: publishing: %v", c.name, err)
			}
			switch c.class {
			case refused:
				continue
			case ignored:
				wantDone++
			default:
				wantDead++
			}
			stored++
			ids[c.name] = c.class
		}
		good := wire(request())
		good.Header.Set("Nats-Msg-Id", "another id: the broker's own")
		for i := range 500 {
			good.Header.Set(fmt.Sprint("x-header-", i), "value")
		}
		_, err := l.js.PublishMsg(context.Background(), good)
		must(t, err)
		start()
		if n := l.settled(); n != uint64(stored+1) {
			t.Errorf("%d deliveries of %d messages", n, stored+1)
		}
		want := map[string]int{}
		for _, class := range ids {
			if class != ignored {
				want[class]++
			}
		}
		l.want("dead letters", "SELECT class || ' ' || count(*) FROM oncebox.dead_letter GROUP BY class ORDER BY class",
			fmt.Sprint("malformed ", want["malformed"]), fmt.Sprint("undecodable ", want["undecodable"]))
		l.want("charges", "SELECT order_id::text FROM charge", good.Header.Get(oncebox.HeaderKey))
		l.want("inbox", "SELECT state || ' ' || count(*) FROM oncebox.inbox GROUP BY state ORDER BY state",
			fmt.Sprint("dead ", wantDead), fmt.Sprint("done ", wantDone+1))
	})
}

// wire is e as it is published.
func wire(e oncebox.Event) *nats.Msg {
	m := nats.NewMsg(e.Type)
	m.Data = e.Data
	for name, value := range e.Message().Metadata {
		m.Header[name] = []string{value}
	}
	return m
}
