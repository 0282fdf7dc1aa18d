package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"
)

const (
	// amount is each order's: $100.00.
	amount   = 100_00
	currency = "USD"

	// The customers of the two clients are told apart by how their names begin; the run's id comes next.
	keyedPrefix = "customer-"
	naivePrefix = "naive-"

	// maxTries is so many that even with 90 % loss none of a million intents stays without an answer.
	maxTries   = 400
	tryTimeout = 10 * time.Second
)

// A client wants orders and tries each until an answer comes. The one with keys sends the same Idempotency-Key with each try
// of an intent; the naive one makes a fresh key each time, which is what having no keys amounts to.
type client struct {
	prefix    string
	freshKeys bool
	tries     uint   // of each intent, at most
	run       string // id of the demo's run
	url       string // the link's
	apiKey    string // "" where orders asks for none
	http      *http.Client
}

func newClient(prefix string, freshKeys bool, run, url string) *client {
	return &client{prefix: prefix, freshKeys: freshKeys, tries: maxTries, run: run, url: url, http: &http.Client{
		Timeout:   tryTimeout,
		Transport: &http.Transport{DisableKeepAlives: true}, // see link: one try is one execution
	}}
}

// customers is what the names of this client's customers begin with.
func (c *client) customers() string { return c.prefix + c.run + "-" }

// order tries one intent until the first reply.
func (c *client) order(ctx context.Context, intent int) error {
	body, err := json.Marshal(map[string]any{
		"customer_id": c.customers() + strconv.Itoa(intent), "amount": amount, "currency": currency, "description": "demo"})
	if err != nil {
		return err
	}
	key, attempt := "", 0
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 5*time.Millisecond, 50*time.Millisecond
	_, err = backoff.Retry(ctx, func() (struct{}, error) {
		if key == "" || c.freshKeys {
			id, err := uuid.NewV7()
			if err != nil {
				return struct{}{}, backoff.Permanent(err)
			}
			key = id.String()
		}
		attempt++
		return struct{}{}, c.try(ctx, body, key, intent, attempt)
	}, backoff.WithBackOff(pause), backoff.WithMaxTries(c.tries), backoff.WithMaxElapsedTime(0))
	if err != nil {
		return fmt.Errorf("order %d of %s*: %w", intent, c.customers(), err)
	}
	return nil
}

// try returns nil for an accepted order. Any error but a permanent one leaves open whether it was accepted.
func (c *client) try(ctx context.Context, body []byte, key string, intent, attempt int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/v1/orders", bytes.NewReader(body))
	if err != nil {
		return backoff.Permanent(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", key)
	if c.apiKey != "" {
		req.Header.Set("Authorization", "Bearer "+c.apiKey)
	}
	req.Header.Set(headerClient, c.prefix)
	req.Header.Set(headerRun, c.run)
	req.Header.Set(headerIntent, strconv.Itoa(intent))
	req.Header.Set(headerAttempt, strconv.Itoa(attempt))
	res, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return err
	case res.StatusCode >= 500, res.StatusCode == http.StatusConflict: // the try before is still being worked on
		return fmt.Errorf("%s: %s", res.Status, answer)
	case res.StatusCode != http.StatusCreated:
		return backoff.Permanent(fmt.Errorf("%s: %s", res.Status, answer))
	}
	return nil
}
