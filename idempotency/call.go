package idempotency

import (
	"context"
	"sync/atomic"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// A call is what a handler says about its own answer.
type call struct {
	request             Request
	keep, discard, none atomic.Bool
}

type callKey struct{}

func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// Keep says that a refusal which is not kept by itself, such as a 400 or 422, is the business's answer to this very request, and
// not a typing error: retries get it again. Answers of the kind that is never kept (see [Keys.Wrap]) stay so. Outside a
// request with a key it does nothing.
func Keep(ctx context.Context) {
	if c := callOf(ctx); c != nil {
		c.keep.Store(true)
	}
}

// Discard says that a refusal which is kept by itself (402, 404, 409, 412) is not to be: a retry executes again. Outside a
// request with a key it does nothing.
func Discard(ctx context.Context) {
	if c := callOf(ctx); c != nil {
		c.discard.Store(true)
	}
}

// NothingApplied says that the handler, whatever it answers with a status of 500 or above, has changed nothing outside its
// transaction: a retry may execute again. It matters to stores without a transaction. Outside a request with a key it does
// nothing.
func NothingApplied(ctx context.Context) {
	if c := callOf(ctx); c != nil {
		c.none.Store(true)
	}
}

// RequestOf returns the request that ctx runs under: its tenant and the hashes of its key and content, which a business row may
// keep as its guard. ok is false outside a request with a key.
func RequestOf(ctx context.Context) (r Request, ok bool) {
	if c := callOf(ctx); c != nil {
		return c.request, true
	}
	return Request{}, false
}

// DownstreamKey returns the idempotency key for a call to somebody else, the same for each attempt of this request and another
// for each step. The client's own key is not handed on. ok is false outside a request with a key.
func DownstreamKey(ctx context.Context, step string) (key string, ok bool) {
	c := callOf(ctx)
	if c == nil {
		return "", false
	}
	return uuid.NewSHA1(c.request.ID(), []byte(step)).String(), true
}

type txKey struct{}

// WithTx returns a context that carries tx for [Tx]: for stores.
func WithTx(ctx context.Context, tx pgx.Tx) context.Context {
	return context.WithValue(ctx, txKey{}, tx)
}

// Tx returns the transaction in which the answer will be stored. What a handler writes in it is committed together with the
// answer, or not at all. It is the handler's until it returns; to commit it or roll it back is refused, savepoints (its Begin)
// are not. Large objects need one: LargeObjects of the transaction that Begin returns, this one's own panics before it. ok is false
// where the store has no transaction, and outside a request with a key.
func Tx(ctx context.Context) (tx pgx.Tx, ok bool) {
	tx, ok = ctx.Value(txKey{}).(pgx.Tx)
	return tx, ok
}

// verdict decides by what the handler answered. Nothing that the client did, or failed to get, counts.
func (c *call) verdict(status int) (store bool, applied Applied) {
	switch {
	case status < 400:
		return true, NotApplied
	case status >= 500:
		if c.none.Load() {
			return false, NotApplied
		}
		return false, MaybeApplied
	}
	switch status {
	case 401, 403, 408, 413, 415, 425, 429:
		return false, NotApplied
	case 402, 404, 409, 412:
		return !c.discard.Load(), NotApplied
	default:
		return c.keep.Load(), NotApplied
	}
}
