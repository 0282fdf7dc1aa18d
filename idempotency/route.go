package idempotency

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// A route is a handler behind the keys.
type route struct {
	*Keys
	Policy
	next http.Handler
}

func (h *route) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		h.next.ServeHTTP(w, r)
		return
	}
	lines := r.Header.Values(HeaderKey)
	if len(lines) == 0 && (!h.Required || r.Method != http.MethodPost) {
		h.next.ServeHTTP(w, r)
		return
	}
	h.requests.WithLabelValues(h.serve(w, r, lines)).Inc()
}

// serve answers a request and returns the outcome by which it is counted.
func (h *route) serve(w http.ResponseWriter, r *http.Request, lines []string) (outcome string) {
	if r.Header.Get("Origin") != "" { // what a page of another origin may read; whether it may ask is not decided here
		w.Header().Add("Access-Control-Expose-Headers", HeaderKey+", "+HeaderReplayed+", Retry-After")
	}
	req, body, p := h.read(w, r, lines)
	if p.Status != 0 {
		h.refuse(w, p, 0, Response{})
		return wasRejected
	}
	key := flightKey{req.Tenant, req.Key}
	lead, out := h.flights.join(key, req.Fingerprint, time.Now().Add(req.Wait))
	if lead == nil {
		return h.tell(w, r, out)
	}
	e := h.lead(lead, key, r, req, body)
	switch {
	case e.problem.Status == unavailable.Status:
		h.refuse(w, e.problem, soon(), Response{})
	case e.problem.Status != 0:
		h.refuse(w, e.problem, 0, Response{})
	case e.answer != nil:
		e.answer(w)
	default:
		return h.tell(w, r, e.outcome)
	}
	return e.counted
}

// read makes of r what the store knows a request by, and returns its body. A problem with a status is the answer.
func (h *route) read(w http.ResponseWriter, r *http.Request, lines []string) (req Request, body []byte, p problem) {
	scope, ok := h.cfg.Scope(r)
	if !ok {
		return req, nil, noPrincipal
	}
	if len(h.MediaTypes) > 0 && !slices.Contains(h.MediaTypes, mediaType(r.Header.Get("Content-Type"))) {
		return req, nil, wrongMedia
	}
	if r.ContentLength > int64(h.MaxBody) {
		w.Header().Set("Connection", "close") // the rest is not read
		return req, nil, bodyTooLarge
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(h.MaxBody)))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return req, nil, bodyTooLarge
	}
	if err != nil {
		return req, nil, bodyBroken
	}
	key, err := parseKey(lines, h.Strict)
	if h.BodyKey != nil {
		key, err = bodyKey(key, err, h.BodyKey(body))
	}
	if errors.Is(err, errKeyMissing) {
		return req, nil, keyMissing
	}
	var minted time.Time
	if err == nil {
		minted, err = h.Kind.mintedAt(key, time.Now())
	}
	if err != nil {
		return req, nil, keyInvalid.because(err.Error())
	}
	w.Header().Set(HeaderKey, quoteKey(key))
	principal := scope.Principal
	if h.TenantWide {
		principal = ""
	}
	fp, err := fingerprint(r, body, h.Body, principal)
	if err != nil {
		return req, nil, bodyInvalid.because(err.Error())
	}
	return Request{Tenant: scope.Tenant, Key: HashKey(key), Fingerprint: fp, Principal: scope.Principal, Method: r.Method,
		Path: r.URL.EscapedPath(), Retention: h.cfg.Retention, Minted: minted, Wait: h.Wait, Guarded: h.Guarded}, body, problem{}
}

// An ending is what became of a request whose flight this one led: a problem, an answer, or what the store knew of it.
type ending struct {
	problem problem
	answer  func(http.ResponseWriter)
	outcome Outcome // for the followers as well; zero: they ask the store
	counted string  // of a problem or an answer
}

// lead asks the store, and executes the request if nobody has.
func (h *route) lead(f *flight, key flightKey, r *http.Request, req Request, body []byte) (e ending) {
	defer func() { h.flights.land(key, f, e.outcome) }() // also behind a panic
	// The client's going away ends nothing: what is decided here is what its retry will be told.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), h.Timeout)
	defer cancel()
	attempt, out, err := h.store.Begin(ctx, req)
	switch {
	case err != nil && h.FailOpen:
		h.log(req, "idempotency: the store is away, the request is executed without it", err)
		rec, e := h.run(ctx, r, &call{request: req}, body)
		if e.problem.Status == 0 {
			e.answer, e.counted = rec.send, wasStoreError
		}
		return e
	case err != nil:
		h.log(req, "idempotency: the store is away", err)
		return ending{problem: unavailable, counted: wasStoreError}
	case out.State != Fresh:
		return ending{outcome: out}
	}
	h.flights.executes(f)
	return h.execute(attempt, r, req, body)
}

