package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync/atomic"

	"github.com/oncebox/oncebox/cmd/demo/page"
)

// A request's try is named by these headers. The link reads and strips them.
const (
	headerClient  = "Demo-Client"
	headerRun     = "Demo-Run" // decides nothing: one seed repeats what it did in another run
	headerIntent  = "Demo-Intent"
	headerAttempt = "Demo-Attempt"
)

// A fate decides which replies are lost.
type fate struct {
	seed uint64
	loss float64
}

// lost is a function of the seed and of the try alone. A shared stream of random numbers would be handed out in the order in
// which requests come, which no seed repeats.
func (f fate) lost(client string, intent, attempt int) bool {
	h := sha256.Sum256(fmt.Appendf(nil, "%d %q %d %d", f.seed, client, intent, attempt))
	return float64(binary.BigEndian.Uint64(h[:])>>11)/(1<<53) < f.loss
}

// A link passes requests on to orders and loses some of the replies: the service has answered, the whole answer has come, and
// then the client's connection is cut without a byte of it. What the client knows is nothing: its order may be accepted.
//
// One try of a client is one execution of the service. A kept-alive connection that dies makes net/http send a POST with an
// Idempotency-Key again by itself, and then the loss that a client sees would be about the square of the one asked for: no
// connection is used twice here, on neither side.
type link struct {
	url       string
	server    *http.Server
	proxy     *httputil.ReverseProxy
	fate      atomic.Pointer[fate]
	observe   func(page.Try) // hears of each try as it comes and as it ends, before its client can know
	cut       atomic.Int64   // replies that were lost
	strangers atomic.Int64   // requests that are not the demo's own
}

// errLost ends the way of a reply that is to be lost.
var errLost = errors.New("reply lost")

// tryKey is the context's key for a request's try.
type tryKey struct{}

// newLink listens on a free port of 127.0.0.1. serve has to be run then.
func newLink(target string, f fate, errorLog io.Writer) (*link, net.Listener, error) {
	to, err := url.Parse(target)
	if err != nil {
		return nil, nil, fmt.Errorf("start the link: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, fmt.Errorf("start the link: %w", err)
	}
	logger := log.New(errorLog, "link: ", log.LstdFlags)
	l := &link{url: "http://" + listener.Addr().String(), observe: func(page.Try) {}}
	l.fate.Store(&f)
	l.proxy = &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport:      &http.Transport{DisableKeepAlives: true},
		ModifyResponse: l.passOrLose,
		ErrorHandler:   l.failed,
		ErrorLog:       logger,
	}
	l.server = &http.Server{Handler: l, ErrorLog: logger}
	l.server.SetKeepAlivesEnabled(false)
	return l, listener, nil
}

func (l *link) serve(listener net.Listener) error {
	if err := l.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("the link: %w", err)
	}
	return nil
}

func (l *link) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t := l.named(r.Header)
	for _, name := range []string{headerClient, headerRun, headerIntent, headerAttempt} {
		r.Header.Del(name)
	}
	l.observe(*t)
	l.proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), tryKey{}, t)))
}

// named takes each request without the demo's headers, such as a curl by hand, for another intent.
func (l *link) named(h http.Header) *page.Try {
	intent, err := strconv.Atoi(h.Get(headerIntent))
	attempt, err2 := strconv.Atoi(h.Get(headerAttempt))
	if err != nil || err2 != nil {
		return &page.Try{Client: "stranger", Intent: int(l.strangers.Add(1)), Attempt: 1}
	}
	return &page.Try{Client: h.Get(headerClient), Run: h.Get(headerRun), Intent: intent, Attempt: attempt, Key: h.Get("Idempotency-Key")}
}

// passOrLose has the whole answer before the client gets any of it.
func (l *link) passOrLose(res *http.Response) error {
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	t := res.Request.Context().Value(tryKey{}).(*page.Try)
	t.Status, t.Replayed = res.StatusCode, res.Header.Get("Idempotent-Replayed") == "true"
	if l.fate.Load().lost(t.Client, t.Intent, t.Attempt) {
		return errLost
	}
	l.observe(*t)
	res.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

func (l *link) failed(w http.ResponseWriter, r *http.Request, err error) {
	t := r.Context().Value(tryKey{}).(*page.Try)
	if !errors.Is(err, errLost) {
		l.server.ErrorLog.Print(err)
		t.Status = http.StatusBadGateway
		l.observe(*t)
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	t.Lost = true
	l.cut.Add(1) // before the client can know
	l.observe(*t)
	if err := cut(w); err != nil {
		l.cut.Add(-1)
		l.server.ErrorLog.Printf("cut a connection: %v", err)
	}
}

// cut ends the client's connection with a reset.
func cut(w http.ResponseWriter) error {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		if err := tcp.SetLinger(0); err != nil {
			return errors.Join(err, conn.Close())
		}
	}
	return conn.Close()
}
