package heal

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Remote asks a service that serves [Routes]. It is safe for concurrent use.
type Remote struct {
	// URL is where the routes are, such as http://127.0.0.1:8090.
	URL string
	// Token is sent with writes, where it is not "".
	Token string
	// Client sends. Default http.DefaultClient.
	Client *http.Client
}

// Get reads what is at path, with a query, into v.
func (r Remote) Get(ctx context.Context, path string, query url.Values, v any) error {
	return r.do(ctx, http.MethodGet, path, query, v)
}

// Post asks for a write.
func (r Remote) Post(ctx context.Context, path string, query url.Values, v any) error {
	return r.do(ctx, http.MethodPost, path, query, v)
}

func (r Remote) do(ctx context.Context, method, path string, query url.Values, v any) error {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(r.URL, "/")+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	if r.Token != "" {
		req.Header.Set("Authorization", "Bearer "+r.Token)
	}
	client := r.Client
	if client == nil {
		client = http.DefaultClient
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		body, err := io.ReadAll(io.LimitReader(res.Body, 4096))
		if err != nil {
			return err
		}
		var problem struct{ Title, Detail string }
		if json.Unmarshal(body, &problem) == nil && problem.Title+problem.Detail != "" {
			body = []byte(strings.TrimSpace(problem.Title + ": " + problem.Detail))
		}
		return fmt.Errorf("%s %s%s: %s: %s", method, r.URL, path, res.Status, strings.TrimSpace(string(body)))
	}
	if err := json.NewDecoder(res.Body).Decode(v); err != nil {
		return fmt.Errorf("%s %s%s: %w", method, r.URL, path, err)
	}
	return nil
}

// Sides are the sides of books that the service offers.
func (r Remote) Sides(ctx context.Context) ([]RemoteSide, error) {
	var list []offered
	if err := r.Get(ctx, "/books", nil, &list); err != nil {
		return nil, err
	}
	sides := make([]RemoteSide, len(list))
	for i, o := range list {
		sides[i] = RemoteSide{Remote: r, Name: o.Name, Side: o.Side}
	}
	return sides, nil
}

// A RemoteSide is one side of a book, a [Book] itself.
type RemoteSide struct {
	Remote
	Name, Side string
}

func (s RemoteSide) at(what string) string { return "/books/" + s.Name + "/" + s.Side + "/" + what }

// Span asks which buckets a time is.
func (s RemoteSide) Span(ctx context.Context, since, until time.Time) (span Span, err error) {
	q := url.Values{}
	for name, t := range map[string]time.Time{"since": since, "until": until} {
		if !t.IsZero() {
			q.Set(name, t.UTC().Format(time.RFC3339Nano))
		}
	}
	return span, s.Get(ctx, s.at("span"), q, &span)
}

// Mark moves the side's mark.
func (s RemoteSide) Mark(ctx context.Context, bucket int64) error {
	return s.Post(ctx, s.at("mark"), url.Values{"bucket": {strconv.FormatInt(bucket, 10)}}, &struct{}{})
}

// Digests implements [Book].
func (s RemoteSide) Digests(ctx context.Context, from, to int64) (d []Digest, err error) {
	return d, s.Get(ctx, s.at("digests"), url.Values{"from": {strconv.FormatInt(from, 10)}, "to": {strconv.FormatInt(to, 10)}}, &d)
}

// Entries implements [Book].
func (s RemoteSide) Entries(ctx context.Context, bucket int64) (e []Entry, err error) {
	return e, s.Get(ctx, s.at("entries"), url.Values{"bucket": {strconv.FormatInt(bucket, 10)}}, &e)
}

// Find implements [Book].
func (s RemoteSide) Find(ctx context.Context, ids []string) (found []Entry, err error) {
	const idsInURL = 100
	for some := range slices.Chunk(ids, idsInURL) {
		var f []Entry
		if err := s.Get(ctx, s.at("find"), url.Values{"id": some}, &f); err != nil {
			return nil, err
		}
		found = append(found, f...)
	}
	return found, nil
}
