package inbox

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// A runner runs handlers for deliveries in tx and sets what becomes of each. After an error the transaction is lost.
type runner func(ctx context.Context, tx pgx.Tx, ds []*delivery) error

// errDone ends a transaction in which nothing was to be done.
var errDone = errors.New("inbox: done before")

// effect is the transaction of a group: all inbox rows, then the effects of those that are new, then what is left to note of
// the others. Without an error each delivery has its outcome. It is tried again while the database is away.
func (in *Inbox) effect(ctx context.Context, ds []*delivery, run func() runner) error {
	err := in.patiently(ctx, func() error {
		for _, d := range ds {
			d.result = result{}
		}
		return in.transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
			fresh, keys, err := in.remember(ctx, tx, ds)
			if err != nil {
				return err
			}
			if len(fresh) > 0 {
				if err := run()(ctx, tx, fresh); err != nil {
					return err
				}
			}
			return in.note(ctx, tx, keys, ds)
		})
	})
	if err != nil && !errors.Is(err, errDone) {
		return err
	}
	for _, d := range ds {
		if d.outcome == done && in.cfg.Committed != nil {
			in.cfg.Committed()
			break
		}
	}
	return nil
}

// remember writes the inbox rows, in the order of their ids and before anything else, and returns the deliveries that are to be
// handled, in the order in which they came.
func (in *Inbox) remember(ctx context.Context, tx pgx.Tx, ds []*delivery) ([]*delivery, *keys, error) {
	first := make(map[row]*delivery, len(ds))
	rows := make([]*delivery, 0, len(ds))
	for _, d := range ds {
		if _, twice := first[d.row()]; !twice {
			first[d.row()] = d
			rows = append(rows, d)
		}
	}
	slices.SortFunc(rows, func(a, b *delivery) int {
		return cmp.Or(cmp.Compare(a.event.Source, b.event.Source), bytes.Compare(a.id[:], b.id[:]))
	})
	var (
		n       = len(rows)
		sources = make([]string, n)
		ids     = make([][16]byte, n) // as pgx encodes it without a detour by text
		tenants = make([]string, n)
		seqs    = make([]int64, n)
		digests = make([]int64, n)
		states  = make([]string, n)
	)
	for i, d := range rows {
		sources[i], ids[i], tenants[i], seqs[i], digests[i], states[i] = d.event.Source, d.id, d.event.TenantID, d.event.Seq, d.digest, "done"
		if d.verdict != nil {
			states[i] = "dead"
		}
	}
	b := &pgx.Batch{}
	b.Queue(in.sql.insert, in.cfg.Consumer, sources, ids, tenants, seqs, digests, states).Query(func(rows pgx.Rows) error {
		var (
			r    row
			held *time.Time
		)
		_, err := pgx.ForEachRow(rows, []any{&r.source, &r.id, &held}, func() error {
			d := first[r]
			d.fresh, d.stored = true, d.digest
			if held != nil {
				d.held = *held
			}
			return nil
		})
		return err
	})
	keys := in.queueKeys(b, ds)
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, nil, fmt.Errorf("inbox: remember %d messages: %w", n, err)
	}
	if slices.ContainsFunc(rows, func(d *delivery) bool { return !d.fresh }) {
		if err := in.look(ctx, tx, first, sources, ids); err != nil {
			return nil, nil, err
		}
	}
	var fresh []*delivery
	for _, d := range ds {
		switch f := first[d.row()]; {
		case d != f && d.digest != f.stored:
			d.bury(d.conflict())
		case d != f: // twice in one group
			d.outcome = noop
		case !d.fresh: // look has told
		case d.verdict != nil:
			d.bury(d.verdict)
		default:
			fresh = append(fresh, d)
		}
	}
	return keys.admit(fresh), keys, nil
}

