package events_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/go-cmp/cmp"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/events"
)

var update = flag.Bool("update", false, "write the golden wire forms anew: a change of one is a breaking change")

const (
	order  = "0190b5a0-0000-7000-8000-0000000000aa"
	charge = "0190b5a0-0000-8000-8000-0000000000bb"
)

// TestWireFormsStayAsTheyAre holds each type of event to what was sent of it before.
func TestWireFormsStayAsTheyAre(t *testing.T) {
	request, err := events.New("acme", 1, events.ChargeRequested{
		OrderID: order, CustomerID: "customer-1", Amount: 10000, Currency: "USD", Description: "two tickets"})
	if err != nil {
		t.Fatal(err)
	}
	request = sent(request, "orders", 7)
	request.TraceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	cancelled, err := events.New("acme", 2, events.OrderCancelled{OrderID: order, CustomerID: "customer-1", Amount: 10000, Currency: "USD"})
	if err != nil {
		t.Fatal(err)
	}
	answer := func(p events.Payload) oncebox.Event {
		e, err := events.Answer(request, "billing", p)
		if err != nil {
			t.Fatal(err)
		}
		return sent(e, "billing", 9)
	}
	for _, e := range []oncebox.Event{
		request,
		sent(cancelled, "orders", 8),
		answer(events.ChargeSucceeded{OrderID: order, ChargeID: charge, Amount: 10000, Currency: "USD"}),
		answer(events.ChargeDeclined{OrderID: order, ChargeID: charge, Amount: 10000, Currency: "USD", Reason: "the amount is above the limit"}),
		answer(events.ChargeRefunded{OrderID: order, ChargeID: charge, Amount: 10000, Currency: "USD"}),
	} {
		t.Run(e.Type, func(t *testing.T) {
			file := filepath.Join("testdata", e.Type+".golden")
			got := wire(e.Message())
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("the wire form changed (-was +is):\n%s", diff)
			}
			read, err := oncebox.Decode(unwire(t, want))
			if err != nil {
				t.Fatalf("what was sent before cannot be read: %v", err)
			}
			if diff := cmp.Diff(e, read); diff != "" {
				t.Errorf("what was sent before reads otherwise (-sent +read):\n%s", diff)
			}
		})
	}
}

// sent is e as the outbox hands it to the relay.
func sent(e oncebox.Event, source string, seq int64) oncebox.Event {
	e.Source, e.Seq, e.Time = source, seq, time.Date(2026, 11, 23, 1, 2, 3, 456789000, time.UTC)
	if e.ID == "" {
		e.ID = fmt.Sprintf("0190b5a0-0000-7000-8000-%012d", seq)
	}
	return e
}

// wire is a message as NATS carries it: headers, an empty line, the data.
func wire(m *message.Message) []byte {
	var b bytes.Buffer
	names := make([]string, 0, len(m.Metadata))
	for name := range m.Metadata {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "%s: %s\n", name, m.Metadata[name])
	}
	fmt.Fprintf(&b, "\n%s", m.Payload)
	return b.Bytes()
}

func unwire(t *testing.T, b []byte) *message.Message {
	head, data, ok := bytes.Cut(b, []byte("\n\n"))
	if !ok {
		t.Fatal("no empty line between headers and data")
	}
	m := message.NewMessage("", data)
	for line := range bytes.Lines(head) {
		name, value, _ := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(": "))
		m.Metadata[string(name)] = string(value)
	}
	return m
}
