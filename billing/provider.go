package billing

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// A Provider is a payment provider's API, in Stripe's form. It is safe for concurrent use.
type Provider struct {
	base   *url.URL
	key    string
	client *http.Client
}

// NewProvider returns the provider at a URL, whose user, if there is one, is our secret key there.
func NewProvider(base string) (*Provider, error) {
	u, err := url.Parse(base)
	switch {
	case err != nil:
		return nil, errors.New("billing: the provider's URL cannot be read") // the error would show it, and the key
	case (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
		return nil, errors.New("billing: the provider's URL must have the form https://key@host")
	}
	p := &Provider{base: u, key: u.User.Username()}
	u.User = nil // it is in each error otherwise
	// Go sends a request with an idempotency key again by itself when a kept connection dies. That does no harm, but each
	// attempt is to be ours, and seen.
	p.client = &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}
	return p, nil
}

// A declinedError is the provider's word that it did nothing, and never will under this key.
type declinedError struct{ reason string }

func (e *declinedError) Error() string { return "billing: the provider declined: " + e.reason }

// charge moves money and returns the provider's id for it.
func (p *Provider) charge(ctx context.Context, key, reference string, amount int64, currency string) (id string, err error) {
	var made struct{ ID string }
	err = p.ask(ctx, http.MethodPost, "/v1/charges", url.Values{"amount": {strconv.FormatInt(amount, 10)},
		"currency": {strings.ToLower(currency)}, "metadata[reference]": {reference}}, key, &made)
	if err == nil && made.ID == "" {
		err = errors.New("billing: the provider's answer has no id")
	}
	return made.ID, err
}

// refund gives back all of a charge.
func (p *Provider) refund(ctx context.Context, key, charge string) error {
	return p.ask(ctx, http.MethodPost, "/v1/refunds", url.Values{"charge": {charge}}, key, nil)
}

// findCharge looks for a charge by our reference, "" if there is none.
func (p *Provider) findCharge(ctx context.Context, reference string) (id string, err error) {
	var found struct {
		Data []struct{ ID, Status string }
	}
	err = p.ask(ctx, http.MethodGet, "/v1/charges/search", url.Values{"query": {"metadata['reference']:'" + reference + "'"}}, "", &found)
	if err != nil {
		return "", err
	}
	for _, c := range found.Data {
		if c.Status == "succeeded" {
			return c.ID, nil
		}
	}
	return "", nil
}

// refunded says whether a charge was given back.
func (p *Provider) refunded(ctx context.Context, charge string) (bool, error) {
	var found struct{ Data []struct{ ID string } }
	err := p.ask(ctx, http.MethodGet, "/v1/refunds", url.Values{"charge": {charge}}, "", &found)
	return len(found.Data) > 0, err
}

// ask sends one request and reads the answer into v. After a [declinedError] nothing was done; after any other nobody knows.
func (p *Provider) ask(ctx context.Context, method, path string, form url.Values, key string, v any) error {
	u, body := *p.base.JoinPath(path), io.Reader(nil)
	if method == http.MethodGet {
		u.RawQuery = form.Encode()
	} else {
		body = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return fmt.Errorf("billing: ask the provider: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	if p.key != "" {
		req.SetBasicAuth(p.key, "")
	}
	res, err := p.client.Do(req)
	if err != nil {
		return fmt.Errorf("billing: ask the provider: %w", err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("billing: the provider's answer: %w", err)
	}
	switch res.StatusCode {
	case http.StatusOK:
		if v == nil {
			return nil
		}
		if err := json.NewDecoder(bytes.NewReader(answer)).Decode(v); err != nil {
			return fmt.Errorf("billing: the provider's answer: %w", err)
		}
		return nil
	case http.StatusBadRequest, http.StatusPaymentRequired, http.StatusNotFound, http.StatusUnprocessableEntity:
		return &declinedError{reason(answer, res.Status)}
	}
	return fmt.Errorf("billing: the provider answered %s", res.Status) // busy with the same key, too many requests, its own fault
}

// reason is what the provider says of a refusal, in a word.
func reason(answer []byte, status string) string {
	var refusal struct {
		Error struct{ Code, Type string }
	}
	_ = json.Unmarshal(answer, &refusal) // without one the status has to do
	for _, word := range []string{refusal.Error.Code, refusal.Error.Type} {
		if word != "" && len(word) <= 64 {
			return word
		}
	}
	return status
}
