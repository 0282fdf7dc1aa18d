package redisstore

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/internal/crash"
)

// lost is the answer to whoever does not own the record.
const lost = "LOST"

// An attempt owns a record by a token that nobody else has, for as long as it renews its lease.
type attempt struct {
	store *Store
	req   idempotency.Request
	key   string
	owner string

	// until is when this process stops to count on the lease, by its own clock, which no server's setting moves.
	until time.Time
	ctx   context.Context
	stop  context.CancelCauseFunc
	beats sync.WaitGroup
}

// run runs a script on the record.
func (a *attempt) run(ctx context.Context, script *redis.Script, args ...any) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, a.store.cfg.CommandTimeout)
	defer cancel()
	return script.Run(ctx, a.store.client, []string{a.key}, args...).Text()
}

func (a *attempt) minted() int64 {
	if a.req.Minted.IsZero() {
		return 0
	}
	return a.req.Minted.UnixMilli()
}

func (a *attempt) reserve(ctx context.Context) (idempotency.Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, a.store.cfg.CommandTimeout)
	defer cancel()
	steal := 0
	if a.req.Guarded {
		steal = 1
	}
	cfg := a.store.cfg
	sent := time.Now()
	if err := crash.Before("redis-reserve"); err != nil {
		return idempotency.Outcome{}, err
	}
	v, err := reserve.Run(ctx, a.store.client, []string{a.key}, a.req.Fingerprint[:], a.owner, cfg.Lease.Milliseconds(),
		a.req.Retention.Milliseconds(), a.minted(), steal, a.req.Principal, a.req.Method, a.req.Path).Slice()
	if err = crash.After("redis-reserve", err); err != nil {
		return idempotency.Outcome{}, err
	}
	switch v[0] {
	case "NEW":
		a.until = sent.Add(cfg.Lease - cfg.Margin)
		return idempotency.Outcome{State: idempotency.Fresh}, nil
	case "DONE":
		rec, err := record(a.req, v[1:])
		return idempotency.Outcome{State: idempotency.Replay, Record: rec}, err
	case "MISMATCH":
		return idempotency.Outcome{State: idempotency.Mismatch}, nil
	case "UNKNOWN":
		return idempotency.Outcome{State: idempotency.Unknown}, nil
	case "EXPIRED":
		return idempotency.Outcome{State: idempotency.Expired}, nil
	case "BUSY":
		ms, _ := v[1].(int64)
		// A clock that was set back may make it look longer than a lease can be.
		return idempotency.Outcome{State: idempotency.Busy, RetryAfter: min(time.Duration(ms)*time.Millisecond, cfg.Lease)}, nil
	}
	return idempotency.Outcome{}, fmt.Errorf("the script answered %v", v[0])
}

// hold renews the lease until end is called, and cancels the handler's context when it is lost.
func (a *attempt) hold(ctx context.Context) {
	a.ctx, a.stop = context.WithCancelCause(ctx)
	a.beats.Go(func() {
		beat := time.NewTicker(a.store.cfg.Lease / 3)
		defer beat.Stop()
		over := time.NewTimer(time.Until(a.until))
		defer over.Stop()
		for {
			select {
			case <-a.ctx.Done():
				return
			case <-over.C:
				a.lose()
				return
			case <-beat.C:
			}
			sent := time.Now()
			answer, err := "", crash.Before("redis-extend")
			if err == nil {
				answer, err = a.run(a.ctx, extend, a.owner, a.store.cfg.Lease.Milliseconds())
				err = crash.After("redis-extend", err)
			}
			switch {
			case err != nil: // the next beat, if there is time for one
			case answer == lost:
				a.lose()
				return
			default:
				a.until = sent.Add(a.store.cfg.Lease - a.store.cfg.Margin)
				over.Reset(time.Until(a.until))
			}
		}
	})
}

func (a *attempt) lose() {
	a.store.cfg.Logger.Warn("redisstore: the lease on a request is lost, its handler is told to stop", "key", a.req.Key.String())
	a.stop(idempotency.ErrLeaseLost)
}

func (a *attempt) end() {
	a.stop(context.Canceled)
	a.beats.Wait()
}

func (a *attempt) Context() context.Context { return a.ctx }

// Complete stores the answer. If Redis cannot be told now it is told later.
func (a *attempt) Complete(ctx context.Context, r idempotency.Response) error {
	a.end()
	res, err := marshal(r)
	if err != nil {
		return fmt.Errorf("redisstore: write an answer: %w", err)
	}
	tell := func(ctx context.Context) (string, error) {
		if err := crash.Before("redis-complete"); err != nil {
			return "", err
		}
		answer, err := a.run(ctx, complete, a.owner, a.req.Retention.Milliseconds(), a.minted(), res)
		return answer, crash.After("redis-complete", err)
	}
	answer, err := tell(ctx)
	switch {
	case err != nil:
		a.store.tellLater("complete", a, tell)
		return fmt.Errorf("redisstore: %w: %w", idempotency.ErrNotYetKept, err)
	case answer == lost:
		return idempotency.ErrLeaseLost
	}
	return nil
}

// Abandon frees the request, or marks it unknown, where to execute it again might do something twice.
func (a *attempt) Abandon(ctx context.Context, applied idempotency.Applied) error {
	a.end()
	what, tell := "release", a.release
	if applied == idempotency.MaybeApplied && !a.req.Guarded {
		what, tell = "mark", func(ctx context.Context) (string, error) {
			return a.run(ctx, mark, a.owner, a.req.Retention.Milliseconds())
		}
	}
	if _, err := tell(ctx); err != nil {
		a.store.tellLater(what, a, tell)
	}
	return nil
}

// release frees the request.
func (a *attempt) release(ctx context.Context) (string, error) {
	if err := crash.Before("redis-release"); err != nil {
		return "", err
	}
	answer, err := a.run(ctx, release, a.owner)
	return answer, crash.After("redis-release", err)
}

// Resolve implements [idempotency.Operator].
func (s *Store) Resolve(ctx context.Context, tenant string, key idempotency.KeyHash, r *idempotency.Response) error {
	res := ""
	if r != nil {
		var err error
		if res, err = marshal(*r); err != nil {
			return fmt.Errorf("redisstore: write an answer: %w", err)
		}
	}
	answer, err := resolve.Run(ctx, s.client, []string{s.key(tenant, key)}, res).Text()
	if err != nil {
		return fmt.Errorf("redisstore: resolve: %w", err)
	}
	if answer == lost {
		return idempotency.ErrNotUnknown
	}
	return nil
}

// Lookup implements [idempotency.Operator].
func (s *Store) Lookup(ctx context.Context, tenant string, key idempotency.KeyHash) (rec idempotency.Record, state idempotency.State, err error) {
	h, err := s.client.HGetAll(ctx, s.key(tenant, key)).Result()
	if err != nil {
		return rec, 0, fmt.Errorf("redisstore: look a key up: %w", err)
	}
	if len(h) == 0 {
		return rec, 0, nil
	}
	rec = idempotency.Record{Principal: h["who"], Method: h["method"], Path: h["path"], CreatedAt: millis(h["at"])}
	copy(rec.Fingerprint[:], h["fp"])
	switch h["st"] {
	case "P":
		return rec, idempotency.Busy, nil
	case "U":
		return rec, idempotency.Unknown, nil
	}
	rec.Response, err = unmarshal(h["res"])
	return rec, idempotency.Replay, err
}