// execute runs the handler and has its answer kept, or gives the request back.
func (h *route) execute(attempt Attempt, r *http.Request, req Request, body []byte) (e ending) {
	c := &call{request: req}
	store, applied := false, MaybeApplied
	ended := false
	abandon := func() {
		ended = true
		ctx, cancel := h.settling(attempt)
		defer cancel()
		if err := attempt.Abandon(ctx, applied); err != nil {
			h.log(req, "idempotency: a request could not be given back", err)
		}
	}
	defer func() {
		if !ended { // the handler aborted the connection, by http.ErrAbortHandler
			abandon()
		}
	}()
	rec, e := h.run(attempt.Context(), r, c, body)
	if e.problem.Status == 0 {
		store, applied = c.verdict(rec.status)
	} else if c.none.Load() {
		applied = NotApplied
	}
	if !store {
		abandon()
		if e.problem.Status == 0 {
			e.answer, e.counted = rec.send, wasNotKept
		}
		return e
	}
	ended = true
	kept := rec.kept(h.Headers, h.MaxResponse)
	kept.Undo = kept.Status >= 400 && !h.KeepEffects
	ctx, cancel := h.settling(attempt)
	defer cancel()
	switch err := attempt.Complete(ctx, kept); {
	case err == nil:
		h.cfg.Committed()
		now := time.Now()
		e.outcome = Outcome{State: Replay, Record: Record{Fingerprint: req.Fingerprint, Principal: req.Principal, Method: req.Method,
			Path: req.Path, Response: kept, CreatedAt: now, ExpiresAt: now.Add(req.Retention)}}
		e.answer, e.counted = rec.send, wasExecuted
	case errors.Is(err, ErrLeaseLost), errors.Is(err, ErrNotYetKept): // the handler has done its work, and its client is told
		h.log(req, "idempotency: an answer is not kept", err)
		e.answer, e.counted = rec.send, wasNotKept
	case errors.Is(err, ErrTaken):
		return h.ask(ctx, req, false)
	case errors.Is(err, ErrOutcomeUnknown):
		h.log(req, "idempotency: asking what became of a commit", err)
		return h.ask(ctx, req, true)
	default:
		h.log(req, "idempotency: an answer was not kept, and nothing was committed", err)
		return ending{problem: unavailable, counted: wasStoreError}
	}
	return e
}

// settling is a context for the end of an attempt, whose own may be over.
func (h *route) settling(a Attempt) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(a.Context()), h.cfg.SettleTimeout)
}

// run calls the handler. A panic and a deadline that has passed are problems, whatever was written before.
func (h *route) run(ctx context.Context, r *http.Request, c *call, body []byte) (rec *recorder, e ending) {
	rec = newRecorder()
	r = r.WithContext(context.WithValue(ctx, callKey{}, c))
	r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
	func() {
		defer func() {
			switch p := recover(); p {
			case nil:
			case http.ErrAbortHandler:
				panic(p)
			default:
				h.cfg.Logger.Error("idempotency: the handler panicked", "key", c.request.Key, "method", r.Method, "panic", p, "stack", string(debug.Stack()))
				e = ending{problem: handlerFailed, counted: wasNotKept}
			}
		}()
		h.next.ServeHTTP(rec, r)
	}()
	rec.finish()
	if ctx.Err() != nil {
		e = ending{problem: timedOut, counted: wasNotKept}
	}
	return rec, e
}

func (rec *recorder) send(w http.ResponseWriter) { send(w, rec.written, rec.status, rec.body.Bytes()) }

// askPause is the time between two tries to ask a store that cannot be reached.
const askPause = 20 * time.Millisecond

// ask finds out what became of a commit, by beginning the request again: the store makes that wait for one that still runs. Own
// says that the answer, if there is one, is most likely this request's.
func (h *route) ask(ctx context.Context, req Request, own bool) ending {
	for {
		if deadline, ok := ctx.Deadline(); ok {
			req.Wait = time.Until(deadline) / 2
		}
		attempt, out, err := h.store.Begin(ctx, req)
		switch {
		case err != nil:
			select {
			case <-ctx.Done():
				h.log(req, "idempotency: nobody knows yet what became of a commit", err)
				return ending{problem: unavailable, counted: wasStoreError}
			case <-time.After(askPause):
			}
			continue
		case out.State == Fresh: // nothing was committed
			if err := attempt.Abandon(ctx, NotApplied); err != nil {
				h.log(req, "idempotency: a request could not be given back", err)
			}
			return ending{problem: unavailable, counted: wasStoreError}
		case out.State == Replay && own:
			h.cfg.Committed()
			kept := out.Record.Response
			if kept.Dropped {
				return ending{outcome: out}
			}
			return ending{outcome: out, counted: wasExecuted,
				answer: func(w http.ResponseWriter) { send(w, kept.Header, kept.Status, kept.Body) }}
		default:
			return ending{outcome: out}
		}
	}
}

// tell answers a request that was not executed here by what the store, or the flight, knows of it.
func (h *route) tell(w http.ResponseWriter, r *http.Request, out Outcome) (outcome string) {
	switch out.State {
	case Replay:
		return h.replay(w, r, out.Record)
	case Mismatch:
		h.refuse(w, keyReused, 0, Response{})
		return wasMismatch
	case Unknown:
		h.refuse(w, unknown, 0, Response{})
		return wasUnknown
	case Expired:
		h.refuse(w, keyExpired, 0, Response{})
		return wasRejected
	default:
		h.refuse(w, inProgress, max(out.RetryAfter, time.Second), Response{})
		return wasConflict
	}
}

func (h *route) replay(w http.ResponseWriter, r *http.Request, rec Record) (outcome string) {
	if h.AuthorizeReplay != nil {
		if err := h.AuthorizeReplay(r, rec); err != nil {
			h.refuse(w, forbidden, 0, Response{})
			return wasRejected
		}
	}
	if rec.Response.Dropped {
		h.refuse(w, notRetained, 0, rec.Response)
		return wasConflict
	}
	w.Header().Set(HeaderReplayed, "true")
	send(w, rec.Response.Header, rec.Response.Status, rec.Response.Body)
	return wasReplayed
}

func (h *route) log(req Request, what string, err error) {
	h.cfg.Logger.Warn(what, "key", req.Key.String(), "method", req.Method, "error", err)
}

func hasPrefixFold(s string, prefixes ...string) bool {
	for _, p := range prefixes {
		if len(s) >= len(p) && strings.EqualFold(s[:len(p)], p) {
			return true
		}
	}
	return false
}
