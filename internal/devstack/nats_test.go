package devstack_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/internal/devstack"
)

func TestNATSKeepsItsStream(t *testing.T) {
	t.Parallel()
	broker := start(t, devstack.NATSConfig{SyncAlways: true})
	nc, js := connectNATS(t, broker)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "kept", Subjects: []string{"kept"}}); err != nil {
		t.Fatal(err)
	}
	for n, c := range []struct {
		after string
		down  func() error
	}{
		{"a restart", func() error { return nil }},
		{"a kill", broker.Kill},
		{"a stop", func() error { return broker.Stop(t.Context()) }},
		{"a stop while it was paused", func() error { return errors.Join(broker.Pause(), broker.Stop(t.Context())) }},
	} {
		t.Run("after "+c.after, func(t *testing.T) {
			if _, err := js.Publish(t.Context(), "kept", nil); err != nil {
				t.Fatal(err)
			}
			url, pid := broker.URL(), broker.Pid()
			if err := c.down(); err != nil {
				t.Fatal(err)
			}
			if err := broker.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			if broker.URL() != url {
				t.Errorf("the URL became %s, was %s", broker.URL(), url)
			}
			if broker.Pid() == pid {
				t.Error("the server is the same process")
			}
			eventually(t, "the client is back", nc.IsConnected)
			stream, err := js.Stream(t.Context(), "kept")
			if err != nil {
				t.Fatal(err)
			}
			if got := stream.CachedInfo().State.Msgs; got != uint64(n+1) {
				t.Errorf("%d messages, want %d", got, n+1)
			}
		})
	}
}

func TestPausedNATSAnswersWhenItIsContinued(t *testing.T) {
	t.Parallel()
	broker := start(t, devstack.NATSConfig{})
	nc, _ := connectNATS(t, broker)
	for range 3 {
		if err := broker.Pause(); err != nil {
			t.Fatal(err)
		}
		if err := nc.FlushTimeout(20 * time.Millisecond); !errors.Is(err, nats.ErrTimeout) {
			t.Fatalf("a paused server: %v, want a timeout", err)
		}
		if err := broker.Continue(); err != nil {
			t.Fatal(err)
		}
		if err := nc.FlushTimeout(10 * time.Second); err != nil {
			t.Fatalf("a continued server: %v", err)
		}
	}
}

func TestNATSOnATakenPortSaysSo(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	_, err = devstack.StartNATS(ctx, devstack.NATSConfig{Port: l.Addr().(*net.TCPAddr).Port})
	if err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("got %v, want one that says that the address is in use", err)
	}
}

func TestNATSWaitsForItsPort(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	time.AfterFunc(100*time.Millisecond, func() { l.Close() })
	broker := start(t, devstack.NATSConfig{Port: port})
	if want := fmt.Sprintf("nats://127.0.0.1:%d", port); broker.URL() != want {
		t.Errorf("URL %s, want %s", broker.URL(), want)
	}
}

func TestNATSURLNamesAServerThatIsNotOurs(t *testing.T) {
	t.Setenv("NATS_URL", "nats://elsewhere:4222")
	broker, err := devstack.OpenNATS(t.Context(), devstack.NATSConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if broker.URL() != "nats://elsewhere:4222" || broker.Pid() != 0 || !broker.External() {
		t.Errorf("URL %s, pid %d, external %t", broker.URL(), broker.Pid(), broker.External())
	}
	for what, err := range map[string]error{
		"Kill": broker.Kill(), "Pause": broker.Pause(), "Continue": broker.Continue(), "Restart": broker.Restart(t.Context()),
	} {
		if !errors.Is(err, devstack.ErrExternal) {
			t.Errorf("%s: %v, want ErrExternal", what, err)
		}
	}
	if err := errors.Join(broker.Stop(t.Context()), broker.Remove()); err != nil {
		t.Error(err)
	}
}

func connectNATS(t *testing.T, broker *devstack.NATS) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := nats.Connect(broker.URL(), nats.MaxReconnects(-1), nats.ReconnectWait(5*time.Millisecond), nats.ReconnectJitter(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}
