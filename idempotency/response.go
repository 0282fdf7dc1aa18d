package idempotency

import (
	"bufio"
	"bytes"
	"errors"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
)

// replayed are the headers that belong to an answer, whenever it is given.
var replayed = []string{"Content-Type", "Content-Language", "Content-Disposition", "Location", "ETag", "Last-Modified", "Link", "Vary"}

// neverReplayed are those that belong to one exchange, or one client. A route cannot add them.
var neverReplayed = []string{
	"Set-Cookie", "Www-Authenticate", "Proxy-Authenticate", "Authorization", "Connection", "Keep-Alive", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade", "Content-Length", "Content-Encoding", "Date", "Server-Timing", "Traceparent", "Tracestate", "X-Request-Id",
	"Retry-After", HeaderKey, HeaderReplayed,
}

// A recorder is the ResponseWriter that a handler gets: nothing of the answer leaves before it is decided.
type recorder struct {
	header  http.Header
	written http.Header // as it was when the answer began
	status  int
	body    bytes.Buffer
}

func newRecorder() *recorder { return &recorder{header: http.Header{}} }

func (rec *recorder) Header() http.Header { return rec.header }

func (rec *recorder) WriteHeader(status int) {
	if status < 200 || rec.status != 0 { // an informational answer has nowhere to go; net/http ignores a second status, too
		return
	}
	rec.status = status
	rec.written = rec.header.Clone()
}

func (rec *recorder) Write(b []byte) (int, error) {
	rec.WriteHeader(http.StatusOK)
	if !hasBody(rec.status) {
		return 0, http.ErrBodyNotAllowed
	}
	if rec.written.Get("Content-Type") == "" && rec.body.Len() == 0 {
		rec.written.Set("Content-Type", http.DetectContentType(b))
	}
	return rec.body.Write(b)
}

// Flush does nothing: a handler that flushes works, and its answer waits all the same.
func (rec *recorder) Flush() { rec.WriteHeader(http.StatusOK) }

// Hijack refuses.
func (rec *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) { return nil, nil, errNoHijack }

var errNoHijack = errors.New("idempotency: a request with a key cannot take its connection over")

// finish is called when the handler has returned.
func (rec *recorder) finish() { rec.WriteHeader(http.StatusOK) }

// kept is the answer as it is stored.
func (rec *recorder) kept(extra []string, limit int) Response {
	r := Response{Status: rec.status, Header: http.Header{}, Body: rec.body.Bytes()}
	for _, name := range slices.Concat(replayed, extra) {
		name = http.CanonicalHeaderKey(name)
		if values := rec.written[name]; len(values) > 0 {
			r.Header[name] = values
		}
	}
	if len(r.Body) > limit {
		r.Body, r.Dropped = nil, true
	}
	return r
}

func hasBody(status int) bool {
	return status != http.StatusNoContent && status != http.StatusNotModified
}

// send writes a whole answer. What is around the middleware may have set headers before: an answer's own take their place, but
// for Vary, where both count.
func send(w http.ResponseWriter, header http.Header, status int, body []byte) {
	h := w.Header()
	vary := slices.Clone(h["Vary"])
	maps.Copy(h, header.Clone()) // a kept answer has many readers
	if len(vary) > 0 {
		h["Vary"] = append(vary, header["Vary"]...)
	}
	h.Del("Content-Length")
	if hasBody(status) {
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(status)
	if hasBody(status) {
		// An error here is the client's going away: it will ask again.
		_, _ = w.Write(body)
	}
}
