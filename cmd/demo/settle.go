package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/oncebox/oncebox/internal/trial"
)

// settle waits until every accepted order is charged and paid and every consumer has acknowledged all of its stream. unsettled
// is the wait's end in vain.
func (l *load) settle(ctx context.Context) (unsettled, err error) {
	err = whileMoving(ctx, "settling", func() (string, bool, error) {
		missing, err := l.missing(ctx)
		return missing, missing == "", err
	})
	if errors.Is(err, errStuck) {
		return err, nil
	}
	return nil, err
}

// restLimit is how long everything may stand still while something is waited for. What moves on may take longer.
const restLimit = time.Minute

// errStuck is a wait in which nothing moves any more.
var errStuck = errors.New("nothing moves")

// whileMoving waits until look says that it is done, for as long as the state that it tells goes on changing. what names the
// wait.
func whileMoving(ctx context.Context, what string, look func() (state string, done bool, err error)) error {
	var state string
	moved := time.Now()
	for {
		now, done, err := look()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil || done {
			return err
		}
		if now != state {
			state, moved = now, time.Now()
		}
		if time.Since(moved) > restLimit {
			return fmt.Errorf("%s: %w for %s: %s", what, errStuck, restLimit, state)
		}
		if err := trial.Pause(ctx, 4*pollPause); err != nil { // look counts whole tables
			return err
		}
	}
}

// missing says what is not settled yet, "" if all is.
func (l *load) missing(ctx context.Context) (string, error) {
	var accepted, pending, charged int
	err := l.s.ordersDB.QueryRow(ctx, "SELECT count(*), count(*) FILTER (WHERE status = 'pending') FROM orders").Scan(&accepted, &pending)
	if err != nil {
		return "", fmt.Errorf("count the orders: %w", err)
	}
	if charged, err = l.s.charged(ctx, ""); err != nil {
		return "", err
	}
	var missing []string
	note := func(n int, what string) {
		if n > 0 {
			missing = append(missing, fmt.Sprintf("%d %s", n, what))
		}
	}
	note(accepted-charged, "orders not charged")
	note(pending, "orders pending")
	for _, c := range consumers {
		info, err := l.s.consumer(ctx, c.stream, c.durable)
		if err != nil {
			return "", err
		}
		note(int(info.NumPending)+info.NumAckPending, fmt.Sprintf("messages of %s before consumer %s", c.stream, c.durable))
	}
	return strings.Join(missing, ", "), nil
}
