package oncebox_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/oncebox/oncebox"
)

func valid() oncebox.Event {
	return oncebox.Event{
		ID: "0190b5a0-1111-7000-8000-000000000001", Source: "orders", Type: "orders.charge.requested.v1", Key: "order-1",
		Version: 3, Seq: 42, TenantID: "acme", Time: time.Date(2026, 11, 23, 1, 2, 3, 456789000, time.UTC),
		CorrelationID: "corr", CausationID: "cause", TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		Headers: map[string]string{"x-region": "eu"}, Data: []byte(`{"a":1}`),
	}
}

func TestDecodeReturnsWhatMessageWrote(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[^\x00]{0,40}`)
		e := valid()
		e.Key = rapid.StringMatching(`[^\x00]{1,40}`).Draw(t, "key")
		e.TenantID, e.CorrelationID = text.Draw(t, "tenant"), text.Draw(t, "correlation")
		e.Version = rapid.Int64Range(0, 1<<62).Draw(t, "version")
		e.Time = time.UnixMicro(rapid.Int64Range(0, 4e15).Draw(t, "time")).UTC()
		e.Data = rapid.SliceOf(rapid.Byte()).Draw(t, "data")
		e.Type = rapid.StringMatching(`[!-~]{1,20}(\.[!-~]{1,20})?`).Draw(t, "type")
		e.Headers = rapid.MapOfN(rapid.StringMatching(`x[!#-'*+.^_a-z|~-]{1,20}`), rapid.StringMatching(`[!-~]([ -~]{0,20}[!-~])?`), 0, 3).Draw(t, "headers")
		if len(e.Headers) == 0 {
			e.Headers = nil
		}
		if e.Validate() != nil { // for its type; that of a valid event comes back
			e.Type = valid().Type
		}
		got, err := oncebox.Decode(e.Message())
		if err != nil {
			t.Fatalf("Decode: %v", err)
		}
		if diff := cmp.Diff(e, got); diff != "" {
			t.Fatalf("event changed on the way (-sent +got):\n%s", diff)
		}
	})
}

