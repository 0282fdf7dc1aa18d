package heal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// An Offer is one side of a book, for whoever compares it with the other side. Sides of one name belong together, be they of one
// service or of two.
type Offer struct {
	// Name is the book's, Side one of [Left] and [Right].
	Name, Side string
	Rows       Book
	// Span says which buckets a time is, zero times being no bounds. It is the left side's to say. Default: all of them.
	Span  func(ctx context.Context, since, until time.Time) (Span, error)
	Marks Marks
}

// A Span is a range of buckets.
type Span struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
	// Closed is the first bucket that may still get rows.
	Closed int64 `json:"closed"`
	// Mark is the first bucket that was not found alike yet.
	Mark int64 `json:"mark"`
	// FirstSeq is the least seq that an outbox still holds; what a consumer has from before, nobody can compare any more.
	FirstSeq int64 `json:"first_seq,omitempty"`
}

// settledAfter is how long a row may take from its id to its commit: a bucket of times is closed then.
const settledAfter = time.Minute

// TimeSpan is the [Offer.Span] of a book whose buckets are times.
func TimeSpan(_ context.Context, since, until time.Time) (Span, error) {
	s := Span{To: LastBucket, Closed: TimeBucket(time.Now().Add(-settledAfter))}
	if !since.IsZero() {
		s.From = TimeBucket(since)
	}
	if !until.IsZero() {
		s.To = TimeBucket(until)
	}
	return s, nil
}

func (o Offer) span(ctx context.Context, since, until time.Time) (s Span, err error) {
	s = Span{To: LastBucket}
	if o.Span != nil {
		if s, err = o.Span(ctx, since, until); err != nil {
			return s, err
		}
	}
	s.Mark, err = o.Marks.Get(ctx, o.Name, o.Side)
	return s, err
}

type offered struct {
	Name string `json:"name"`
	Side string `json:"side"`
}

// Routes serves the offers on mux:
//
//	GET  /books                                     [{"name","side"}, …]
//	GET  /books/{name}/{side}/span?since&until      a [Span]; times are in RFC 3339
//	GET  /books/{name}/{side}/digests?from&to       [[Digest], …]
//	GET  /books/{name}/{side}/entries?bucket        [[Entry], …]
//	GET  /books/{name}/{side}/find?id&id            [[Entry], …]
//	POST /books/{name}/{side}/mark?bucket           {}
//
// Who may ask is for the caller to say. Errors are texts: 404 for a book that is not offered, 400, 503.
func Routes(mux *http.ServeMux, offers []Offer) {
	list := make([]offered, len(offers))
	for i, o := range offers {
		list[i] = offered{o.Name, o.Side}
	}
	mux.HandleFunc("GET /books", func(w http.ResponseWriter, _ *http.Request) { write(w, list, nil) })
	for _, o := range offers {
		at := "/books/" + o.Name + "/" + o.Side + "/"
		route := func(method, what string, do func(context.Context, query) (any, error)) {
			mux.HandleFunc(method+" "+at+what, func(w http.ResponseWriter, r *http.Request) {
				c := http.NewResponseController(w)
				_, _ = c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{}) // the database says how long it may take
				q := query{r: r}
				v, err := do(r.Context(), q)
				write(w, v, err)
			})
		}
		route(http.MethodGet, "span", func(ctx context.Context, q query) (any, error) {
			since, err := q.time("since")
			if err != nil {
				return nil, err
			}
			until, err := q.time("until")
			if err != nil {
				return nil, err
			}
			return o.span(ctx, since, until)
		})
		route(http.MethodGet, "digests", func(ctx context.Context, q query) (any, error) {
			from, err := q.bucket("from")
			if err != nil {
				return nil, err
			}
			to, err := q.bucket("to")
			if err != nil {
				return nil, err
			}
			return o.Rows.Digests(ctx, from, to)
		})
		route(http.MethodGet, "entries", func(ctx context.Context, q query) (any, error) {
			bucket, err := q.bucket("bucket")
			if err != nil {
				return nil, err
			}
			return o.Rows.Entries(ctx, bucket)
		})
		route(http.MethodGet, "find", func(ctx context.Context, q query) (any, error) {
			return o.Rows.Find(ctx, q.r.URL.Query()["id"])
		})
		route(http.MethodPost, "mark", func(ctx context.Context, q query) (any, error) {
			bucket, err := q.bucket("bucket")
			if err != nil {
				return nil, err
			}
			return struct{}{}, o.Marks.Set(ctx, o.Name, o.Side, bucket)
		})
	}
}

type query struct{ r *http.Request }

// A queryError is the asker's mistake.
type queryError struct{ error }

func (q query) time(name string) (time.Time, error) {
	s := q.r.URL.Query().Get(name)
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return t, queryError{fmt.Errorf("%s is %.40q, not a time in RFC 3339", name, s)}
	}
	return t, nil
}

func (q query) bucket(name string) (int64, error) {
	s := q.r.URL.Query().Get(name)
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > LastBucket {
		return 0, queryError{fmt.Errorf("%s is %.40q, not the number of a bucket", name, s)}
	}
	return n, nil
}

func write(w http.ResponseWriter, v any, err error) {
	if err != nil {
		status := http.StatusServiceUnavailable
		if _, ok := err.(queryError); ok { //nolint:errorlint // it is made here and never wrapped
			status = http.StatusBadRequest
		}
		http.Error(w, err.Error(), status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// KeptSpan is a [TimeSpan] of what an outbox still holds: it begins behind the bucket of its first row, unless that is the first
// row that there ever was.
func KeptSpan(outbox *pgxpool.Pool, schemaName string) func(context.Context, time.Time, time.Time) (Span, error) {
	table := pgx.Identifier{schema(schemaName), "outbox"}.Sanitize()
	return func(ctx context.Context, since, until time.Time) (Span, error) {
		s, err := TimeSpan(ctx, since, until)
		if err != nil {
			return s, err
		}
		var (
			seq  int64
			from time.Time
		)
		err = outbox.QueryRow(ctx, "SELECT seq, time FROM "+table+" ORDER BY seq LIMIT 1").Scan(&seq, &from)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			s.From, s.To = 1, 0 // nothing
		case err != nil:
			return s, fmt.Errorf("heal: find the outbox's beginning: %w", err)
		case seq > 1:
			s.From = max(s.From, TimeBucket(from)+1)
		}
		return s, nil
	}
}
