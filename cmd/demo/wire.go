package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/oncebox/oncebox/internal/trial"
)

// A wire is the services' way to a server, which a fault cuts. It is Toxiproxy's, whose toxics act on the bytes of a connection. The
// link that loses replies is our own: which reply is lost depends on its request, which a toxic on the way back does not see, and
// the client is to get a reset, which Toxiproxy gives to all connections of a proxy or to none.
type wire struct{ proxy *toxiproxy.Proxy }

// openWire opens a way to addr until stop.
func (s *stack) openWire(name, addr string) (*wire, error) {
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	w := &wire{toxiproxy.NewProxy(server, name, "127.0.0.1:0", addr)}
	if err := w.proxy.Start(); err != nil {
		return nil, fmt.Errorf("open the way to %s: %w", name, err)
	}
	s.onStop(func(context.Context) error { w.proxy.Stop(); return nil })
	return w, nil
}

// cut closes the connections and refuses new ones for a while.
func (w *wire) cut(ctx context.Context, d time.Duration) error {
	w.proxy.Stop()
	err := trial.Pause(ctx, d)
	return errors.Join(err, w.proxy.Start())
}

// through is a server's URL by way of the wire.
func (w *wire) through(serverURL string) (string, error) {
	u, err := url.Parse(serverURL)
	if err != nil {
		return "", fmt.Errorf("the way to a server: %w", err)
	}
	u.Host = w.proxy.Listen
	return u.String(), nil
}

// wireToPostgres returns the services' URLs of their databases: through a wire, unless the server is somebody else's, whose TLS may
// ask for its name.
func (s *stack) wireToPostgres() (ordersURL, billingURL string, err error) {
	ordersURL, billingURL = s.ordersDB.Config().ConnString(), s.billingDB.Config().ConnString()
	if s.pg.External() {
		return ordersURL, billingURL, nil
	}
	to := s.ordersDB.Config().ConnConfig
	s.pgWire, err = s.openWire("postgres", fmt.Sprintf("%s:%d", to.Host, to.Port))
	if err != nil {
		return "", "", err
	}
	ordersURL, err = s.pgWire.through(ordersURL)
	billingURL, err2 := s.pgWire.through(billingURL)
	return ordersURL, billingURL, errors.Join(err, err2)
}