func TestDecodeTakesHeadersOfAnyCase(t *testing.T) {
	m := valid().Message()
	upper := message.NewMessage(m.UUID, m.Payload)
	for name, value := range m.Metadata {
		upper.Metadata[strings.ToUpper(name[:1])+name[1:]] = value
	}
	got, err := oncebox.Decode(upper)
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != valid().ID || got.Key != valid().Key || got.Version != valid().Version {
		t.Errorf("got %+v", got)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, change := range map[string]func(message.Metadata){
		"no id":                     func(m message.Metadata) { delete(m, "ce-id") },
		"no source":                 func(m message.Metadata) { delete(m, "ce-source") },
		"no type":                   func(m message.Metadata) { delete(m, "ce-type") },
		"no spec version":           func(m message.Metadata) { delete(m, "ce-specversion") },
		"another spec version":      func(m message.Metadata) { m["ce-specversion"] = "0.3" },
		"version that is no number": func(m message.Metadata) { m["ce-sequence"] = "three" },
		"negative version":          func(m message.Metadata) { m["ce-sequence"] = "-1" },
		"overflowing version":       func(m message.Metadata) { m["ce-sequence"] = "99999999999999999999" },
		"time that is none":         func(m message.Metadata) { m["ce-time"] = "yesterday" },
		"bad escape":                func(m message.Metadata) { m["ce-partitionkey"] = "%zz" },
		"escaped NUL":               func(m message.Metadata) { m["ce-partitionkey"] = "a%00b" },
		"no UTF-8":                  func(m message.Metadata) { m["ce-partitionkey"] = "%ff" },
		"huge id":                   func(m message.Metadata) { m["ce-id"] = strings.Repeat("x", 1<<20) },
		"two cases of one header":   func(m message.Metadata) { m["Ce-Id"] = "other" },
		"refused by a subscriber":   func(m message.Metadata) { m[oncebox.HeaderRefused] = "header ce-id is sent 2 times" },
	} {
		t.Run(name, func(t *testing.T) {
			m := valid().Message()
			change(m.Metadata)
			if e, err := oncebox.Decode(m); !errors.Is(err, oncebox.ErrInvalid) {
				t.Errorf("got %+v, %v; want ErrInvalid", e, err)
			}
		})
	}
}

func TestValidateRefuses(t *testing.T) {
	for name, change := range map[string]func(*oncebox.Event){
		"an id that is no UUID":      func(e *oncebox.Event) { e.ID = "17" },
		"no type":                    func(e *oncebox.Event) { e.Type = "" },
		"a wildcard in the type":     func(e *oncebox.Event) { e.Type = "orders.>" },
		"a space in the type":        func(e *oncebox.Event) { e.Type = "orders x" },
		"an empty token":             func(e *oncebox.Event) { e.Type = "orders..v1" },
		"no key":                     func(e *oncebox.Event) { e.Key = "" },
		"a NUL in the key":           func(e *oncebox.Event) { e.Key = "a\x00b" },
		"a key too long":             func(e *oncebox.Event) { e.Key = strings.Repeat("k", 2000) },
		"a negative version":         func(e *oncebox.Event) { e.Version = -1 },
		"a header of the envelope":   func(e *oncebox.Event) { e.Headers = map[string]string{"Ce-Id": "x"} },
		"a header of the broker":     func(e *oncebox.Event) { e.Headers = map[string]string{"Nats-Rollup": "all"} },
		"a line break in a header":   func(e *oncebox.Event) { e.Headers = map[string]string{"a": "b\r\nNats-Rollup: all"} },
		"a percent in the type":      func(e *oncebox.Event) { e.Type = "orders.%41b.v1" },
		"a quote in the type":        func(e *oncebox.Event) { e.Type = `orders."a".v1` },
		"a slash in a header's name": func(e *oncebox.Event) { e.Headers = map[string]string{"app/trace": "1"} },
		"a header by two cases":      func(e *oncebox.Event) { e.Headers = map[string]string{"X-A": "1", "x-a": "2"} },
		"a second media type":        func(e *oncebox.Event) { e.Headers = map[string]string{"Content-Type": "text/plain"} },
		"blanks around a value":      func(e *oncebox.Event) { e.Headers = map[string]string{"a": " b"} },
		"a colon in a header's name": func(e *oncebox.Event) { e.Headers = map[string]string{"a:b": "c"} },
	} {
		t.Run(name, func(t *testing.T) {
			e := valid()
			change(&e)
			if err := e.Validate(); !errors.Is(err, oncebox.ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			}
		})
	}
	if err := valid().Validate(); err != nil {
		t.Errorf("a valid event: %v", err)
	}
}

func TestDerivedIDIsAFunctionOfItsCause(t *testing.T) {
	cause := valid()
	id := oncebox.DerivedID(cause, "billing", "billing.charge.succeeded.v1", 0)
	if again := oncebox.DerivedID(cause, "billing", "billing.charge.succeeded.v1", 0); again != id {
		t.Errorf("the second run made %s, the first %s", again, id)
	}
	if u := uuid.MustParse(id); u.Version() != 8 || u.Variant() != uuid.RFC4122 {
		t.Errorf("%s is of version %d, variant %s", id, u.Version(), u.Variant())
	}
	other := cause
	other.ID = "0190b5a0-1111-7000-8000-000000000002"
	later := cause
	later.Time = cause.Time.Add(time.Second)
	seen := map[string]string{id: "itself"}
	for name, id := range map[string]string{
		"another cause":    oncebox.DerivedID(other, "billing", "billing.charge.succeeded.v1", 0),
		"another consumer": oncebox.DerivedID(cause, "audit", "billing.charge.succeeded.v1", 0),
		"another type":     oncebox.DerivedID(cause, "billing", "billing.charge.declined.v1", 0),
		"another number":   oncebox.DerivedID(cause, "billing", "billing.charge.succeeded.v1", 1),
		"shifted fields":   oncebox.DerivedID(cause, "billingb", "illing.charge.succeeded.v1", 0),
	} {
		if with, dup := seen[id]; dup {
			t.Errorf("%s has the same id as %s", name, with)
		}
		seen[id] = name
	}
	if oncebox.DerivedID(later, "billing", "t", 0) <= oncebox.DerivedID(cause, "billing", "t", 0) {
		t.Error("ids do not sort by the causes' times")
	}
}

func TestDeliveredIsWhatTheSubscriberNoted(t *testing.T) {
	if n := oncebox.Delivered(context.Background()); n != 0 {
		t.Errorf("without a note: %d", n)
	}
	if n := oncebox.Delivered(oncebox.WithDelivered(context.Background(), 3)); n != 3 {
		t.Errorf("got %d, want 3", n)
	}
}
