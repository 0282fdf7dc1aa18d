package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/oncebox/oncebox"
)

// onWay is what was given to the sink since it was opened and is not yet known to be stored.
type onWay struct {
	rows    []sentRow // the oldest first
	skipped int       // of rows
	stored  uint64    // events that left rows for the log
	given   uint64    // events given to the sink
	calls   []call
	chunk   int // events in the next call
}

// A sentRow is a row that was given to the sink, or one that the log was seen to hold.
type sentRow struct {
	seq  int64
	skip bool
}

// A call is one of the sink's Store, over when upTo events are stored.
type call struct {
	upTo uint64
	at   time.Time
}

// firstChunk is how many events the sink is given at first.
const firstChunk = 50

// send gives rows to the sink, but for what the log already holds, and parks those that it can never hold.
func (r *Relay) send(ctx context.Context, rows []row) error {
	fresh := r.fresh[:0] // the sink keeps none of them
	defer func() { clear(fresh[:cap(fresh)]); r.fresh = fresh }()
	for i := range rows {
		row := &rows[i]
		if r.stored[row.ID] > 0 {
			if err := r.give(ctx, fresh, ownSeq); err != nil {
				return err
			}
			fresh = fresh[:0]
			r.skip(row)
			continue
		}
		reason := r.unsendable(row)
		if reason == nil {
			fresh = append(fresh, row.Event)
			continue
		}
		if err := r.give(ctx, fresh, ownSeq); err != nil {
			return err
		}
		fresh = fresh[:0]
		if err := r.park(ctx, row, reason); err != nil {
			return err
		}
	}
	return r.give(ctx, fresh, ownSeq)
}

// ownSeq says that an event's row is one of the round's.
func ownSeq(e oncebox.Event) int64 { return e.Seq }

// give hands events to the sink, as many at a time as it takes in a fraction of the lease, which is renewed between. seq is where
// in the round the relay is when an event is stored.
func (r *Relay) give(ctx context.Context, events []oncebox.Event, seq func(oncebox.Event) int64) error {
	for len(events) > 0 {
		if !r.cursor.held() { // it is ours again, unless somebody has taken it meanwhile
			if err := r.save(ctx); err != nil {
				return err
			}
		}
		n := min(r.onWay.chunk, len(events))
		for _, e := range events[:n] {
			r.onWay.rows = append(r.onWay.rows, sentRow{seq: seq(e)})
		}
		r.onWay.given += uint64(n)
		began := time.Now()
		r.onWay.calls = append(r.onWay.calls, call{upTo: r.onWay.given, at: began})
		r.metrics.batchRows.Observe(float64(n))
		stored, last, err := r.sink.Store(ctx, events[:n])
		r.settle(stored, last)
		if err != nil {
			return fmt.Errorf("store: %w", err)
		}
		switch took := time.Since(began); {
		case took > r.cfg.Lease/10:
			r.onWay.chunk = max(1, r.onWay.chunk/2)
		case n == r.onWay.chunk:
			r.onWay.chunk = min(2*r.onWay.chunk, r.cfg.Page)
		}
		events = events[n:]
		if err := r.saveIfDue(ctx); err != nil {
			return err
		}
	}
	return nil
}

// skip passes a row by that the log was seen to hold.
func (r *Relay) skip(row *row) {
	if r.stored[row.ID]--; r.stored[row.ID] == 0 {
		delete(r.stored, row.ID)
	}
	r.onWay.rows = append(r.onWay.rows, sentRow{seq: row.Seq, skip: true})
	r.onWay.skipped++
	r.passed++
	r.metrics.skipped.Inc()
	r.settle(r.onWay.stored, r.last)
}

// flush waits until all that was given is stored.
func (r *Relay) flush(ctx context.Context) error {
	if len(r.onWay.rows) == 0 {
		return nil
	}
	stored, last, err := r.sink.Flush(ctx)
	r.settle(stored, last)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// settle moves the position with what is stored: stored events since the sink was opened, the log's end at last.
func (r *Relay) settle(stored, last uint64) {
	w := &r.onWay
	r.last = max(r.last, last)
	before := w.stored
	for len(w.rows) > 0 && (w.rows[0].skip || w.stored < stored) {
		if w.rows[0].skip {
			w.skipped--
		} else {
			w.stored++
		}
		r.pos.seq = w.rows[0].seq
		w.rows = w.rows[1:]
	}
	r.metrics.stored.Add(float64(w.stored - before))
	for len(w.calls) > 0 && w.calls[0].upTo <= w.stored {
		r.metrics.publish.Observe(time.Since(w.calls[0].at).Seconds())
		w.calls = w.calls[1:]
	}
	r.advance()
}

// advance moves the position in the log up to its end, unless some of what the log holds is still to be skipped: that must be
// found again by the next relay.
func (r *Relay) advance() {
	if len(r.stored) == 0 && r.onWay.skipped == 0 {
		r.pos.stream = max(r.pos.stream, r.last)
	}
}
