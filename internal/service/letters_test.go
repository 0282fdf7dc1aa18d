package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
)

// A morgue is a consumer's dead letters behind the admin listener's routes. Its messages die while it is closed.
type morgue struct {
	t    *testing.T
	in   *inbox.Inbox
	url  string
	open atomic.Bool
}

const morgueToken = "the-token-of-the-operator"

func newMorgue(t *testing.T) *morgue {
	t.Helper()
	m := &morgue{t: t}
	var err error
	m.in, err = inbox.New(stacktest.Postgres(t, migrations.Inbox), inbox.Config{Consumer: "test", Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	mux := http.NewServeMux()
	letterRoutes(mux, m.in.Dead(inbox.Each(m.handle)))
	api := httptest.NewServer(writesNeed(morgueToken, mux))
	t.Cleanup(api.Close)
	m.url = api.URL
	return m
}

func (m *morgue) handle(_ context.Context, _ pgx.Tx, e oncebox.Event) error {
	if !m.open.Load() {
		return inbox.Permanent("closed_"+e.Key, errors.New("not today"))
	}
	return nil
}

// die adds a dead letter of that key.
func (m *morgue) die(key string) {
	m.t.Helper()
	e := oncebox.Event{ID: uuid.NewString(), Source: "s", Type: "t", Key: key, TenantID: "acme", Data: []byte("whose secret")}
	must(m.t, m.in.One(m.handle)(e.Message()))
}

// ask sends a request with the admin token, and returns the answer's status and body.
func (m *morgue) ask(method, path string) (int, string) {
	m.t.Helper()
	req, err := http.NewRequestWithContext(m.t.Context(), method, m.url+path, nil)
	must(m.t, err)
	req.Header.Set("Authorization", "Bearer "+morgueToken)
	res, err := http.DefaultClient.Do(req)
	must(m.t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	must(m.t, err)
	return res.StatusCode, string(body)
}

// want asks, and fails the test unless the answer has that status and body.
func (m *morgue) want(status int, body, method, path string) {
	m.t.Helper()
	if got, text := m.ask(method, path); got != status || !strings.Contains(text, body) {
		m.t.Errorf("%s %s: %d %s; want %d with %s", method, path, got, text, status, body)
	}
}

// list is the letters that a list with this query shows.
func (m *morgue) list(query string) (l letterList) {
	m.t.Helper()
	status, body := m.ask("GET", "/dead-letters"+query)
	if status != http.StatusOK {
		m.t.Fatalf("list %s: %d %s", query, status, body)
	}
	must(m.t, json.Unmarshal([]byte(body), &l))
	return l
}

func TestAnOperatorSeesADeadLetter(t *testing.T) {
	t.Parallel()
	m := newMorgue(t)
	for _, key := range []string{"a", "b", "c"} {
		m.die(key)
	}
	page := m.list("?limit=2")
	if len(page.Letters) != 2 || page.Letters[0].Key != "a" || page.Next != page.Letters[1].N {
		t.Fatalf("the first page is %+v", page)
	}
	if l := page.Letters[0]; l.Payload != nil || l.Headers != nil || l.Class != "closed_a" || l.Reason != "not today" || l.State != "dead" {
		t.Errorf("a line of the list is %+v", l)
	}
	if rest := m.list(fmt.Sprint("?limit=2&after=", page.Next)); len(rest.Letters) != 1 || rest.Letters[0].Key != "c" || rest.Next != 0 {
		t.Errorf("the last page is %+v", rest)
	}
	status, body := m.ask("GET", fmt.Sprint("/dead-letters/", page.Next))
	var l inbox.Letter
	if err := json.Unmarshal([]byte(body), &l); err != nil || status != http.StatusOK || l.Key != "b" || string(l.Payload) != "whose secret" || len(l.Headers) == 0 {
		t.Errorf("the letter is %d %+v: %v", status, l, err)
	}
	for query, want := range map[string]int{"": 3, "?class=closed_a": 1, "?key=b": 1, "?tenant=acme&source=s&topic=t": 3, "?tenant=bolt": 0,
		"?state=retried": 0, "?state=all": 3, "?before=2020-01-01T00:00:00Z": 0} {
		if l := m.list(query); len(l.Letters) != want {
			t.Errorf("%q selects %d, want %d", query, len(l.Letters), want)
		}
	}
}

func TestAnOperatorSettlesADeadLetter(t *testing.T) {
	t.Parallel()
	m := newMorgue(t)
	m.die("a")
	m.die("b")
	letters := m.list("").Letters
	a, b := fmt.Sprint("/dead-letters/", letters[0].N), fmt.Sprint("/dead-letters/", letters[1].N)

	m.want(409, "urn:oncebox:problem:letter-stays", "POST", a+"/retry")
	m.want(409, "not today", "POST", a+"/retry")
	m.open.Store(true)
	m.want(200, `"state":"retried"`, "POST", a+"/retry")
	m.want(404, "not-found", "POST", a+"/retry")
	m.want(404, "not-found", "POST", a+"/drop")
	m.want(200, `"state":"dropped"`, "POST", b+"/drop")
	m.want(404, "not-found", "POST", b+"/retry")
	m.want(200, `"state":"dropped"`, "GET", b)
	for _, path := range []string{"/dead-letters/999999/retry", "/dead-letters/x/drop", "/dead-letters/-1/drop", "/dead-letters/0/retry"} {
		m.want(404, "not-found", "POST", path)
	}
	m.want(404, "not-found", "GET", "/dead-letters/x")
	if l := m.list(""); len(l.Letters) != 0 {
		t.Errorf("still dead: %+v", l)
	}
}

func TestAnOperatorSettlesManyDeadLetters(t *testing.T) {
	t.Parallel()
	m := newMorgue(t)
	for range lettersDefault + 1 { // more than a page
		m.die("a")
	}
	m.die("b")
	m.die("c")
	m.want(200, `{"retried":0,"failed":1,"errors":["retry dead letter`, "POST", "/dead-letters/retry?key=b")
	m.open.Store(true)
	m.want(200, `{"retried":1,"failed":0}`, "POST", "/dead-letters/retry?class=closed_b")
	m.want(200, fmt.Sprintf(`{"dropped":%d}`, lettersDefault+1), "POST", "/dead-letters/drop?key=a")
	if l := m.list(""); len(l.Letters) != 1 || l.Letters[0].Key != "c" {
		t.Errorf("left are %+v, want c's", l)
	}
	m.want(200, `{"retried":1,"failed":0}`, "POST", "/dead-letters/retry?all=true")
	m.want(200, `{"dropped":0}`, "POST", "/dead-letters/drop?all=true")
}

// A slip in a query must not select more than was meant.
func TestAQueryThatIsNotUnderstoodTouchesNoDeadLetter(t *testing.T) {
	t.Parallel()
	m := newMorgue(t)
	m.die("a")
	for _, query := range []string{"", "?", "?all=false", "?all=", "?Class=a", "?class=", "?key=a&key=b", "?before=yesterday", "?state=dead", "?limit=1",
		"?after=0", "?key=a%00", "?key=%ff", "?Key=a", "?all=true&x"} {
		for _, what := range []string{"retry", "drop"} {
			if status, body := m.ask("POST", "/dead-letters/"+what+query); status != 422 && status != 400 {
				t.Errorf("%s %q: %d %s", what, query, status, body)
			}
		}
	}
	for _, query := range []string{"?all=true", "?limit=0", "?limit=1001", "?limit=x", "?after=x", "?state=alive", "?state=", "?x=1"} {
		m.want(422, "invalid", "GET", "/dead-letters"+query)
	}
	if l := m.list(""); len(l.Letters) != 1 || l.Letters[0].Attempts != 1 {
		t.Errorf("the letters are %+v", l)
	}
}

func TestWhatADeadLetterHoldsNeedsTheToken(t *testing.T) {
	t.Parallel()
	m := newMorgue(t)
	m.die("a")
	n := m.list("").Letters[0].N
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/dead-letters", 200},
		{"GET", fmt.Sprint("/dead-letters/", n), 401},
		{"POST", fmt.Sprint("/dead-letters/", n, "/drop"), 401},
		{"POST", "/dead-letters/drop?all=true", 401},
	} {
		if status, _, answer := ask(t, c.method, m.url+c.path); status != c.status {
			t.Errorf("%s %s without the token: %d %s, want %d", c.method, c.path, status, answer, c.status)
		}
	}
	if l := m.list(""); len(l.Letters) != 1 {
		t.Errorf("the letters are %+v", l)
	}
}
