package idempotency

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"
)

type clientKey struct{}

// WithKey sets the key that [Transport] gives to requests of ctx: for a caller that sends one intent in several requests, over a
// restart too. Each intent needs a key of its own.
func WithKey(ctx context.Context, key string) context.Context {
	return context.WithValue(ctx, clientKey{}, key)
}

// Transport is the client's side: an [http.RoundTripper] that gives each POST and PATCH an Idempotency-Key and sends it again
// when its answer does not come. It is safe for concurrent use once its fields are set.
//
// The key is the request's own header if it has one, else [WithKey]'s, else a new one for each *http.Request, the same over its
// tries. Another call with another request is another intent: to go on trying after Do has returned, use WithKey.
//
// A request with a key, and any GET, HEAD, OPTIONS, TRACE, PUT or DELETE, is sent again, if its body can be: GetBody must be set, as
// http.NewRequest does for bytes.Reader, bytes.Buffer and strings.Reader. A body without it is sent once. Go's http.Transport
// sends a request with this header again by itself when a connection that was kept alive dies before the first byte of an
// answer: such a resend is not counted as a try.
type Transport struct {
	// Base sends the tries. Default http.DefaultTransport.
	Base http.RoundTripper
	// Tries is the most of them, the first one included. Default 4.
	Tries int
	// Pause is the longest pause before the second try; it doubles with each further one, up to MaxPause, and a pause is random
	// between 0 and that. An answer's Retry-After is obeyed, if it is no longer than MaxPause: else the answer is returned. Default
	// 100 ms, 10 s.
	Pause, MaxPause time.Duration
}

// RoundTrip implements [http.RoundTripper]. Tried again are errors of the connection, 408, 425, 429, 502, 503, 504, and 409 with
// a Retry-After. The last try's answer, or error, is returned; the request's context ends the trying.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	t2, err := t.withDefaults()
	if err != nil {
		closeBody(r)
		return nil, err
	}
	out := r.Clone(r.Context())
	if r.Header.Get(HeaderKey) == "" && (r.Method == http.MethodPost || r.Method == http.MethodPatch) {
		key, ok := r.Context().Value(clientKey{}).(string)
		if !ok {
			key = uuid.NewString()
		}
		out.Header.Set(HeaderKey, quoteKey(key))
	}
	hasBody := r.Body != nil && r.Body != http.NoBody
	if !again(out) || hasBody && r.GetBody == nil {
		return t2.Base.RoundTrip(out)
	}
	for try := 1; ; try++ {
		if try > 1 && hasBody {
			if out.Body, err = r.GetBody(); err != nil {
				return nil, fmt.Errorf("idempotency: the body for another try: %w", err)
			}
		}
		res, err := t2.Base.RoundTrip(out)
		pause, worth := t2.verdict(try, res, err)
		if !worth || try == t2.Tries || r.Context().Err() != nil {
			return res, err
		}
		if deadline, ok := r.Context().Deadline(); ok && time.Until(deadline) < pause {
			return res, err // a later try would come to nothing
		}
		if res != nil {
			_, _ = io.CopyN(io.Discard, res.Body, 4<<10) // so that its connection can be used again
			res.Body.Close()
		}
		timer := time.NewTimer(pause)
		select {
		case <-r.Context().Done():
			timer.Stop()
			return nil, errors.Join(r.Context().Err(), err)
		case <-timer.C:
		}
	}
}

func (t *Transport) withDefaults() (Transport, error) {
	c := *t
	if c.Tries < 0 || c.Pause < 0 || c.MaxPause < 0 {
		return c, fmt.Errorf("idempotency: Transport.Tries is %d, Pause %s and MaxPause %s; none may be below 0", c.Tries, c.Pause, c.MaxPause)
	}
	if c.Base == nil {
		c.Base = http.DefaultTransport
	}
	if c.Tries == 0 {
		c.Tries = 4
	}
	if c.Pause == 0 {
		c.Pause = 100 * time.Millisecond
	}
	if c.MaxPause == 0 {
		c.MaxPause = 10 * time.Second
	}
	return c, nil
}

// again says whether to send r twice is no more than to send it once.
func again(r *http.Request) bool {
	switch r.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return r.Header.Get(HeaderKey) != ""
}

// verdict says whether another try is worth it, and after which pause.
func (t *Transport) verdict(try int, res *http.Response, err error) (pause time.Duration, worth bool) {
	longest := t.MaxPause
	if try < 32 {
		longest = min(longest, t.Pause<<(try-1))
	}
	pause = rand.N(longest + 1) // full jitter
	if err != nil {
		return pause, true
	}
	after, told := retryAfter(res)
	switch res.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		worth = true
	case http.StatusConflict:
		worth = told
	}
	if told {
		if after > t.MaxPause {
			return 0, false
		}
		pause = max(pause, after)
	}
	return pause, worth
}

func retryAfter(res *http.Response) (time.Duration, bool) {
	v := res.Header.Get("Retry-After")
	if s, err := strconv.Atoi(v); err == nil && s >= 0 {
		return time.Duration(s) * time.Second, true
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(at)), true
	}
	return 0, false
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		r.Body.Close()
	}
}
