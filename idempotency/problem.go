package idempotency

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

// A problem is an answer of the middleware's own (RFC 9457). A handler's conflicts must have other types.
type problem struct {
	ProblemType
	detail    string
	retryable bool // the same request may be sent again
	newKey    bool // the same intent may be sent under a new key
}

// A ProblemType is a kind of problem that the middleware answers with: the end of its type, its status and its title.
type ProblemType struct {
	Code   string
	Status int
	Title  string
}

var (
	keyMissing    = problem{ProblemType{"key-missing", 400, "There is no Idempotency-Key"}, "This request needs an Idempotency-Key header.", false, true}
	keyInvalid    = problem{ProblemType{"key-invalid", 400, "The Idempotency-Key is malformed"}, "The Idempotency-Key is malformed.", false, true}
	keyExpired    = problem{ProblemType{"key-expired", 400, "The Idempotency-Key is too old"}, "The time in the Idempotency-Key is longer ago than answers are kept. Find out what became of the first request before you send another.", false, false}
	bodyBroken    = problem{ProblemType{"body-broken", 400, "The body did not come to its end"}, "The request's body did not come to its end.", true, false}
	bodyInvalid   = problem{ProblemType{"body-invalid", 400, "The body cannot be read"}, "The request's body cannot be read.", false, true}
	noPrincipal   = problem{ProblemType{"unauthenticated", 401, "It is not known who asks"}, "It is not known who sends this request.", false, false}
	forbidden     = problem{ProblemType{"forbidden", 403, "The answer may not be shown"}, "The answer to this request may not be shown to you.", false, false}
	inProgress    = problem{ProblemType{"in-progress", 409, "The request is being worked on"}, "A request with this Idempotency-Key is being worked on.", true, false}
	unknown       = problem{ProblemType{"outcome-unknown", 409, "Nobody knows what became of the request"}, "A request with this Idempotency-Key ended without an answer, and may have been carried out.", false, false}
	notRetained   = problem{ProblemType{"response-not-retained", 409, "The answer is not kept"}, "The request was carried out; its answer was too large to be kept.", false, false}
	bodyTooLarge  = problem{ProblemType{"body-too-large", 413, "The body is too large"}, "The request's body is too large.", false, true}
	wrongMedia    = problem{ProblemType{"media-type", 415, "The body is of another type than is taken"}, "This path does not take that media type.", false, true}
	keyReused     = problem{ProblemType{"key-reused", 422, "The Idempotency-Key is another request's"}, "This Idempotency-Key came with another request before.", false, true}
	handlerFailed = problem{ProblemType{"internal", 500, "The service failed"}, "The request failed.", true, false}
	unavailable   = problem{ProblemType{"store-unavailable", 503, "The store cannot be reached"}, "It is not known what became of this request. Send it again with the same Idempotency-Key.", true, false}
	timedOut      = problem{ProblemType{"unfinished", 503, "The request took too long"}, "The request took too long, and was given up. Send it again with the same Idempotency-Key.", true, false}
)

// ProblemTypes returns all kinds of problems that the middleware answers with, by status.
func ProblemTypes() []ProblemType {
	all := []problem{keyMissing, keyInvalid, keyExpired, bodyBroken, bodyInvalid, noPrincipal, forbidden, inProgress, unknown, notRetained,
		bodyTooLarge, wrongMedia, keyReused, handlerFailed, unavailable, timedOut}
	types := make([]ProblemType, len(all))
	for i, p := range all {
		types[i] = p.ProblemType
	}
	return types
}

// because is the same problem with more of a reason.
func (p problem) because(detail string) problem {
	p.detail = detail
	return p
}

// problemDocument is a problem's body.
type problemDocument struct {
	Type             string `json:"type"`
	Title            string `json:"title"`
	Status           int    `json:"status"`
	Detail           string `json:"detail"`
	Code             string `json:"code"`
	Retryable        bool   `json:"retryable"`
	SafeToUseNewKey  bool   `json:"safe_to_use_new_key"`
	OriginalStatus   int    `json:"original_status,omitempty"`
	OriginalLocation string `json:"location,omitempty"`
}

// refuse answers with p. After is when to come again, 0 where that does not help; original is the answer that was not kept.
func (k *Keys) refuse(w http.ResponseWriter, p problem, after time.Duration, original Response) {
	doc := problemDocument{
		Type: k.cfg.ProblemType + p.Code, Title: p.Title, Status: p.Status, Detail: p.detail, Code: p.Code,
		Retryable: p.retryable, SafeToUseNewKey: p.newKey, OriginalStatus: original.Status, OriginalLocation: original.Header.Get("Location"),
	}
	body, err := json.Marshal(doc)
	if err != nil { // of strings, numbers and booleans
		panic(err)
	}
	h := http.Header{}
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	h.Set("Link", "<"+k.cfg.ProblemDocs+">; rel=\"describedby\"")
	if after > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(after.Seconds()))))
	}
	send(w, h, p.Status, append(body, '\n'))
}

// soon is 1 to 5 s: clients that a store's outage sent away do not come back all at once.
func soon() time.Duration { return time.Duration(1+rand.IntN(5)) * time.Second }
