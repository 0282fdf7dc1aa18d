package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/oncebox/oncebox/internal/trial"
)

// settle waits until all that was taken has come to its end. unsettled says what has not within the time that it may take; it is a
// matter for the judge.
func (r *run) settle(ctx context.Context) (unsettled string, err error) {
	late := time.Now().Add(r.o.Settle)
	for {
		missing, err := r.w.missing(ctx)
		if err != nil { // what was broken last may not be back yet
			missing = err.Error()
		}
		if missing == "" {
			return "", nil
		}
		if time.Now().After(late) {
			return missing, nil
		}
		r.phase("settling: %s", missing)
		if err := trial.Pause(ctx, 100*time.Millisecond); err != nil {
			return "", err
		}
	}
}

// missing says what is on its way, "" if nothing is.
func (w *world) missing(ctx context.Context) (string, error) {
	var missing []string
	note := func(n int, what string) {
		if n != 0 {
			missing = append(missing, fmt.Sprintf("%d %s", n, what))
		}
	}
	var pending, paid int
	err := w.ordersDB.QueryRow(ctx, `SELECT count(*) FILTER (WHERE status = 'pending'), count(*) FILTER (WHERE status = 'paid' AND deleted_at IS NOT NULL)
		FROM orders`).Scan(&pending, &paid)
	if err != nil {
		return "", fmt.Errorf("count the orders: %w", err)
	}
	note(pending, "orders are pending")
	note(paid, "refunds are not there")
	for _, d := range directions {
		var written, had int
		err := w.database(d.producer).QueryRow(ctx, "SELECT count(DISTINCT id) FROM oncebox.outbox").Scan(&written)
		if err == nil {
			err = w.database(d.consumer).QueryRow(ctx, "SELECT count(*) FROM oncebox.inbox WHERE consumer = $1 AND state IN ('done', 'dead')", d.consumer).Scan(&had)
		}
		if err != nil {
			return "", fmt.Errorf("count the events of %s: %w", d.producer, err)
		}
		note(written-had, "events of "+d.producer+" are not in the inbox")
		c, err := w.consumer(ctx, d)
		if err != nil {
			missing = append(missing, fmt.Sprintf("the consumer of %s: %v", d.stream, err))
			continue
		}
		note(int(c.NumPending)+c.NumAckPending, "messages of "+d.stream+" wait")
	}
	return strings.Join(missing, ", "), nil
}