// passKnown tells of messages that they were done before, and returns the others. It is a shortcut, of one statement that writes and
// locks nothing: what it does not find, or does not come to within the time that a lock may take, goes the whole way. A row that is
// done, or dead, was committed with all that belongs to it, and is no more than deleted one day.
func (in *Inbox) passKnown(ctx context.Context, ds []*delivery) []*delivery {
	ctx, cancel := context.WithTimeout(ctx, in.cfg.LockTimeout)
	defer cancel()
	sources, ids := make([]string, len(ds)), make([][16]byte, len(ds))
	for i, d := range ds {
		sources[i], ids[i] = d.event.Source, d.id
	}
	all, err := in.lookUp(ctx, in.pool, sources, ids)
	if err != nil {
		return ds // the whole way says why
	}
	over := make(map[row]int64, len(all))
	for _, k := range all {
		if k.State == "done" || k.State == "dead" {
			over[row{k.Source, k.ID}] = k.Digest
		}
	}
	rest := make([]*delivery, 0, len(ds)-len(over))
	for _, d := range ds {
		if digest, is := over[d.row()]; is && digest == d.digest {
			d.outcome = noop
			continue
		}
		rest = append(rest, d)
	}
	return rest
}

// A known message is one that has a row.
type known struct {
	Source string
	ID     uuid.UUID
	Digest int64
	State  string
}

func (in *Inbox) lookUp(ctx context.Context, db interface {
	Query(context.Context, string, ...any) (pgx.Rows, error)
}, sources []string, ids [][16]byte) ([]known, error) {
	rows, err := db.Query(ctx, in.sql.look, in.cfg.Consumer, sources, ids)
	if err == nil {
		var all []known
		if all, err = pgx.CollectRows(rows, pgx.RowToStructByPos[known]); err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("inbox: look messages up: %w", err)
}

// look tells what the rows are that were there before.
func (in *Inbox) look(ctx context.Context, tx pgx.Tx, first map[row]*delivery, sources []string, ids [][16]byte) error {
	all, err := in.lookUp(ctx, tx, sources, ids)
	if err != nil {
		return err
	}
	for _, k := range all {
		d := first[row{k.Source, k.ID}]
		d.stored = k.Digest
		switch {
		case d.fresh:
		case d.digest != k.Digest:
			d.bury(d.conflict())
		case k.State == "intent":
			d.retry(errIntent)
		default:
			d.outcome = noop
		}
	}
	for r, d := range first {
		if !d.fresh && d.outcome == open { // pruned this very moment
			return fmt.Errorf("inbox: the row of %s is gone", r.id)
		}
	}
	return nil
}

// note writes what is not as the first statement has it: dead letters, messages that come again, and how far keys have come.
func (in *Inbox) note(ctx context.Context, tx pgx.Tx, k *keys, ds []*delivery) error {
	var (
		sources, states []string
		ids             []uuid.UUID
		held            []bool
		letters         []*delivery
		changed         bool
	)
	for _, d := range ds {
		changed = changed || d.fresh || d.outcome == dead
		if d.outcome == dead {
			letters = append(letters, d)
		}
		if !d.fresh || d.outcome == done || d.outcome == unknown || d.verdict != nil {
			continue
		}
		state := "started"
		if d.outcome == dead {
			state = "dead"
		}
		sources, ids, states, held = append(sources, d.event.Source), append(ids, d.id), append(states, state), append(held, d.outcome == waiting)
	}
	if !changed {
		return errDone
	}
	b := &pgx.Batch{}
	if len(ids) > 0 {
		b.Queue(in.sql.set, in.cfg.Consumer, sources, ids, states, held)
	}
	if err := in.queueLetters(b, letters); err != nil {
		return err
	}
	in.queueAdvance(b, k, ds)
	if b.Len() > 0 {
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return fmt.Errorf("inbox: note what became of %d messages: %w", len(ds), err)
		}
	}
	for _, d := range ds {
		if d.outcome == waiting {
			d.outcome = again
		}
	}
	return nil
}
