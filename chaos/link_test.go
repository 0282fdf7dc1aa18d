package chaos

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/oncebox/oncebox/internal/devstack"
)

// A link is a way to a server, such as a service's to NATS.
type link struct {
	proxy *toxiproxy.Proxy
}

func newLink(t testing.TB, nats *devstack.NATS) *link {
	t.Helper()
	return newLinkTo(t, "nats", strings.TrimPrefix(nats.URL(), "nats://"))
}

func newLinkTo(t testing.TB, name, addr string) *link {
	t.Helper()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	// A port of our own choice, so that it is still ours after a cut.
	l := &link{toxiproxy.NewProxy(server, name, freeAddr(t), addr)}
	l.mend(t)
	t.Cleanup(l.proxy.Stop)
	return l
}

// url is how a user of nats.conf comes through the link.
func (l *link) url(user string) string {
	return "nats://" + user + ":" + natsPassword(user) + "@" + l.proxy.Listen
}

// hostPort is where the link begins.
func (l *link) hostPort(t testing.TB) (host string, port uint16) {
	t.Helper()
	addr, err := netip.ParseAddrPort(l.proxy.Listen)
	if err != nil {
		t.Fatal(err)
	}
	return addr.Addr().String(), addr.Port()
}

// cut closes the service's connections and refuses new ones.
func (l *link) cut() { l.proxy.Stop() }

// mend undoes cut.
func (l *link) mend(t testing.TB) {
	t.Helper()
	if err := l.proxy.Start(); err != nil {
		t.Fatalf("open the link: %v", err)
	}
}

// swallow drops whatever the service sends from now on, while its connections stay open and what NATS sends still arrives.
func (l *link) swallow(t testing.TB) {
	l.add(t, `{"type": "timeout", "stream": "upstream", "attributes": {"timeout": 0}}`)
}

// slow makes what NATS sends arrive later.
func (l *link) slow(t testing.TB, by time.Duration) {
	l.add(t, fmt.Sprintf(`{"type": "latency", "stream": "downstream", "attributes": {"latency": %d}}`, by.Milliseconds()))
}

func (l *link) add(t testing.TB, toxic string) {
	t.Helper()
	if _, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
		t.Fatalf("disturb the link: %v", err)
	}
}

// heal undoes swallow and slow.
func (l *link) heal(t testing.TB) { l.proxy.Toxics.ResetToxics(t.Context()) }

// freeAddr is an address to listen on.
func freeAddr(t testing.TB) string {
	t.Helper()
	port, err := devstack.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}
