package stacktest

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/oncebox/oncebox/internal/devstack"
)

// NATS returns a nats-server of the test's own, with JetStream on disk, removed at the end of the test. Options change its
// configuration before it starts. The test binary needs [Main].
func NATS(t testing.TB, opts ...func(*devstack.NATSConfig)) *devstack.NATS {
	t.Helper()
	var cfg devstack.NATSConfig
	for _, o := range opts {
		o(&cfg)
	}
	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	server, err := devstack.StartNATS(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Remove(); err != nil {
			t.Errorf("remove NATS: %v", err)
		}
	})
	return server
}

// StreamFolder is where server keeps the messages of a stream, without its consumers.
func StreamFolder(t testing.TB, server *devstack.NATS, stream string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(server.StorePath(), "jetstream", "*", "streams", stream, "msgs"))
	if err != nil || len(found) != 1 {
		t.Fatalf("the messages of %s are in %v: %v", stream, found, err)
	}
	return found[0]
}

// CopyFolder copies a folder and what is in it to a place where nothing is yet.
func CopyFolder(t testing.TB, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// SyncAlways is an option of [NATS]: JetStream syncs before each ack.
func SyncAlways(cfg *devstack.NATSConfig) { cfg.SyncAlways = true }

// reconnectWait is short, because a test that kills its server waits for the clients to be back.
const reconnectWait = 10 * time.Millisecond

// Connect returns a connection that is closed at the end of the test, and that comes back for as long as the server does.
func Connect(t testing.TB, server *devstack.NATS, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(server.URL(), append([]nats.Option{
		nats.MaxReconnects(-1),
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(0, 0)}, opts...)...)
	if err != nil {
		t.Fatalf("connect to %s: %v", server.URL(), err)
	}
	t.Cleanup(nc.Close)
	return nc
}
