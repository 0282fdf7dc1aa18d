package service

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/oncebox/oncebox/internal/stacktest"
)

func serve(t *testing.T, h http.HandlerFunc, grant limits) listener {
	t.Helper()
	l, err := listen("test", "127.0.0.1:0", h, grant, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	must(t, err)
	t.Cleanup(func() { l.server.Close() })
	return l
}

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) }

func TestHeadersAreBoundedAndForwardingOnesAreGone(t *testing.T) {
	t.Parallel()
	l := serve(t, func(w http.ResponseWriter, r *http.Request) { _ = r.Header.Write(w) }, publicLimits(Options{Access: Access{MaxHTTPConns: 4}}))
	url := "http://" + l.addr + "/"
	for _, name := range forwarding {
		if status, _, answer := ask(t, "GET", url, name, "forged"); status != 200 || strings.Contains(answer, "forged") {
			t.Errorf("%s came through: %d %s", name, status, answer)
		}
	}
	for name, header := range map[string][]string{
		"64 KB of baggage": {"Baggage", "a=" + strings.Repeat("x", 64<<10)},
		"many headers":     slices.Repeat([]string{"X-Many", strings.Repeat("x", 100)}, 200),
	} {
		if status, _, slug := ask(t, "GET", url, header...); status != http.StatusRequestHeaderFieldsTooLarge || slug != "headers-too-large" {
			t.Errorf("%s: %d %s", name, status, slug)
		}
	}
	if status, _, slug := ask(t, "GET", url+strings.Repeat("x", maxHeader)); status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a long path: %d %s", status, slug)
	}
}

// A client that sends its request too slowly, or none, loses its connection.
func TestASlowRequestIsCutOff(t *testing.T) {
	t.Parallel()
	l := serve(t, ok, limits{conns: 4, header: 100 * time.Millisecond, read: 200 * time.Millisecond, write: time.Second, idle: 100 * time.Millisecond})
	for name, sent := range map[string]string{
		"nothing":         "",
		"half a header":   "POST / HTTP/1.1\r\nHost: x\r\nX-",
		"half a body":     "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf",
		"no next request": "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		c, err := net.Dial("tcp", l.addr)
		must(t, err)
		defer c.Close()
		must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
		_, err = io.WriteString(c, sent)
		must(t, err)
		if _, err := io.Copy(io.Discard, c); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: the connection is still open: %v", name, err)
		}
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	const most = 3
	l := serve(t, ok, limits{conns: most, header: time.Minute, read: time.Minute, write: time.Minute, idle: time.Minute})
	ask := func(c net.Conn, wait time.Duration) error {
		must(t, c.SetDeadline(time.Now().Add(wait)))
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return err
		}
		return answered(c)
	}
	var open []net.Conn
	for range most + 1 {
		c, err := net.Dial("tcp", l.addr)
		must(t, err)
		defer c.Close()
		open = append(open, c)
	}
	for _, c := range open[:most] {
		must(t, ask(c, 20*time.Second))
	}
	if err := ask(open[most], 200*time.Millisecond); err == nil {
		t.Fatalf("connection %d was served beside the others", most+1)
	}
	open[0].Close()
	must(t, open[most].SetDeadline(time.Now().Add(20*time.Second)))
	must(t, answered(open[most])) // the request that waited
}

// answered reads a response and throws it away.
func answered(c net.Conn) error {
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

// 500 clients that send a byte a second and 100 that do not read their answers are no load: what the others wait is the same.
func TestSlowClientsDoNotDelayTheOthers(t *testing.T) {
	t.Parallel()
	big := bytes.Repeat([]byte("x"), 8<<20) // more than the buffers on the way hold
	grant := publicLimits(Options{Access: Access{MaxHTTPConns: 2048}})
	grant.read, grant.write = time.Minute, time.Minute // they are to stay, however long the test takes
	var stuck atomic.Int64
	l := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/big" {
			stuck.Add(1)
			defer stuck.Add(-1)
			_, _ = w.Write(big)
			return
		}
		_, _ = io.Copy(w, r.Body)
	}, grant)
	client := &http.Client{Timeout: 20 * time.Second}
	good := func() time.Duration {
		const n = 300
		took := make([]time.Duration, n)
		for i := range took {
			began := time.Now()
			res, err := client.Post("http://"+l.addr+"/", "text/plain", strings.NewReader("hello"))
			must(t, err)
			_, err = io.Copy(io.Discard, res.Body)
			must(t, errors.Join(err, res.Body.Close()))
			took[i] = time.Since(began)
		}
		slices.Sort(took)
		return took[n*99/100]
	}
	median := func() time.Duration {
		var p99s []time.Duration
		for range 5 {
			p99s = append(p99s, good())
		}
		slices.Sort(p99s)
		return p99s[len(p99s)/2]
	}
	good() // warm
	alone := median()

	const slow, deaf = 500, 100
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var sending atomic.Int64
	for range slow {
		c, err := net.Dial("tcp", l.addr)
		must(t, err)
		defer c.Close()
		_, err = fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
		must(t, err)
		go func() {
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for sending.Add(1); ctx.Err() == nil; <-tick.C {
				if _, err := c.Write([]byte("x")); err != nil {
					return
				}
			}
		}()
	}
	for range deaf {
		c, err := net.Dial("tcp", l.addr)
		must(t, err)
		defer c.Close()
		must(t, c.(*net.TCPConn).SetReadBuffer(64<<10)) // the system would let it grow until all of it fits
		_, err = io.WriteString(c, "GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
		must(t, err)
	}
	stacktest.Eventually(t, 30*time.Second, "the slow ones are at it", func() (bool, error) {
		return sending.Load() == slow && stuck.Load() == deaf, nil
	})
	beside := median()
	t.Logf("p99 alone %s, beside %d slow senders and %d slow readers %s", alone, slow, deaf, beside)
	// Below a few milliseconds it is the machine's other work that is measured.
	if limit := max(2*alone, 20*time.Millisecond); beside > limit {
		t.Errorf("p99 is %s beside the slow ones, and %s alone", beside, alone)
	}
	if n := stuck.Load(); n != deaf {
		t.Errorf("%d of %d slow readers were there to the end: the test measured something else", n, deaf)
	}
}

// A client whose connection the kernel had taken when the service stopped has its answer; one that comes later is refused.
func TestAStopAnswersThoseWhoAreConnected(t *testing.T) {
	t.Parallel()
	var in atomic.Int64
	release := make(chan struct{})
	grant := publicLimits(Options{Access: Access{MaxHTTPConns: 1}}) // so that nobody accepts what comes behind the first
	l := serve(t, func(w http.ResponseWriter, r *http.Request) {
		in.Add(1)
		<-release
		ok(w, r)
	}, grant)
	const clients = 20
	conns := make([]net.Conn, clients)
	for i := range conns {
		c, err := net.Dial("tcp", l.addr)
		must(t, err)
		defer c.Close()
		must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
		_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		must(t, err)
		conns[i] = c
	}
	stacktest.Eventually(t, 20*time.Second, "a request is being answered", func() (bool, error) { return in.Load() == 1, nil })
	stopped := start(func() error { return l.stop(context.Background()) })
	stacktest.Eventually(t, 20*time.Second, "new connections are refused", func() (bool, error) {
		c, err := net.Dial("tcp", l.addr)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED), nil
	})
	close(release)
	for i, c := range conns {
		if err := answered(c); err != nil {
			t.Errorf("client %d: %v", i, err)
		}
	}
	must(t, <-stopped)
}
