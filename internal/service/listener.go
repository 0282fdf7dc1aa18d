package service

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/netutil"
)

// A listener is an HTTP server that runs.
type listener struct {
	server *http.Server
	socket net.Listener
	open   *atomic.Int64 // connections
	addr   string
	done   <-chan error
}

// limits are what one listener grants its clients. A client that is slower than the times is cut off.
type limits struct {
	conns                     int
	header, read, write, idle time.Duration
}

// Nobody but operators and their monitoring come here, and what they ask is small.
var adminLimits = limits{conns: 64, header: 5 * time.Second, read: 10 * time.Second, write: 30 * time.Second, idle: time.Minute}

func publicLimits(o Options) limits {
	return limits{conns: o.Access.MaxHTTPConns, header: 5 * time.Second, read: 15 * time.Second, write: 30 * time.Second, idle: time.Minute}
}

const (
	// maxHeader bounds a request line and its headers, cookies, baggage and all, in bytes.
	maxHeader = 16 << 10
	// readHeader is what net/http reads before it gives up by itself, in plain text. Between the two a client gets a problem.
	readHeader = 128 << 10
	// maxBody bounds every body, in bytes; an operation may grant less.
	maxBody = 1 << 20
)

func listen(name, addr string, h http.Handler, grant limits, log *slog.Logger, reg prometheus.Registerer) (listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return listener{}, fmt.Errorf("listen: %w", err)
	}
	tcp := l.(*net.TCPListener)
	socket := &draining{Listener: netutil.LimitListener(tcp, grant.conns), tcp: tcp, most: maxDrained}
	open := new(atomic.Int64)
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "http", Name: "connections", Help: "Connections that are open.",
			ConstLabels: prometheus.Labels{"listener": name}}, func() float64 { return float64(open.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "http", Name: "connections_max", Help: "Most connections at once.",
			ConstLabels: prometheus.Labels{"listener": name}}, func() float64 { return float64(grant.conns) }))
	s := &http.Server{
		Handler: bounded(h), ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: grant.header, ReadTimeout: grant.read, WriteTimeout: grant.write, IdleTimeout: grant.idle, MaxHeaderBytes: readHeader,
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				open.Add(1)
			case http.StateClosed, http.StateHijacked:
				open.Add(-1)
			}
		},
	}
	return listener{server: s, socket: socket, open: open, addr: l.Addr().String(), done: start(func() error {
		if err := s.Serve(socket); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("serve %s: %w", addr, err)
		}
		return nil
	})}, nil
}

// forwarding are headers in which a proxy says for whom it asks. No proxy of ours stands before a service, so that they are the
// client's own words: nothing may believe them.
var forwarding = []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port",
	"X-Forwarded-Prefix", "X-Original-Url", "X-Rewrite-Url", "X-Real-Ip", "X-Http-Method-Override"}

// bounded refuses a request whose headers are too large, and takes away those that a client must not set.
func bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		size := len(r.RequestURI)
		for name, values := range r.Header {
			for _, v := range values {
				size += len(name) + len(v) + len(": \r\n")
			}
		}
		if size > maxHeader {
			w.Header().Set("Connection", "close")
			newProblem(http.StatusRequestHeaderFieldsTooLarge, "headers-too-large",
				fmt.Sprintf("The request line and the headers have more than %d bytes.", maxHeader)).write(w)
			return
		}
		for _, name := range forwarding {
			r.Header.Del(name)
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		next.ServeHTTP(w, r)
	})
}

// guard puts before the API what each request has to pass.
func (o Options) guard(name string, api http.Handler, log *slog.Logger, reg prometheus.Registerer) (http.Handler, error) {
	if o.Access.Auth == "off" {
		log.Warn("callers are not told apart: --auth=off")
		return api, nil
	}
	keys, err := openKeys(o.Access.APIKeysFile, log)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", variable(name, "api-keys-file"), err)
	}
	return authenticate(keys, reg, api), nil
}

// guardAdmin does the same for the admin listener.
func (o Options) guardAdmin(name string, routes http.Handler) (http.Handler, error) {
	token := ""
	if o.Access.AdminTokenFile != "" {
		var err error
		if token, err = readToken(o.Access.AdminTokenFile); err != nil {
			return nil, fmt.Errorf("%s: %w", variable(name, "admin-token-file"), err)
		}
	}
	return writesNeed(token, routes), nil
}
