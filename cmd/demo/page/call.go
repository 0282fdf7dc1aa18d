package page

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// A reply is what orders answered to one request.
type reply struct {
	status   int
	replayed bool // from what was kept under the request's key
	body     string
	etag     string
}

// order is the order in the reply's body.
func (r reply) order() (o struct {
	ID      string `json:"id"`
	Status  string `json:"status"`
	Version int64  `json:"version"`
}) {
	_ = json.Unmarshal([]byte(r.body), &o) // a problem document has none of it
	return o
}

// stranger is the customer of a request that belongs to no intent.
func stranger(key string) string { return "stranger-" + key }

// oneTry is a client whose one call is one request: net/http sends nothing again on a fresh connection.
var oneTry = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// purchase is the body of an order for that customer.
func purchase(customer string) string {
	return fmt.Sprintf(`{"customer_id":%q,"amount":%d,"currency":"USD"}`, customer, Price)
}

// call sends one request to orders, through the link.
func (p *Page) call(ctx context.Context, client *http.Client, method, url, key, body string, headers ...string) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	if p.lab.APIKey != "" {
		req.Header.Set("Authorization", "Bearer "+p.lab.APIKey)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header.Get("Idempotent-Replayed") == "true", string(answer), res.Header.Get("ETag")}, err
}

// buy sends one order under a key, and again as long as the first one is still being worked on.
func (p *Page) buy(ctx context.Context, client *http.Client, url, key string) (reply, error) {
	for {
		r, err := p.call(ctx, client, http.MethodPost, url+"/v1/orders", key, purchase(stranger(key)))
		if err != nil || r.status != http.StatusConflict {
			return r, err
		}
		if err := wait(ctx, 20*time.Millisecond); err != nil {
			return r, err
		}
	}
}

// awaits looks until it is so, and says what never was.
func awaits(ctx context.Context, what string, so func() (bool, error)) error {
	for {
		ok, err := so()
		if err != nil || ok {
			return err
		}
		if err := wait(ctx, lookPause); err != nil {
			return errors.Join(err, fmt.Errorf("never: %s", what))
		}
	}
}
