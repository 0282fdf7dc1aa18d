package outbox

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// openSink begins a chain of writes behind the end of the log and reads back what stands behind the saved position. Where the
// log lost its end, it goes back to the last tick that the log still holds.
func (r *Relay) openSink(ctx context.Context) error {
	r.onWay = onWay{chunk: min(firstChunk, r.cfg.Page)}
	r.last, r.stored = 0, nil
	last, created, err := r.open(ctx)
	if err != nil {
		return err
	}
	if err := r.cursor.takeOver(ctx, r.pos); err != nil {
		return err
	}
	if r.lost(last, created) {
		// Whoever has a log in more than one place may have asked one that is behind.
		if !r.idle(ctx, r.cfg.Confirm) {
			return context.Cause(ctx)
		}
		again, createdAgain, err := r.open(ctx)
		if err != nil {
			return err
		}
		if again != last || !createdAgain.Equal(created) {
			return fmt.Errorf("the log ended at %d, and then at %d: it is not at rest", last, again)
		}
		if err := r.rewind(ctx, last, created); err != nil {
			return err
		}
	}
	r.created, r.last, r.opened, r.openedAt, r.stored = created, last, r.cursor.newest, r.pos, make(map[string]int)
	if err := r.readBack(ctx); err != nil {
		return fmt.Errorf("read the sink back: %w", err)
	}
	r.advance()
	return r.save(ctx)
}

// readBack notes what stands in the log behind the saved position. That may be much, and the lease is renewed meanwhile.
func (r *Relay) readBack(ctx context.Context) error {
	const window = 128
	for from := r.pos.stream; from < r.last; from += min(window, r.last-from) {
		err := r.sink.ReadBack(ctx, from, min(from+window, r.last), func(id string) { r.stored[id]++ })
		if err == nil {
			err = r.saveIfDue(ctx)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *Relay) open(ctx context.Context) (uint64, time.Time, error) {
	last, created, err := r.sink.Open(ctx, r.pos.stream)
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("open the sink: %w", err)
	}
	return last, created.Truncate(time.Microsecond), nil // as the database keeps it
}

// lost says whether a log that ends at last is not, or not all of, the one that the position is of.
func (r *Relay) lost(last uint64, created time.Time) bool {
	return last < r.pos.stream || r.remade(created)
}

func (r *Relay) remade(created time.Time) bool {
	return !r.created.IsZero() && !created.Equal(r.created)
}

// rewind goes back to what the log holds for certain.
func (r *Relay) rewind(ctx context.Context, last uint64, created time.Time) error {
	keep, remade := last, r.remade(created)
	if remade {
		keep = 0
	}
	expected := r.pos.stream
	if err := r.parkAgain(ctx, keep); err != nil {
		return err
	}
	pos, err := r.cursor.rewind(ctx, keep)
	if err != nil {
		return err
	}
	r.pos = pos
	r.log.Error("relay: the log lost events, sending them again", "remade", remade, "last", last, "expected", expected,
		"from_round", r.pos.n)
	return nil
}

// forgetStored ends the time in which ids are skipped: every row is past that was there when the log was read back. What is
// left is the log's alone: the database lost its end, or somebody else writes to the log.
func (r *Relay) forgetStored() {
	ids := slices.Sorted(maps.Keys(r.stored))
	r.log.Warn("relay: the log holds events that the outbox does not", "events", len(ids), "first", ids[:min(len(ids), 10)])
	r.stored = nil
	r.advance()
}

// checkTail looks whether the log still holds what was stored: an idle relay would learn of a loss from its next event only. A
// log that cannot be asked is no loss.
func (r *Relay) checkTail(ctx context.Context) error {
	last, created, err := r.sink.Last(ctx, r.pos.stream)
	if err != nil {
		r.log.Debug("relay: cannot look at the log", "error", err)
		return nil
	}
	if created = created.Truncate(time.Microsecond); r.lost(last, created) {
		return fmt.Errorf("the log ends at %d, made at %s; it was at %d, made at %s", last, created, r.pos.stream, r.created)
	}
	return nil
}
