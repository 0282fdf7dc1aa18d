package service

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/oncebox/oncebox/inbox"
)

const (
	// lettersDefault is how many dead letters a list has where nobody asks for another number, lettersMax how many it has at most.
	lettersDefault, lettersMax = 100, 1000
)

// A letterList is a page of dead letters. Next is the after of the next page; the last page has none.
type letterList struct {
	Letters []inbox.Letter `json:"letters"`
	Next    int64          `json:"next,omitempty"`
}

// A letterState says what became of one letter.
type letterState struct {
	N     int64  `json:"n"`
	State string `json:"state"`
}

// A retryReport says what became of the letters that were retried together. Errors are those of the first ten that failed.
type retryReport struct {
	Retried int      `json:"retried"`
	Failed  int      `json:"failed"`
	Errors  []string `json:"errors,omitempty"`
}

// letterRoutes are what an operator does about the messages that a service could not handle, on the admin listener:
//
//	GET  /dead-letters?…          a letterList, the oldest first. What may be a person's data, headers and payload, is null in it
//	GET  /dead-letters/{n}        an inbox.Letter, whole, its payload in base64; needs the admin token as a write does
//	POST /dead-letters/{n}/retry  runs the handler: {"n":7,"state":"retried"}
//	POST /dead-letters/{n}/drop   gives the letter up: {"n":7,"state":"dropped"}
//	POST /dead-letters/retry?…    the same for all that the query selects, one after the other: a retryReport
//	POST /dead-letters/drop?…     {"dropped":3}
//
// A query selects by tenant, source, topic, key, class, and before (RFC 3339: those that died before then). A list also by state
// (dead, which is the default, retried, dropped or all); it begins behind the letter after and has limit letters, 100 if nobody
// says, 1,000 at most. A retry or drop that is to take every dead letter says all=true.
//
// Errors are problem documents: not-found for a letter that is not there, or not dead any more; letter-stays (409) for one that
// cannot be retried now, and why; invalid (422) for a query with a name or value that is not known; store-unavailable (503).
func letterRoutes(mux *http.ServeMux, dead *inbox.DeadLetters) {
	mux.HandleFunc("GET /dead-letters", func(w http.ResponseWriter, r *http.Request) {
		q, p := readLetterQuery(r.URL, "state", "after", "limit")
		if p != nil {
			p.write(w)
			return
		}
		list, err := listLetters(r.Context(), dead, q)
		answer(w, list, err)
	})
	mux.HandleFunc("GET /dead-letters/{n}", func(w http.ResponseWriter, r *http.Request) {
		l, err := findLetter(r.Context(), dead, number(r, "n"))
		answer(w, l, err)
	})
	mux.HandleFunc("POST /dead-letters/{n}/retry", func(w http.ResponseWriter, r *http.Request) {
		n := number(r, "n")
		asLongAsItTakes(w)
		err := dead.Retry(r.Context(), n)
		if err != nil && !errors.Is(err, inbox.ErrNotDead) && !unreachable(err) {
			err = newProblem(http.StatusConflict, "letter-stays", err.Error())
		}
		answer(w, letterState{n, "retried"}, err)
	})
	mux.HandleFunc("POST /dead-letters/{n}/drop", func(w http.ResponseWriter, r *http.Request) {
		n := number(r, "n")
		answer(w, letterState{n, "dropped"}, dead.Drop(r.Context(), n))
	})
	for what, many := range map[string]func(context.Context, inbox.Filter) (any, error){
		"retry": func(ctx context.Context, f inbox.Filter) (any, error) { return retryLetters(ctx, dead, f) },
		"drop":  func(ctx context.Context, f inbox.Filter) (any, error) { return dropLetters(ctx, dead, f) },
	} {
		mux.HandleFunc("POST /dead-letters/"+what, func(w http.ResponseWriter, r *http.Request) {
			q, p := readLetterQuery(r.URL, "all")
			if p == nil && !q.all && q.filter == (inbox.Filter{State: "dead"}) {
				p = newProblem(http.StatusUnprocessableEntity, "invalid", "Select letters by the query, or say all=true.")
			}
			if p != nil {
				p.write(w)
				return
			}
			asLongAsItTakes(w)
			report, err := many(r.Context(), q.filter)
			answer(w, report, err)
		})
	}
}

