package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// A try is one request and what its client was told: a line of the history.
type try struct {
	N        int    `json:"n"` // of the intent
	Op       string `json:"op"`
	At       string `json:"at"`   // the process that was asked
	Call     int64  `json:"call"` // µs since the storm began
	Return   int64  `json:"return"`
	Status   int    `json:"status,omitempty"`
	Error    string `json:"error,omitempty"` // instead of an answer
	ID       string `json:"id,omitempty"`    // of the order or charge
	Location string `json:"location,omitempty"`
	Body     string `json:"body,omitempty"` // its SHA-256
	Replayed bool   `json:"replayed,omitempty"`
}

// accepted says whether the client has what it asked for.
func (t try) accepted() bool {
	return t.Status == http.StatusCreated && t.Op != opDelete || t.Status == http.StatusOK && t.Op == opDelete
}

// passing says whether to ask again helps: nothing came, or that it should be asked again. A 500 is a failure of its own: what is
// away is told by a 503.
func (t try) passing() bool {
	return t.Status == 0 || t.Status == http.StatusServiceUnavailable || t.Status == http.StatusGatewayTimeout || t.Status == http.StatusConflict ||
		t.Status == http.StatusRequestTimeout || t.Status == http.StatusTooManyRequests
}

const (
	// tryLimit is how long a client waits for an answer.
	tryLimit = 4 * time.Second
	// giveUp is how long an intent is tried. Longer than any fault lasts: one that is not answered by then is a failure.
	giveUp = 2 * time.Minute
)

// httpClient opens a connection for each request: Go sends a request with an Idempotency-Key again by itself when a kept connection
// dies, and then a client would not know how often it asked.
var httpClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: tryLimit}

// send asks once and writes down what came of it.
func (c *clients) send(ctx context.Context, p *program, in intent, op, method, path, key string, body []byte) try {
	t := try{N: in.n, Op: op, At: p.name, Call: c.now()}
	err := func() error {
		req, err := http.NewRequestWithContext(ctx, method, "http://"+p.way.addr()+path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+c.w.apiKey)
		req.Header.Set("Idempotency-Key", key)
		p.asked.Add(1)
		defer p.asked.Add(-1)
		res, err := httpClient.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			return err
		}
		t.Status, t.Location, t.Replayed = res.StatusCode, res.Header.Get("Location"), res.Header.Get("Idempotent-Replayed") == "true"
		t.Body = hash(text)
		if t.accepted() {
			var made struct {
				ID string `json:"id"`
			}
			_ = json.Unmarshal(text, &made) // an accepted one without an id is for the judge
			t.ID = made.ID
		}
		return nil
	}()
	if err != nil {
		t.Status, t.Error = 0, kindOf(err)
	}
	t.Return = c.now()
	c.note(t)
	return t
}

func hash(body []byte) string {
	h := sha256.Sum256(body)
	return hex.EncodeToString(h[:])
}

// kindOf is what a client sees of an error, without addresses.
func kindOf(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return "cancelled"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), strings.Contains(err.Error(), "server closed"): // net/http's own, which has no name
		return "cut"
	}
	return err.Error()
}

// insist asks one process after the other until there is an answer that stays. An error is that there was none.
func (c *clients) insist(ctx context.Context, in intent, op, method, path, key string, body []byte, first int) (try, error) {
	processes := c.w.of(in.service())
	waits := backoff.NewExponentialBackOff()
	waits.InitialInterval, waits.MaxInterval = 5*time.Millisecond, 150*time.Millisecond
	turn := first
	return backoff.Retry(ctx, func() (try, error) {
		t := c.send(ctx, processes[turn%len(processes)], in, op, method, path, key, body)
		turn++
		switch {
		case t.accepted():
			return t, nil
		case ctx.Err() != nil || !t.passing():
			return t, backoff.Permanent(fmt.Errorf("intent %d: %s by %s was answered %d %s", in.n, op, t.At, t.Status, t.Error))
		}
		return t, fmt.Errorf("intent %d: %s by %s was answered %d %s", in.n, op, t.At, t.Status, t.Error)
	}, backoff.WithBackOff(waits), backoff.WithMaxElapsedTime(giveUp))
}
