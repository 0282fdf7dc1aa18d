package idempotency_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oncebox/oncebox/idempotency"
)

// A listener is a server that answers its requests one after the other as told, and notes what came. An answer of 0 is a
// connection that is closed without one.
type listener struct {
	*httptest.Server
	mu           sync.Mutex
	answers      []int
	after        string
	keys, bodies []string
}

func listen(t *testing.T, answers ...int) *listener {
	l := &listener{answers: answers}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		n := len(l.keys)
		l.keys, l.bodies = append(l.keys, r.Header.Get("Idempotency-Key")), append(l.bodies, string(b))
		if l.after != "" {
			w.Header().Set("Retry-After", l.after)
		}
		status := 200
		if n < len(l.answers) {
			status = l.answers[n]
		}
		if status == 0 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(l.Close)
	return l
}

// came are the keys and the bodies that have come.
func (l *listener) came() (keys, bodies []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.keys), slices.Clone(l.bodies)
}

// fast tries again at once.
func fast(t *testing.T) *http.Client {
	base := &http.Transport{DisableKeepAlives: true}
	t.Cleanup(base.CloseIdleConnections)
	return &http.Client{Transport: &idempotency.Transport{Base: base, Pause: time.Millisecond, MaxPause: 3 * time.Second}}
}

func send(ctx context.Context, t *testing.T, c *http.Client, method, url string, body io.Reader, header ...string) (status int, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	must(t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	res.Body.Close()
	return res.StatusCode, nil
}

func TestTransportTriesAgainUnderOneKey(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, c := range []struct {
		name    string
		answers []int
		after   string
		method  string
		body    io.Reader
		want    int // the status, 0 is an error
		tries   int
	}{
		{"lost replies", []int{0, 0}, "", "POST", strings.NewReader("charge"), 200, 3},
		{"an outage that ends", []int{503, 502, 504}, "", "POST", strings.NewReader("charge"), 200, 4},
		{"an outage that does not", []int{503, 503, 503, 503, 503}, "", "POST", strings.NewReader("charge"), 503, 4},
		{"lost replies without end", []int{0, 0, 0, 0, 0}, "", "POST", strings.NewReader("charge"), 0, 4},
		{"in progress", []int{409, 409}, "0", "POST", strings.NewReader("charge"), 200, 3},
		{"a conflict of the business", []int{409}, "", "POST", strings.NewReader("charge"), 409, 1},
		{"a refusal", []int{422}, "0", "POST", strings.NewReader("charge"), 422, 1},
		{"a failure", []int{500}, "", "POST", strings.NewReader("charge"), 500, 1},
		{"Retry-After in seconds", []int{429}, "1", "POST", strings.NewReader("charge"), 200, 2},
		{"Retry-After that is too long", []int{503}, "60", "POST", strings.NewReader("charge"), 503, 1},
		{"Retry-After as a date that has passed", []int{503}, "Wed, 21 Oct 2015 07:28:00 GMT", "POST", strings.NewReader("charge"), 200, 2},
		{"a body that cannot be sent twice", []int{503}, "", "POST", io.MultiReader(strings.NewReader("charge")), 503, 1},
		{"a PUT", []int{503}, "", "PUT", strings.NewReader("charge"), 200, 2},
		{"a GET", []int{0}, "", "GET", nil, 200, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := listen(t, c.answers...)
			l.after = c.after
			status, err := send(ctx, t, fast(t), c.method, l.URL, c.body)
			if status != c.want || (err != nil) != (c.want == 0) {
				t.Errorf("got %d, %v, want %d", status, err, c.want)
			}
			keys, bodies := l.came()
			if len(keys) != c.tries {
				t.Errorf("%d tries, want %d", len(keys), c.tries)
			}
			if len(slices.Compact(slices.Clone(keys))) != 1 || (keys[0] == "") != (c.method != "POST") {
				t.Errorf("the keys are %q", keys)
			}
			want := ""
			if c.body != nil {
				want = "charge"
			}
			for _, b := range bodies {
				if b != want {
					t.Errorf("a body is %q", b)
				}
			}
		})
	}
}

func TestTransportTakesTheKeyThatItIsGiven(t *testing.T) {
	t.Parallel()
	l := listen(t)
	c := fast(t)
	for range 2 {
		_, err := send(idempotency.WithKey(t.Context(), "intent"), t, c, "POST", l.URL, strings.NewReader(""))
		must(t, err)
	}
	_, err := send(idempotency.WithKey(t.Context(), "intent"), t, c, "POST", l.URL, strings.NewReader(""), "Idempotency-Key", "own")
	must(t, err)
	for range 2 {
		_, err := send(t.Context(), t, c, "POST", l.URL, strings.NewReader(""))
		must(t, err)
	}
	keys, _ := l.came()
	if diff := cmp.Diff([]string{`"intent"`, `"intent"`, "own"}, keys[:3]); diff != "" || keys[3] == keys[4] || keys[3] == "" {
		t.Errorf("the keys are %q", keys)
	}
}

func TestTransportStopsWithItsContext(t *testing.T) {
	t.Parallel()
	l := listen(t, 503, 503, 503)
	l.after = "2"
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if status, err := send(ctx, t, fast(t), "POST", l.URL, strings.NewReader("")); status != 503 || err != nil {
		t.Errorf("got %d, %v, want the answer there is, before a pause that is too long", status, err)
	}
	l = listen(t, 503, 503, 503)
	l.after = "2"
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if _, err := send(ctx, t, fast(t), "POST", l.URL, strings.NewReader("")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
	wrong := &http.Client{Transport: &idempotency.Transport{Tries: -1}}
	if _, err := send(t.Context(), t, wrong, "POST", l.URL, nil); err == nil || !strings.Contains(err.Error(), "Tries") {
		t.Errorf("got %v", err)
	}
}

// Go's own transport sends a request with a key again, on a connection that died while it was kept: all under one try, and all
// with one key. Whoever counts requests at a server counts those.
func TestGoResendsUnderOneTry(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	keys := make(chan string, 10)
	go func() {
		for conns := 0; ; conns++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			in := bufio.NewReader(conn)
			for n := 0; ; n++ {
				r, err := http.ReadRequest(in)
				if err != nil {
					break
				}
				_, _ = io.Copy(io.Discard, r.Body)
				keys <- r.Header.Get("Idempotency-Key")
				if conns == 0 && n == 1 {
					break // the second request on the first connection gets nothing
				}
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
			conn.Close()
		}
	}()
	base := &http.Transport{}
	defer base.CloseIdleConnections()
	c := &http.Client{Transport: &idempotency.Transport{Base: base, Tries: 1}}
	for range 2 {
		if status, err := send(t.Context(), t, c, "POST", "http://"+l.Addr().String(), strings.NewReader("charge")); status != 200 || err != nil {
			t.Fatalf("got %d, %v", status, err)
		}
	}
	if first, second, resent := <-keys, <-keys, <-keys; first == second || second != resent {
		t.Errorf("the keys are %s, %s, %s", first, second, resent)
	}
}
