package page

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// resend shows the retry that nobody wrote: net/http sends a request that carries an Idempotency-Key again by itself when the
// connection that it had kept dies before the answer's first byte. Browsers do so too, whether there is a key or not.
func (p *Page) resend(ctx context.Context) (string, error) {
	var posts atomic.Int64
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			return // the request that opens the connection
		}
		status, err := p.pass(r)
		switch {
		case err != nil:
			w.WriteHeader(http.StatusBadGateway)
		case posts.Add(1) == 1:
			panic(http.ErrAbortHandler) // the order is made; the connection dies
		default:
			w.WriteHeader(status)
		}
	})}
	go func() { _ = server.Serve(listener) }() // ends with Close
	defer server.Close()

	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	url, key := "http://"+listener.Addr().String(), uuid.NewString()
	res, err := client.Get(url + "/v1/orders")
	if err != nil {
		return "", err
	}
	_, _ = io.Copy(io.Discard, res.Body)
	res.Body.Close()
	answer, err := p.buy(ctx, client, url, key)
	if err != nil {
		return "", err
	}
	var made int
	if err := p.lab.Orders.QueryRow(ctx, "SELECT count(*) FROM orders WHERE customer_id = $1", stranger(key)).Scan(&made); err != nil {
		return "", err
	}
	return fmt.Sprintf("One call, no retry in the code, answered with %d: %d requests were executed, and the key made %d order.",
		answer.status, posts.Load(), made), hold(posts.Load() == 2 && made == 1)
}

// pass sends the request on and returns the answer's status, once all of it has come.
func (p *Page) pass(r *http.Request) (int, error) {
	req, err := http.NewRequestWithContext(r.Context(), r.Method, p.LinkURL+r.URL.Path, r.Body)
	if err != nil {
		return 0, err
	}
	req.Header = r.Header.Clone()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, err
}
