package outbox_test

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/outbox"
)

// wires are all that a relay in this process has to the database and the broker. Cut, it is as a process that was killed: nobody
// hears of it any more. Stopped, it is as one that was paused: what it was about to say it says when it goes on. Held up, it is
// on a slow link: its bytes to the broker stay under way from some byte on.
type wires struct {
	mu           sync.Mutex
	changed      *sync.Cond
	conns        []net.Conn
	cut, stopped bool
	left         int // bytes to the broker that still go through; below 0: they are held up
	held         bool
}

// unheld is more than a test sends.
const unheld = 1 << 60

func newWires() *wires {
	w := &wires{left: unheld}
	w.changed = sync.NewCond(&w.mu)
	return w
}

// A wire is one connection of a relay.
type wire struct {
	net.Conn
	w        *wires
	toBroker bool
}

func (w *wires) dial(ctx context.Context, address string, toBroker bool) (net.Conn, error) {
	if err := w.pass(0); err != nil {
		return nil, err
	}
	c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns = append(w.conns, c)
	return &wire{c, w, toBroker}, nil
}

// Dial is what nats.SetCustomDialer asks for.
func (w *wires) Dial(_, address string) (net.Conn, error) {
	return w.dial(context.Background(), address, true)
}

// pass waits until bytes may go through.
func (w *wires) pass(toBroker int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left -= toBroker
	for !w.cut && (w.stopped || toBroker > 0 && w.left < 0) {
		w.held = w.held || w.left < 0
		w.changed.Wait()
	}
	if w.cut {
		return net.ErrClosed
	}
	return nil
}

func (c *wire) Write(b []byte) (int, error) {
	n := 0
	if c.toBroker {
		n = len(b)
	}
	if err := c.w.pass(n); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

func (c *wire) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if cut := c.w.pass(0); cut != nil {
		return 0, cut
	}
	return n, err
}

func (w *wires) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	w.changed.Broadcast()
}

// holdBehind holds up what is sent to the broker, some bytes on from now.
func (w *wires) holdBehind(bytes int) { w.set(func() { w.left, w.held = bytes, false }) }

func (w *wires) open() { w.set(func() { w.left = unheld }) }

// holds says whether bytes are held up.
func (w *wires) holds() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.held
}

func (w *wires) Pause() error {
	w.set(func() { w.stopped = true })
	return nil
}

func (w *wires) Continue() error {
	w.set(func() { w.stopped = false })
	return nil
}

// A wiredRelay runs in this process, and all its connections are wires.
type wiredRelay struct {
	*wires
	*outbox.Relay
	cancel func()
	done   chan struct{}
}

// Kill ends the relay as SIGKILL does, for all but this process.
func (w *wiredRelay) Kill() error {
	w.set(func() {
		w.cut = true
		for _, c := range w.conns {
			c.Close()
		}
	})
	w.cancel()
	return nil
}

// Stop ends the relay as SIGTERM does.
func (w *wiredRelay) Stop(ctx context.Context) error {
	w.cancel()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wired starts a relay on wires. at says where the database is, each time that it is asked for.
func (r *rig) wired(to broker.SinkConfig, at func(address string) string, cfg outbox.RelayConfig) *wiredRelay {
	r.t.Helper()
	w := newWires()
	db := r.pool.Config()
	db.MaxConns = 4
	db.ConnConfig.DialFunc = func(ctx context.Context, _, address string) (net.Conn, error) { return w.dial(ctx, at(address), false) }
	pool, err := pgxpool.NewWithConfig(context.Background(), db)
	must(r.t, err)
	nc, err := broker.Connect(r.nc.Servers()[0], "relay", slog.New(slog.DiscardHandler), nats.SetCustomDialer(w),
		nats.ReconnectWait(10*time.Millisecond), nats.ReconnectJitter(0, 0), inbox(r.declared.Name))
	must(r.t, err)
	sink, err := broker.NewSink(nc, r.declared, to)
	must(r.t, err)
	relay, err := outbox.NewRelay(pool, sink, cfg)
	must(r.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	p := &wiredRelay{wires: w, Relay: relay, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		if err := relay.Run(ctx); err != nil {
			r.t.Errorf("Run: %v", err)
		}
		nc.Close()
		pool.Close()
	}()
	r.t.Cleanup(func() {
		_ = p.Kill()
		<-p.done
	})
	return p
}

// gated runs a relay whose bytes are held up once it has sent some of them.
func (r *rig) gated(sync broker.Sync) *wiredRelay {
	r.t.Helper()
	p := r.wired(broker.SinkConfig{Sync: sync, Timeout: 10 * time.Second}, func(address string) string { return address },
		outbox.RelayConfig{Name: "test", Lease: 250 * time.Millisecond, MinPoll: time.Millisecond, MaxPoll: 20 * time.Millisecond,
			Registerer: prometheus.NewRegistry(), Logger: slog.New(slog.NewTextHandler(r.t.Output(), nil))})
	p.holdBehind(60_000)
	return p
}
