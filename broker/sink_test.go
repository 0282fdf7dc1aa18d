package broker_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// modes are the two ways in which a sink publishes.
var modes = map[string]broker.Sync{"singles": broker.SyncInterval, "batches": broker.SyncAlways}

func (r *rig) sinkIn(mode broker.Sync) *broker.Sink {
	r.t.Helper()
	s, err := broker.NewSink(r.nc, broker.Stream("TEST", "test.>"), broker.SinkConfig{Sync: mode})
	must(r.t, err)
	return s
}

func events(from, to int) []oncebox.Event {
	var out []oncebox.Event
	for n := from; n <= to; n++ {
		out = append(out, event("k", n))
	}
	return out
}

// inStream are the versions of the events in the stream, in its order.
func (r *rig) inStream() []int {
	r.t.Helper()
	s, err := r.js.Stream(context.Background(), "TEST")
	must(r.t, err)
	var out []int
	for seq := uint64(1); seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(context.Background(), seq)
		must(r.t, err)
		out = append(out, atoi(r.t, m.Header.Get(oncebox.HeaderVersion)))
	}
	return out
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	must(t, err)
	return n
}

func upTo(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i + 1
	}
	return out
}

// storeAll stores the events and waits for them.
func storeAll(s *broker.Sink, events []oncebox.Event) (stored, last uint64, err error) {
	if stored, last, err = s.Store(context.Background(), events); err != nil {
		return stored, last, err
	}
	return s.Flush(context.Background())
}

func TestTheSinkStoresInOrderAndALateWriterIsRefused(t *testing.T) {
	t.Parallel()
	for name, mode := range modes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			ctx := context.Background()
			old, young := r.sinkIn(mode), r.sinkIn(mode)
			_, _, err := old.Open(ctx, 0)
			must(t, err)
			stored, last, err := storeAll(old, events(1, 1500))
			if stored != 1500 || last != 1500 || err != nil {
				t.Fatalf("Store: %d stored, last %d, %v", stored, last, err)
			}
			last, created, err := young.Open(ctx, 1500)
			if last != 1500 || created.IsZero() || err != nil {
				t.Fatalf("Open: last %d, created %v, %v", last, created, err)
			}
			_, _, err = storeAll(young, events(1501, 1502))
			must(t, err)
			// The older writer is late: the stream itself refuses it, and all that it has on its way.
			if stored, _, err = storeAll(old, events(5000, 7000)); stored != 1500 || err == nil {
				t.Errorf("a late writer has stored %d events, %v", stored, err)
			}
			if old.Refusals() != 1 {
				t.Errorf("%d refusals, want 1", old.Refusals())
			}
			if got := r.inStream(); !slices.Equal(got, upTo(1502)) {
				t.Errorf("the stream holds %d events, or not in their order", len(got))
			}
			var ids []string
			must(t, young.ReadBack(ctx, 1499, 1502, func(id string) { ids = append(ids, id) }))
			if want := []string{event("", 1500).ID, event("", 1501).ID, event("", 1502).ID}; !slices.Equal(ids, want) {
				t.Errorf("read back %v, want %v", ids, want)
			}
		})
	}
}

// After a failover of the database a late batch of an older relay holds other events than ours does. Where it is as long, our next
// one would stand where it should. While such a batch may come ours wait for each other, so that none overtakes one that was
// refused; and at no time does one count for another.
func TestABatchBehindARefusedOneDoesNotVouchForIt(t *testing.T) {
	t.Parallel()
	for name, mode := range modes {
		for _, before := range []int{0, 6000} {
			t.Run(fmt.Sprint(name, " behind ", before), func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				ctx := context.Background()
				old, young := r.sinkIn(mode), r.sinkIn(mode)
				_, _, err := young.Open(ctx, 0)
				must(t, err)
				_, _, err = storeAll(young, events(1, before))
				must(t, err)
				_, _, err = old.Open(ctx, uint64(before))
				must(t, err)
				_, _, err = storeAll(old, events(10_001, 10_010))
				must(t, err)

				must(t, r.server.Pause()) // so that no refusal comes between the two
				_, _, err = young.Store(ctx, events(before+1, before+10))
				must(t, err)
				short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
				defer cancel()
				_, _, storeErr := young.Store(short, events(before+11, before+20))
				must(t, r.server.Continue())
				stored, last, err := young.Flush(ctx)
				if stored != uint64(before) || last != uint64(before) || err == nil {
					t.Errorf("%d events count as stored, up to %d, %v", stored, last, err)
				}
				overtaken := slices.Contains(r.inStream(), before+11)
				switch {
				case before == 0 && overtaken:
					t.Error("the second ten stand in the stream, and the first do not")
				case before > 0 && mode == broker.SyncAlways && !overtaken:
					t.Errorf("the second batch was not on its way with the first: %v", storeErr)
				}
			})
		}
	}
}

