package redisstore

import (
	"context"
	"crypto/rand"

	"github.com/oncebox/oncebox/idempotency"
)

// ReserveTwice sends one attempt's reservation again, as a client does that did not get the reply.
func (s *Store) ReserveTwice(ctx context.Context, req idempotency.Request) (first, second idempotency.Outcome, err error) {
	a := &attempt{store: s, req: req, key: s.key(req.Tenant, req.Key), owner: rand.Text()}
	if first, err = a.reserve(ctx); err != nil {
		return first, second, err
	}
	second, err = a.reserve(ctx)
	return first, second, err
}
