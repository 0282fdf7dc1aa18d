package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/oncebox/oncebox/internal/devstack"
)

// A link is a way to a server or a service, which has weather. Its name says whose: http/orders-1 is the clients' way there,
// nats/orders-1 its own way to the broker.
type link struct {
	name  string
	proxy *toxiproxy.Proxy
	turn  turn // one weather at a time
}

func (w *world) newLink(name, to string) (*link, error) {
	port, err := devstack.FreePort() // of our own choice, so that it is still ours after a cut
	if err != nil {
		return nil, err
	}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	l := &link{name: name, turn: newTurn(),
		proxy: toxiproxy.NewProxy(server, strings.ReplaceAll(name, "/", "-"), fmt.Sprintf("127.0.0.1:%d", port), to)}
	if err := l.proxy.Start(); err != nil {
		return nil, fmt.Errorf("open the link %s: %w", name, err)
	}
	w.onStop(func(context.Context) error { l.proxy.Stop(); return nil })
	w.links = append(w.links, l)
	return l, nil
}

func (l *link) addr() string { return l.proxy.Listen }

// A weather is what may happen on a link, as Toxiproxy has it.
type weather struct {
	name, stream, toxic string
	toxicity            float64
	attributes          string
	only                string // the kind of link, "" for any
}

// weathers are all there are. A cut is no toxic: the proxy is closed.
var weathers = []weather{
	{"latency", "downstream", "latency", 1, `{"latency": 60, "jitter": 40}`, ""},
	{"cut", "", "", 1, "", ""},
	{"reset", "downstream", "reset_peer", 0.5, `{"timeout": 5}`, ""},
	{"half-open", "upstream", "timeout", 1, `{"timeout": 0}`, ""},
	{"slow-close", "downstream", "slow_close", 1, `{"delay": 400}`, "http"},
	{"reply-lost", "downstream", "limit_data", 0.6, `{"bytes": 0}`, "http"},
	{"cut-in-reply", "downstream", "limit_data", 1, `{"bytes": 20000}`, "postgres"},
	{"sliced", "downstream", "slicer", 1, `{"average_size": 40, "size_variation": 20, "delay": 200}`, ""},
	{"sliced-requests", "upstream", "slicer", 1, `{"average_size": 40, "size_variation": 20, "delay": 200}`, ""},
}

func weatherNamed(name string) weather {
	for _, w := range weathers {
		if w.name == name {
			return w
		}
	}
	panic("no weather " + name)
}

// begin returns what ends it again.
func (l *link) begin(w weather) (end func() error, err error) {
	if w.toxic == "" {
		l.proxy.Stop()
		return l.proxy.Start, nil
	}
	_, err = l.proxy.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(`{"name": %q, "type": %q, "stream": %q, "toxicity": %g, "attributes": %s}`,
		w.name, w.toxic, w.stream, w.toxicity, w.attributes)))
	if err != nil {
		return nil, fmt.Errorf("disturb the link %s: %w", l.name, err)
	}
	return func() error { return l.proxy.Toxics.RemoveToxic(context.Background(), w.name) }, nil
}
