package idempotency

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/google/uuid"
)

// A Store remembers what was answered. The suite in storetest says what it must do; Postgres and redisstore.Store pass it.
//
// Begin looks a request up and, if nobody has it, takes it: then the Attempt is not nil, the Outcome is Fresh, and the caller
// ends the attempt by Complete or Abandon, once. Begin may wait for another attempt, for Request.Wait at most, before it says
// Busy. An error means that the store could not be asked; the request was not taken, or will be free again by itself.
//
// A Store is safe for concurrent use, by any number of processes.
type Store interface {
	Begin(context.Context, Request) (Attempt, Outcome, error)
}

// An Attempt is one execution of a request. One goroutine uses it.
type Attempt interface {
	// Context is what the handler runs under. It is the one that Begin got, may carry a transaction, and is cancelled, with cause
	// [ErrLeaseLost], when the attempt is no longer the only one.
	Context() context.Context
	// Complete stores the answer, and commits what the attempt holds. After nil each retry gets this answer.
	//
	//   - [ErrOutcomeUnknown]: nobody knows whether that happened; Begin tells, later.
	//   - [ErrTaken]: another attempt was completed before; nothing of this one was committed, and Begin tells what to answer.
	//   - [ErrNotYetKept]: the store goes on trying to store the answer, and may fail.
	//   - [ErrLeaseLost]: the answer is not stored, as another attempt has the request.
	//   - any other error: nothing was stored and nothing committed.
	Complete(context.Context, Response) error
	// Abandon gives the request back, and takes back what the attempt holds, so that a retry executes it again; unless that could
	// do something twice, in which case retries get Unknown.
	Abandon(context.Context, Applied) error
}

// Applied says what an abandoned attempt may have done outside the store's own transaction.
type Applied int

// NotApplied is an attempt that has changed nothing, MaybeApplied one that nobody knows that of.
const (
	NotApplied Applied = iota + 1
	MaybeApplied
)

var (
	// ErrOutcomeUnknown is returned by Complete when the connection broke at the commit.
	ErrOutcomeUnknown = errors.New("idempotency: the outcome of the commit is not known")
	// ErrTaken is returned by Complete when another attempt was completed before.
	ErrTaken = errors.New("idempotency: another attempt was completed before")
	// ErrNotYetKept is returned by Complete when the store could not be told now.
	ErrNotYetKept = errors.New("idempotency: the answer is not kept yet")
	// ErrLeaseLost is returned by Complete, and the cause of an Attempt's context, when the lease on the request has ended.
	ErrLeaseLost = errors.New("idempotency: the lease on the request is lost")
)

// A Request is what a Store knows of one.
type Request struct {
	// Tenant and Key name it: nothing else does.
	Tenant string
	Key    KeyHash
	// Fingerprint tells it from other requests that come with the same key.
	Fingerprint Fingerprint
	// Principal, Method and Path are kept for those who look the record up.
	Principal, Method, Path string
	// Retention is how long the record is kept, by the store's clock: from Minted on, or, where that is zero, from when it is
	// made. A request whose time is over before it begins is Expired.
	Retention time.Duration
	Minted    time.Time
	// Wait is how long Begin may wait for another attempt's end.
	Wait time.Duration
	// Guarded says that the effect itself has a unique key: to execute again after a lost lease is then safe.
	Guarded bool
}

// ID is the same for each attempt of a request: what a downstream call's own key is derived from.
func (r Request) ID() uuid.UUID {
	f := newFields()
	f.add(r.Tenant)
	f.Write(r.Key[:])
	f.Write(r.Fingerprint[:])
	var id uuid.UUID
	copy(id[:], f.Sum(nil))
	id[6] = 0x80 | id[6]&0x0f
	id[8] = 0x80 | id[8]&0x3f
	return id
}

// A State says what a Store knows of a request.
type State int

// The states of an Outcome.
const (
	// Fresh: nobody had the request, and now the caller has it.
	Fresh State = iota + 1
	// Replay: it was answered, by the Outcome's Record.
	Replay
	// Mismatch: its key came with another fingerprint before.
	Mismatch
	// Busy: another attempt is running; ask again after RetryAfter.
	Busy
	// Unknown: an attempt ended without a word, and may have done its work.
	Unknown
	// Expired: its retention was over before it came.
	Expired
)

// An Outcome is what Begin found.
type Outcome struct {
	State      State
	Record     Record        // of Replay
	RetryAfter time.Duration // of Busy
}

// A Record is a request and its answer, as they are kept.
type Record struct {
	Fingerprint             Fingerprint
	Principal, Method, Path string
	Response                Response
	CreatedAt, ExpiresAt    time.Time
}

// A Response is an answer as it is kept.
type Response struct {
	Status int
	// Header has only what is replayed.
	Header http.Header
	Body   []byte
	// Dropped says that the body was too large to be kept.
	Dropped bool
	// Undo says that the answer is a refusal: a store that can takes the handler's effects back, and keeps the answer.
	Undo bool
}
