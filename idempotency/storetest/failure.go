package storetest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/oncebox/oncebox/idempotency"
)

var errorCases = []Case{
	{"put-with-a-stale-if-match-then-same-key-with-the-right-one", func(r *rig) {
		s := r.serve(required, func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("If-Match") != `"2"` {
				w.WriteHeader(http.StatusPreconditionFailed)
			}
		})
		stale := r.wantFirst(s.do("PUT", "/charges", body, "Idempotency-Key", "k", "If-Match", `"1"`), 412)
		r.wantProblem(s.do("PUT", "/charges", body, "Idempotency-Key", "k", "If-Match", `"2"`), 422, "key-reused")
		r.wantReplay(s.do("PUT", "/charges", body, "Idempotency-Key", "k", "If-Match", `"1"`), stale)
		right := r.wantFirst(s.do("PUT", "/charges", body, "Idempotency-Key", "l", "If-Match", `"2"`), 200)
		r.wantReplay(s.do("PUT", "/charges", body, "Idempotency-Key", "l", "If-Match", `"2"`), right)
	}},
	{"validation-error-then-same-key-with-fixed-body", func(r *rig) {
		s := r.serve(required, func(w http.ResponseWriter, req *http.Request) {
			b, err := io.ReadAll(req.Body)
			if err != nil {
				r.Error(err)
			}
			switch string(b) {
			case "typing error":
				w.WriteHeader(http.StatusUnprocessableEntity)
			case "blocked customer":
				idempotency.Keep(req.Context())
				w.WriteHeader(http.StatusUnprocessableEntity)
			default:
				r.charge(w, req)
			}
		})
		for range 2 {
			r.wantFirst(s.post("k", "typing error"), 422)
		}
		r.wantRecords(0)
		r.wantFirst(s.post("k", body), 201)
		r.wantEffects(1)
		blocked := r.wantFirst(s.post("l", "blocked customer"), 422)
		r.wantReplay(s.post("l", "blocked customer"), blocked)
		r.wantProblem(s.post("l", body), 422, "key-reused")
	}},
	{"business-402", func(r *rig) {
		var runs atomic.Int64
		declined := func(w http.ResponseWriter, req *http.Request) {
			runs.Add(1)
			if r.Undoes { // another store's handler has to take its own effects back
				if _, err := r.Effect(req.Context()); err != nil {
					r.Error(err)
				}
			}
			w.WriteHeader(http.StatusPaymentRequired)
			_, _ = io.WriteString(w, "declined")
		}
		s := r.serve(required, declined)
		first := r.wantFirst(s.post("k", body), 402)
		r.wantReplay(s.post("k", body), first)
		r.wantEffects(0)
		if n := runs.Load(); n != 1 {
			r.Errorf("the handler ran %d times, want 1", n)
		}
		if r.Undoes {
			p := required
			p.KeepEffects = true
			keeps := r.serve(p, declined)
			first := r.wantFirst(keeps.post("l", body), 402)
			r.wantReplay(keeps.post("l", body), first)
			r.wantEffects(1)
		}
	}},
	{"409-business-type-in-progress-type-replays", func(r *rig) {
		s := r.serve(required, func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			if req.URL.Path == "/discarded" {
				idempotency.Discard(req.Context())
			}
			w.WriteHeader(http.StatusConflict)
			_, _ = io.WriteString(w, `{"type":"urn:shop:sold-out"}`)
		})
		first := r.wantFirst(s.post("k", body), 409)
		r.wantReplay(s.post("k", body), first)
		for range 2 {
			r.wantFirst(s.do("POST", "/discarded", body, "Idempotency-Key", "l"), 409)
		}
		r.wantRecords(1)
	}},
	{"statuses-that-are-not-kept", func(r *rig) {
		s := r.serve(required, func(w http.ResponseWriter, req *http.Request) {
			status, err := strconv.Atoi(req.URL.Path[1:])
			if err != nil {
				r.Error(err)
			}
			switch status {
			case 401, 403, 408, 413, 415, 425, 429:
				idempotency.Keep(req.Context()) // to no avail
			}
			w.WriteHeader(status)
		})
		for _, status := range []int{400, 401, 403, 405, 408, 410, 413, 415, 422, 425, 428, 429} {
			for range 2 {
				r.wantFirst(s.do("POST", fmt.Sprintf("/%d", status), body, "Idempotency-Key", fmt.Sprintf("k-%d", status)), status)
			}
		}
		r.wantRecords(0)
	}},
	{"handler-500-pg", func(r *rig) {
		var fail atomic.Bool
		fail.Store(true)
		s := r.serve(required, func(w http.ResponseWriter, req *http.Request) {
			if fail.Load() {
				if req.URL.Path == "/sure" {
					idempotency.NothingApplied(req.Context())
				}
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			r.charge(w, req)
		})
		r.wantFirst(s.post("k", body), 500)
		r.wantFirst(s.do("POST", "/sure", body, "Idempotency-Key", "l"), 500)
		fail.Store(false)
		r.afterFailure(s, 0)
		before := r.Effects(r)
		r.wantFirst(s.do("POST", "/sure", body, "Idempotency-Key", "l"), 201)
		r.wantEffects(before + 1)
	}},
	{"effect-written-then-handler-returns-500-pg", func(r *rig) {
		var fail atomic.Bool
		fail.Store(true)
		s := r.serve(required, func(w http.ResponseWriter, req *http.Request) {
			if fail.Load() {
				if _, err := r.Effect(req.Context()); err != nil {
					r.Error(err)
				}
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			r.charge(w, req)
		})
		r.wantFirst(s.post("k", body), 500)
		left := 1
		if r.Undoes {
			left = 0
		}
		r.wantEffects(left)
		fail.Store(false)
		r.afterFailure(s, left)
	}},
	{"panic", func(r *rig) {
		var fail atomic.Bool
		fail.Store(true)
		s := r.serve(required, func(w http.ResponseWriter, req *http.Request) {
			if fail.Load() {
				w.WriteHeader(http.StatusCreated)
				panic("out of luck")
			}
			r.charge(w, req)
		})
		r.wantProblem(s.post("k", body), 500, "internal")
		fail.Store(false)
		r.afterFailure(s, 0)
		if log := s.log.String(); !strings.Contains(log, "out of luck") {
			r.Errorf("nothing is logged of the panic: %s", log)
		}
	}},
	{"connection-aborted-by-the-handler", func(r *rig) {
		var fail atomic.Bool
		fail.Store(true)
		s := r.serve(required, func(w http.ResponseWriter, req *http.Request) {
			if fail.Load() {
				panic(http.ErrAbortHandler)
			}
			r.charge(w, req)
		})
		if got, err := s.try("POST", "/charges", body, "Idempotency-Key", "k"); err == nil {
			r.Errorf("got %s, want an aborted connection", got)
		}
		fail.Store(false)
		r.afterFailure(s, 0)
	}},
	{"handler-exceeds-deadline", func(r *rig) {
		var fail atomic.Bool
		fail.Store(true)
		p := required
		p.Timeout = 500 * time.Millisecond
		s := r.serve(p, func(w http.ResponseWriter, req *http.Request) {
			if fail.Load() {
				if _, err := r.Effect(req.Context()); err != nil {
					r.Error(err)
				}
				<-req.Context().Done()
				w.WriteHeader(http.StatusCreated) // it does not matter what it says now
				return
			}
			r.charge(w, req)
		})
		r.wantProblem(s.post("k", body), 503, "unfinished")
		left := 1
		if r.Undoes {
			left = 0
		}
		r.wantEffects(left)
		fail.Store(false)
		p.Timeout = 0
		r.afterFailure(r.serve(p, r.charge), left)
	}},
	{"body-over-limit-with-content-length-and-chunked", func(r *rig) {
		p := required
		p.MaxBody = 1000
		s := r.serve(p, r.charge)
		r.wantProblem(s.post("k", strings.Repeat("b", 1001)), 413, "body-too-large")
		sent := &endless{}
		req, err := http.NewRequest(http.MethodPost, s.url+"/charges", sent)
		if err != nil {
			r.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer alice-1")
		req.Header.Set("Idempotency-Key", "k")
		// The server closes on a client that does not end: it may see the answer, or the connection go.
		if res, err := client.Do(req); err == nil {
			if res.StatusCode != http.StatusRequestEntityTooLarge {
				r.Errorf("chunked: %d", res.StatusCode)
			}
			res.Body.Close()
		}
		if n := sent.n.Load(); n > 64<<20 {
			r.Errorf("the server read %d bytes", n)
		}
		r.wantFirst(s.post("k", strings.Repeat("b", 1000)), 201)
		r.wantRuns(1)
	}},
	{"request-body-truncated-mid-upload", func(r *rig) {
		s := r.serve(required, r.charge)
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			r.Fatal(err)
		}
		defer conn.Close()
		_, err = io.WriteString(conn, "POST /charges HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alice-1\r\nIdempotency-Key: k\r\nContent-Length: 100\r\n\r\nhalf")
		if err != nil {
			r.Fatal(err)
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			r.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") || !strings.Contains(string(answer), "body-broken") {
			r.Errorf("got %q, %v", answer, err)
		}
		r.wantRecords(0)
		r.wantRuns(0)
	}},
	{"response-over-cap", func(r *rig) {
		p := required
		p.MaxResponse = 20
		s := r.serve(p, r.charge)
		first := r.wantFirst(s.post("k", body), 201)
		if len(first.body) <= p.MaxResponse {
			r.Fatalf("the answer is small: %s", first)
		}
		for range 2 {
			got := r.wantProblem(s.post("k", body), 409, "response-not-retained")
			if got.OriginalStatus != 201 || got.Location != first.header.Get("Location") || got.SafeToUseNewKey || got.Retryable {
				r.Errorf("%+v", got)
			}
		}
		r.wantProblem(s.post("k", "other"), 422, "key-reused")
		r.wantEffects(1)
		r.wantRuns(1)
	}},
	{"handler-writes-nothing", func(r *rig) {
		s := r.serve(required, func(http.ResponseWriter, *http.Request) {})
		first := r.wantFirst(s.post("k", body), 200)
		r.wantReplay(s.post("k", body), first)
		r.wantRecords(1)
	}},
	{"flush-and-hijack", func(r *rig) {
		s := r.serve(required, func(w http.ResponseWriter, _ *http.Request) {
			if _, _, err := http.NewResponseController(w).Hijack(); err == nil {
				r.Error("the connection was handed over")
			}
			_, _ = io.WriteString(w, "a")
			if err := http.NewResponseController(w).Flush(); err != nil {
				r.Error(err)
			}
			_, _ = io.WriteString(w, "b")
		})
		first := r.wantFirst(s.post("k", body), 200)
		if first.body != "ab" || first.header.Get("Content-Length") != "2" {
			r.Errorf("got %s", first)
		}
		r.wantReplay(s.post("k", body), first)
	}},
	{"client-disconnects-mid-handler", func(r *rig) {
		started, release := make(chan struct{}), make(chan struct{})
		s := r.serve(required, func(w http.ResponseWriter, req *http.Request) {
			close(started)
			<-release
			r.charge(w, req)
		})
		ctx, cancel := context.WithCancel(context.Background())
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/charges", strings.NewReader(body))
		if err != nil {
			r.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer alice-1")
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", "k")
		gone := make(chan error)
		go func() {
			res, err := client.Do(req)
			if err == nil {
				res.Body.Close()
			}
			gone <- err
		}()
		<-started
		cancel()
		if err := <-gone; err == nil {
			r.Fatal("the client did not go away")
		}
		close(release)
		got := s.post("k", body)
		if got.status != 201 || got.header.Get("Idempotent-Replayed") != "true" {
			r.Errorf("got %s, want a replay", got)
		}
		r.wantEffects(1)
		r.wantRuns(1)
	}},
}

// afterFailure checks what a retry gets when an attempt failed that left that many effects: its own execution, where the store
// undoes or the effect is guarded, and else no second one.
func (r *rig) afterFailure(s *server, left int) {
	r.Helper()
	if !r.Undoes && !r.Guarded {
		for range 2 {
			if p := r.wantProblem(s.post("k", body), 409, "outcome-unknown"); p.Retryable || p.SafeToUseNewKey {
				r.Errorf("%+v", p)
			}
		}
		r.wantEffects(left)
		return
	}
	r.wantRecords(0)
	first := r.wantFirst(s.post("k", body), 201)
	r.wantReplay(s.post("k", body), first)
	r.wantEffects(1)
}

// endless is a body without an end.
type endless struct{ n atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	e.n.Add(int64(len(p)))
	return len(p), nil
}
