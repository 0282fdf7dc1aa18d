package page

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

const address = "127.0.0.1:4711"

// idle is a page whose lab nobody asks.
func idle() *Page {
	p := New(Lab{}, Settings{})
	p.SetFate = func(Settings) {}
	return p
}

func TestOtherOriginsAreRefused(t *testing.T) {
	t.Parallel()
	p := idle()
	h := p.Handler(address)
	for _, c := range []struct {
		method, path, host string
		headers            map[string]string
		want               int
	}{
		{"POST", "/api/reset", address, nil, http.StatusAccepted},
		{"POST", "/api/reset", "localhost:4711", map[string]string{"Origin": "http://localhost:4711"}, http.StatusAccepted},
		{"POST", "/api/reset", address, map[string]string{"Origin": "https://elsewhere.example"}, http.StatusForbidden},
		{"POST", "/api/reset", address, map[string]string{"Sec-Fetch-Site": "cross-site"}, http.StatusForbidden},
		{"POST", "/api/reset", address, map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, http.StatusForbidden},
		{"POST", "/api/reset", "elsewhere.example", nil, http.StatusForbidden}, // a name that was bound to 127.0.0.1
		{"GET", "/main.js", address, map[string]string{"Sec-Fetch-Site": "cross-site"}, http.StatusForbidden},
		{"GET", "/", address, map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, http.StatusOK},
	} {
		before := p.run.id
		req := httptest.NewRequestWithContext(t.Context(), c.method, c.path, strings.NewReader("{}"))
		req.Host = c.host
		for name, value := range c.headers {
			req.Header.Set(name, value)
		}
		res := httptest.NewRecorder()
		h.ServeHTTP(res, req)
		if res.Code != c.want {
			t.Errorf("%+v: %d", c, res.Code)
		}
		if reset := p.run.id != before; reset != (res.Code == http.StatusAccepted) {
			t.Errorf("%+v: reset is %t", c, reset)
		}
		if got := res.Header().Get("Content-Security-Policy"); !strings.HasPrefix(got, "default-src 'self';") {
			t.Errorf("%+v: CSP is %q", c, got)
		}
	}
}

func TestWrongCommandsAreRefused(t *testing.T) {
	t.Parallel()
	h := idle().Handler(address)
	for _, c := range []struct {
		path, body string
		want       int
	}{
		{"/api/pay", `{"count":0}`, http.StatusBadRequest},
		{"/api/pay", `{"count":1001}`, http.StatusBadRequest},
		{"/api/pay", `{"count":1,"more":2}`, http.StatusBadRequest},
		{"/api/settings", `{"loss":91}`, http.StatusBadRequest},
		{"/api/settings", `{"loss":-1}`, http.StatusBadRequest},
		{"/api/faults/none", `{}`, http.StatusNotFound},
		{"/api/chapters/none", `{}`, http.StatusNotFound},
		{"/api/faults/pause-nats", `{}`, http.StatusBadRequest}, // not the lab's own server
	} {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, c.path, strings.NewReader(c.body))
		req.Host = address
		res := httptest.NewRecorder()
		h.ServeHTTP(res, req)
		if res.Code != c.want {
			t.Errorf("%s %s: %d %s", c.path, c.body, res.Code, res.Body)
		}
	}
}

// A try of the run before may come to its end after a reset: it is none of the new run's.
func TestATryOfAnotherRunCountsForNothing(t *testing.T) {
	t.Parallel()
	p := idle()
	p.run.intents = []*intent{{Number: 1}}
	mine := Try{Client: Customers, Run: p.run.id, Intent: 1, Attempt: 1, Status: 201, Lost: true}
	for _, other := range []func(*Try){
		func(t *Try) { t.Run = "before" }, func(t *Try) { t.Client = "stranger" }, func(t *Try) { t.Intent = 2 }, func(t *Try) { t.Intent = 0 },
	} {
		try := mine
		other(&try)
		p.Observe(try)
	}
	if p.run.tries != 0 || p.run.lost != 0 {
		t.Errorf("%d tries, %d lost", p.run.tries, p.run.lost)
	}
	p.Observe(mine)
	if p.run.tries != 1 || p.run.lost != 1 || len(p.run.intents[0].Tries) != 1 {
		t.Errorf("of its own: %d tries, %d lost, %v", p.run.tries, p.run.lost, p.run.intents[0].Tries)
	}
}

// What is charged too much to one is not made up for by one who is not charged.
func TestExcessIsCountedForEachIntent(t *testing.T) {
	t.Parallel()
	r := newRun(Settings{})
	r.intents = []*intent{
		{Done: true, Answered: true, Account: account{Orders: 3, Paid: 3, Charges: 3, Money: 3 * Price, Naive: 1, NaiveMoney: Price}},
		{Done: true},
		{Account: account{Orders: 1, Charges: 1, Money: Price, Naive: 2, NaiveMoney: 2 * Price}},
	}
	want := Sums{Intents: 3, Meant: 3 * Price, Answered: 1, Unknown: 1, Running: 1, Orders: 4, Paid: 3, Charges: 4, Money: 4 * Price,
		Twice: 2, Excess: 2 * Price, Naive: 3, NaiveMoney: 3 * Price, NaiveTwice: 1, NaiveExcess: Price}
	if got := r.sums(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