// asLongAsItTakes lifts the limits of w's request. It still ends when the client goes away, and what is not done then is left as it is.
func asLongAsItTakes(w http.ResponseWriter) {
	c := http.NewResponseController(w)
	_, _ = c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{})
}

func listLetters(ctx context.Context, dead *inbox.DeadLetters, q letterQuery) (letterList, error) {
	letters, err := dead.List(ctx, q.filter, q.limit)
	for i := range letters {
		letters[i].Headers, letters[i].Payload = nil, nil
	}
	list := letterList{Letters: letters}
	if len(letters) == q.limit {
		list.Next = letters[q.limit-1].N
	}
	return list, err
}

func findLetter(ctx context.Context, dead *inbox.DeadLetters, n int64) (inbox.Letter, error) {
	letters, err := dead.List(ctx, inbox.Filter{After: n - 1}, 1)
	switch {
	case err != nil:
		return inbox.Letter{}, err
	case len(letters) == 0 || letters[0].N != n:
		return inbox.Letter{}, inbox.ErrNotDead
	}
	return letters[0], nil
}

func retryLetters(ctx context.Context, dead *inbox.DeadLetters, f inbox.Filter) (retryReport, error) {
	r, err := dead.RetryAll(ctx, f)
	report := retryReport{Retried: r.Retried, Failed: r.Failed}
	for _, e := range r.Errors {
		report.Errors = append(report.Errors, e.Error())
	}
	if err != nil {
		return report, fmt.Errorf("after %d retried and %d failed: %w", r.Retried, r.Failed, err)
	}
	return report, nil
}

// dropLetters leaves out what others retry or drop meanwhile.
func dropLetters(ctx context.Context, dead *inbox.DeadLetters, f inbox.Filter) (map[string]int, error) {
	dropped := 0
	for {
		letters, err := dead.List(ctx, f, lettersDefault)
		if err != nil {
			return nil, fmt.Errorf("after %d dropped: %w", dropped, err)
		}
		for _, l := range letters {
			f.After = l.N
			err := dead.Drop(ctx, l.N)
			switch {
			case err == nil:
				dropped++
			case !errors.Is(err, inbox.ErrNotDead):
				return nil, fmt.Errorf("after %d dropped: %w", dropped, err)
			}
		}
		if len(letters) < lettersDefault {
			return map[string]int{"dropped": dropped}, nil
		}
	}
}

// A letterQuery is what a request selects.
type letterQuery struct {
	filter inbox.Filter
	limit  int
	all    bool
}

// readLetterQuery reads the filter's names, and those of more. A name that is not known would select too much, and is refused.
func readLetterQuery(u *url.URL, more ...string) (letterQuery, *problem) {
	if p := checkURL(u); p != nil {
		return letterQuery{}, p
	}
	q := letterQuery{filter: inbox.Filter{State: "dead"}, limit: lettersDefault}
	var err error
	for name, values := range u.Query() {
		v := values[0]
		known := !slices.Contains([]string{"state", "after", "limit", "all"}, name) || slices.Contains(more, name)
		switch {
		case known && name == "tenant":
			q.filter.TenantID = v
		case known && name == "source":
			q.filter.Source = v
		case known && name == "topic":
			q.filter.Topic = v
		case known && name == "key":
			q.filter.Key = v
		case known && name == "class":
			q.filter.Class = v
		case known && name == "before":
			q.filter.Before, err = time.Parse(time.RFC3339, v)
		case known && name == "state" && slices.Contains([]string{"dead", "retried", "dropped", "all"}, v):
			if q.filter.State = v; v == "all" {
				q.filter.State = ""
			}
		case known && name == "after":
			q.filter.After, err = strconv.ParseInt(v, 10, 64)
		case known && name == "limit":
			if q.limit, err = strconv.Atoi(v); err == nil && (q.limit < 1 || q.limit > lettersMax) {
				err = strconv.ErrRange
			}
		case known && name == "all" && v == "true":
			q.all = true
		default:
			err = errors.New("unknown")
		}
		if err != nil || v == "" {
			return letterQuery{}, newProblem(http.StatusUnprocessableEntity, "invalid", "The query has a name or a value that is not known here.")
		}
	}
	return q, nil
}