// The broker does not say which event of a batch it knows: they are stored one by one, and one that stands there is stored.
func TestEventsThatTheStreamHoldsCountAsStoredAfterTwoRefusals(t *testing.T) {
	t.Parallel()
	for name, mode := range modes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			ctx := context.Background()
			s := r.sinkIn(mode)
			_, _, err := s.Open(ctx, 0)
			must(t, err)
			_, _, err = storeAll(s, events(1, 3))
			must(t, err)
			again := append(events(2, 3), events(4, 6)...)
			for range 2 {
				_, _, err = s.Open(ctx, 3)
				must(t, err)
				stored, last, err := storeAll(s, again)
				if s.Fallbacks() == 0 {
					if stored != 0 || last != 3 || err == nil {
						t.Fatalf("%d stored, last %d, %v; want a refusal", stored, last, err)
					}
					continue
				}
				if stored != 5 || last != 6 || err != nil {
					t.Errorf("%d stored, last %d, %v", stored, last, err)
				}
			}
			if s.Fallbacks() != 1 || s.Refusals() != 1 {
				t.Errorf("%d fallbacks, %d refusals, want 1 of each", s.Fallbacks(), s.Refusals())
			}
			if got := r.inStream(); !slices.Equal(got, upTo(6)) {
				t.Errorf("the stream holds %v", got)
			}
		})
	}
}

func TestWhatTheStreamCanNeverHoldIsNamed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.sink()
	_, _, err := s.Open(context.Background(), 0)
	must(t, err)
	large := event("k", 1)
	large.Data = make([]byte, 1<<20+1)
	elsewhere := event("k", 2)
	elsewhere.Type = "other.happened.v1"
	wild := event("k", 3)
	wild.Type = "test.*"
	headers := event("k", 4)
	headers.Headers = map[string]string{}
	for i := range 20 {
		headers.Headers[strings.Repeat("x", 10+i)] = strings.Repeat("y", 4000)
	}
	for want, e := range map[string]oncebox.Event{"bytes with its headers": large, "no subject other": elsewhere, "character": wild, "bytes of headers": headers} {
		if err := s.Check(e); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Check says %v, want %q", err, want)
		}
	}
	must(t, s.Check(event("k", 5)))
	fits := event("k", 6)
	fits.Data = make([]byte, 1<<20-1000)
	must(t, s.Check(fits))
	_, _, err = storeAll(s, []oncebox.Event{fits})
	must(t, err)
}

func TestAStreamThatIsNotTheRelaysAloneIsRefused(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*jetstream.StreamConfig){
		"retention":                 func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy },
		"no_ack":                    func(c *jetstream.StreamConfig) { c.NoAck = true },
		"mirror":                    func(c *jetstream.StreamConfig) { c.Mirror = &jetstream.StreamSource{Name: "X"} },
		"allow_rollup_hdrs":         func(c *jetstream.StreamConfig) { c.AllowRollup = true },
		"subject_delete_marker_ttl": func(c *jetstream.StreamConfig) { c.SubjectDeleteMarkerTTL = 1 },
		"allow_msg_schedules":       func(c *jetstream.StreamConfig) { c.AllowMsgSchedules = true },
		"deny_delete":               func(c *jetstream.StreamConfig) { c.DenyDelete = false },
		"deny_purge":                func(c *jetstream.StreamConfig) { c.DenyPurge = false },
	} {
		cfg := broker.Stream("TEST", "test.>")
		change(&cfg)
		if _, err := broker.NewSink(&nats.Conn{}, cfg, broker.SinkConfig{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("NewSink says %v, want %q", err, want)
		}
	}
}

// A server tells on its monitoring address whether it syncs always.
func TestTheMonitoringAddressTellsWhetherTheServerSyncs(t *testing.T) {
	t.Parallel()
	for name, always := range map[string]bool{"always": true, "by default": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			port, err := devstack.FreePort()
			must(t, err)
			server := stacktest.NATS(t, func(c *devstack.NATSConfig) { c.SyncAlways, c.MonitorPort = always, port })
			s, err := broker.NewSink(stacktest.Connect(t, server), broker.Stream("TEST", "test.>"),
				broker.SinkConfig{MonitorURLs: []string{fmt.Sprintf("http://127.0.0.1:%d/", port)}})
			must(t, err)
			_, _, err = s.Open(context.Background(), 0)
			must(t, err)
			if durable, why := s.Durable(); durable != always {
				t.Errorf("durable is %v: %s", durable, why)
			}
		})
	}
}
