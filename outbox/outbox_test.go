package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

func TestMain(m *testing.M) {
	if relayProcess() {
		return
	}
	stacktest.Main(m)
}

const stream = "TEST"

// A rig is an outbox on a database of its own and a nats-server of its own.
type rig struct {
	t      *testing.T
	pool   *pgxpool.Pool
	writer *outbox.Writer
	server *devstack.NATS
	nc     *nats.Conn
	js     jetstream.JetStream

	declared jetstream.StreamConfig
}

func newRig(t *testing.T) *rig {
	t.Helper()
	return rigOn(t, stacktest.Postgres(t, migrations.Outbox), stacktest.NATS(t))
}

func rigOn(t *testing.T, pool *pgxpool.Pool, server *devstack.NATS) *rig {
	t.Helper()
	nc, err := broker.Connect(server.URL(), t.Name(), slog.New(slog.DiscardHandler), nats.ReconnectWait(10*time.Millisecond), nats.ReconnectJitter(0, 0))
	must(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	must(t, err)
	w, err := outbox.NewWriter(outbox.WriterConfig{Source: "test"})
	must(t, err)
	return &rig{t: t, pool: pool, writer: w, server: server, nc: nc, js: js, declared: broker.Stream(stream, "test.>")}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A running relay.
type running struct {
	*outbox.Relay
	reg  *prometheus.Registry
	stop func() // as at SIGTERM: returns when Run has
}

// relay runs one at a twentieth of the default times. change may set other options.
func (r *rig) relay(change ...func(*outbox.RelayConfig)) *running {
	r.t.Helper()
	return r.relayOn(broker.SinkConfig{Timeout: 5 * time.Second}, change...)
}

func (r *rig) relayOn(to broker.SinkConfig, change ...func(*outbox.RelayConfig)) *running {
	r.t.Helper()
	sink, err := broker.NewSink(r.nc, r.declared, to)
	must(r.t, err)
	reg := prometheus.NewRegistry()
	cfg := outbox.RelayConfig{Name: "test", Lease: 250 * time.Millisecond, MinPoll: time.Millisecond, MaxPoll: 20 * time.Millisecond,
		SaveEvery: 10 * time.Millisecond, Page: 50, Registerer: reg, Logger: slog.New(slog.NewTextHandler(r.t.Output(), nil))}
	for _, f := range change {
		f(&cfg)
	}
	relay, err := outbox.NewRelay(r.pool, sink, cfg)
	must(r.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	})
	r.t.Cleanup(stop)
	return &running{Relay: relay, reg: reg, stop: stop}
}

// metric is the value of the relay's counter or gauge of that name, and how often its histogram has been given one.
func (r *running) metric(t testing.TB, name string) float64 {
	t.Helper()
	families, err := r.reg.Gather()
	must(t, err)
	for _, f := range families {
		if f.GetName() == "oncebox_relay_"+name {
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	t.Fatalf("no metric %s among %d", name, len(families))
	return 0
}

func event(key string, version int64) oncebox.Event {
	return oncebox.Event{ID: uuid.NewString(), Type: "test.happened.v1", Key: key, Version: version, Data: []byte(`{}`)}
}

// commit adds events in a transaction of their own.
func (r *rig) commit(events ...oncebox.Event) {
	r.t.Helper()
	must(r.t, pgx.BeginFunc(context.Background(), r.pool, func(tx pgx.Tx) error {
		return r.writer.Add(context.Background(), tx, events...)
	}))
}

// begin begins a transaction that the test ends.
func (r *rig) begin() pgx.Tx {
	r.t.Helper()
	tx, err := r.pool.Begin(context.Background())
	must(r.t, err)
	r.t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

func (r *rig) add(tx pgx.Tx, events ...oncebox.Event) {
	r.t.Helper()
	must(r.t, r.writer.Add(context.Background(), tx, events...))
}

// log is what stands in the stream, in its order; nothing while there is no stream.
func (r *rig) log() []oncebox.Event {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		events, err := r.read(ctx)
		if errors.Is(err, errNoStream) {
			return nil
		}
		if errors.Is(err, nats.ErrNoResponders) && ctx.Err() == nil { // the servers of a cluster are choosing a leader
			continue
		}
		must(r.t, err)
		return events
	}
}

var errNoStream = errors.New("the stream cannot be looked at")

func (r *rig) read(ctx context.Context) ([]oncebox.Event, error) {
	s, err := r.js.Stream(ctx, r.declared.Name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoStream, err)
	}
	reader, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	var events []oncebox.Event
	for left := s.CachedInfo().State.Msgs; left > 0; {
		batch, err := reader.Fetch(int(min(left, 5000)), jetstream.FetchMaxWait(10*time.Second))
		if err != nil {
			return nil, err
		}
		for m := range batch.Messages() {
			h := m.Headers()
			e := oncebox.Event{ID: h.Get(oncebox.HeaderID), Type: m.Subject(), Key: h.Get(oncebox.HeaderKey), Data: m.Data()}
			if e.Version, err = strconv.ParseInt(h.Get(oncebox.HeaderVersion), 10, 64); err != nil {
				return nil, fmt.Errorf("message %s: %w", e.ID, err)
			}
			events = append(events, e)
			left--
		}
		if err := errors.Join(batch.Error(), ctx.Err()); err != nil {
			return nil, err
		}
	}
	return events, nil
}

// logged is how many messages stand in the stream.
func (r *rig) logged() int {
	s, err := r.js.Stream(context.Background(), r.declared.Name)
	if err != nil {
		return 0
	}
	return int(s.CachedInfo().State.Msgs)
}

func ids(events []oncebox.Event) []string {
	out := make([]string, len(events))
	for i, e := range events {
		out[i] = e.ID
	}
	return out
}

// eventuallyLogged waits until the stream holds just these, in this order.
func (r *rig) eventuallyLogged(want ...oncebox.Event) {
	r.t.Helper()
	stacktest.Eventually(r.t, time.Minute, fmt.Sprintf("the stream holds %d events", len(want)), func() (bool, error) {
		return reached(r.logged(), len(want))
	})
	if got := r.log(); !slices.Equal(ids(got), ids(want)) {
		r.t.Fatalf("the stream holds %v, want %v", ids(got), ids(want))
	}
}

// reached is a condition to wait for.
func reached(n, want int) (bool, error) {
	if n < want {
		return false, fmt.Errorf("%d of %d", n, want)
	}
	return true, nil
}

// lines collects what a relay logs.
type lines struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *lines) to(c *outbox.RelayConfig) { c.Logger = slog.New(slog.NewTextHandler(l, nil)) }

func (l *lines) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.all.String(), s)
}
