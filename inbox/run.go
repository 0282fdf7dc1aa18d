package inbox

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/oncebox/oncebox"
)

const (
	// maxSavepoints is below the 64 subtransactions that Postgres keeps in a backend's memory: beyond them every snapshot of
	// the whole server looks on disk.
	maxSavepoints = 50
	// warinessGroups is how many groups run with savepoints at once after one that failed without: what breaks
	// transactions seldom comes alone.
	warinessGroups = 8
	// knownGroups is how many groups look first whether they are done, after one that met such messages.
	knownGroups = 8
)

// A mood is what a lane expects of its next group, by those before.
type mood struct {
	wary  int // in how many groups more a message may break the transaction
	known int // and in how many messages may be done before: such come in rows, as after the loss of a stream
}

// handle brings each delivery to its outcome, those of a key in the order in which they stand. What comes for the first time
// runs as one group; what was handed out before runs alone, after a row that says so, unless it is done.
func (in *Inbox) handle(ctx context.Context, ds []*delivery, h GroupHandler, m *mood) {
	all := ds
	if m.known > 0 || slices.ContainsFunc(ds, func(d *delivery) bool { return d.delivered > 1 }) {
		ds = in.passKnown(ctx, ds)
	}
	defer func() {
		if m.known = max(0, m.known-1); slices.ContainsFunc(all, func(d *delivery) bool { return d.outcome == noop }) {
			m.known = knownGroups
		}
	}()
	for len(ds) > 0 {
		n := slices.IndexFunc(ds, func(d *delivery) bool { return d.delivered > 1 })
		switch n {
		case 0:
			in.alone(ctx, ds[0], h)
			n = 1
		case -1:
			n = len(ds)
			fallthrough
		default:
			in.group(ctx, ds[:n], h, &m.wary)
		}
		ds = ds[n:]
	}
}

// group runs ds in one transaction; if that fails, with savepoints; and singly where that fails too.
func (in *Inbox) group(ctx context.Context, ds []*delivery, h GroupHandler, wary *int) {
	in.metrics.groupSize.Observe(float64(len(ds)))
	if len(ds) == 1 {
		in.single(ctx, ds[0], h)
		return
	}
	if *wary == 0 {
		err := in.effect(ctx, ds, func() runner { return in.straight(h) })
		if err == nil {
			return
		}
		if endsHere(ctx, err) {
			retryAll(ds, err)
			return
		}
		*wary = warinessGroups
	} else {
		*wary--
	}
	for part := range slices.Chunk(ds, maxSavepoints) {
		err := in.effect(ctx, part, func() runner { return in.halving(h) })
		switch {
		case err == nil:
		case endsHere(ctx, err):
			retryAll(part, err)
		default:
			for _, d := range part {
				in.single(ctx, d, h)
			}
		}
	}
}

// single runs one delivery in a transaction of its own.
func (in *Inbox) single(ctx context.Context, d *delivery, h GroupHandler) {
	ds := []*delivery{d}
	err := in.effect(ctx, ds, func() runner { return in.straight(h) })
	if why := permanent(err); why != nil { // its transaction is rolled back, so a crash before the next one runs the handler again
		d.verdict = why
		err = in.effect(ctx, ds, nil)
	}
	if err != nil {
		d.retry(err)
	}
}

func retryAll(ds []*delivery, err error) {
	for _, d := range ds {
		d.retry(err)
	}
}

// endsHere says that to run again, in smaller parts, would only fail again, and take long: each goes back to the broker, and
// comes alone.
func endsHere(ctx context.Context, err error) bool {
	_, hung := errors.AsType[*hungError](err)
	_, away := errors.AsType[*outageError](err)
	return ctx.Err() != nil || hung || away || errors.Is(err, errTimeout)
}

// permanent is the verdict that err passes on a message that ran alone, nil if there is none.
func permanent(err error) *permanentError {
	if why, ok := errors.AsType[*permanentError](err); ok {
		return why
	}
	pg, ok := errors.AsType[*pgconn.PgError](err)
	// A data exception, such as a NUL in a text; a NOT NULL or a CHECK. Unique and foreign keys depend on others' rows.
	if ok && (strings.HasPrefix(pg.Code, "22") || pg.Code == "23502" || pg.Code == "23514") {
		return &permanentError{"bad_data", err}
	}
	return nil
}

// straight runs the handler for all at once, without a savepoint. It fails if anything but whole messages would be left in tx.
func (in *Inbox) straight(h GroupHandler) runner {
	return func(ctx context.Context, tx pgx.Tx, ds []*delivery) error {
		errs, err := in.call(ctx, h, tx, ds)
		if err != nil {
			return err
		}
		for i, d := range ds {
			if errs == nil {
				d.outcome = done
				continue
			}
			err := errs[i]
			if _, left := errors.AsType[*remainsError](err); left {
				return err
			}
			why := permanent(err)
			switch {
			case err == nil:
				d.outcome = done
			case errors.Is(err, ErrUnknownType):
				d.outcome = unknown
			case why == nil || len(ds) == 1 || tx.Conn().PgConn().TxStatus() != 'T':
				return err
			case in.holds(d, why) && slices.ContainsFunc(ds[i+1:], func(l *delivery) bool { return l.key() == d.key() }):
				return err // those that have to wait behind it ran with it
			default:
				d.bury(why)
			}
		}
		return nil
	}
}

// halving runs the handler within a savepoint, and for each half of those that fail together again, down to single messages.
func (in *Inbox) halving(h GroupHandler) runner {
	straight := in.straight(h)
	waits := map[key]*delivery{} // keys of which a message died or failed here, and the others have to wait
	var run runner
	run = func(ctx context.Context, tx pgx.Tx, ds []*delivery) error {
		ds = slices.DeleteFunc(slices.Clone(ds), func(d *delivery) bool {
			first := waits[d.key()]
			switch {
			case first == nil:
			case first.outcome == dead:
				d.bury(behind(d))
			default:
				d.outcome, d.err = waiting, errWaits
			}
			return first != nil
		})
		if len(ds) == 0 {
			return nil
		}
		savepoint, err := tx.Begin(ctx)
		if err != nil {
			return err
		}
		if err = straight(ctx, savepoint, ds); err == nil {
			if err = savepoint.Commit(ctx); err != nil {
				return err
			}
			for _, d := range ds {
				if d.outcome == dead && in.holds(d, d.why) {
					waits[d.key()] = d
				}
			}
			return nil
		}
		if endsHere(ctx, err) {
			return err
		}
		if back := savepoint.Rollback(ctx); back != nil {
			return errors.Join(err, back)
		}
		if len(ds) > 1 {
			half := len(ds) / 2
			if err := run(ctx, tx, ds[:half]); err != nil {
				return err
			}
			return run(ctx, tx, ds[half:])
		}
		d := ds[0]
		if why := permanent(err); why != nil {
			if d.bury(why); in.holds(d, why) {
				waits[d.key()] = d
			}
			return nil
		}
		if d.retry(err); in.cfg.Ordered != nil && d.event.Version > 0 && d.event.Key != "" {
			waits[d.key()] = d
		}
		return nil
	}
	return run
}

// A hungError says that a handler did not return. What it holds is free when it does.
type hungError struct{ returned <-chan struct{} }

func (*hungError) Error() string { return "inbox: the handler did not return in time" }

var errTimeout = errors.New("inbox: the handler took too long")

// call runs h, and makes an error of a panic, of a wrong number of errors, and of a handler that does not return: its
// connection is cut then, under its hands.
func (in *Inbox) call(ctx context.Context, h GroupHandler, tx pgx.Tx, ds []*delivery) ([]error, error) {
	events := make([]oncebox.Event, len(ds))
	for i, d := range ds {
		events[i] = d.event
	}
	ctx, cancel := context.WithTimeout(ctx, in.cfg.Timeout)
	defer cancel()
	wire := tx.Conn().PgConn().Conn()
	var (
		errs     []error
		err      error
		returned = make(chan struct{})
	)
	go func() {
		defer close(returned)
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("inbox: the handler of %s panicked: %v\n%s", events[0].Type, p, debug.Stack())
			}
		}()
		errs = h(ctx, tx, events)
	}()
	select {
	case <-returned:
	case <-ctx.Done():
		select {
		case <-returned:
		case <-time.After(in.cfg.Timeout / 10):
			_ = wire.Close() // if it is closed already, so much the better
			return nil, &hungError{returned}
		}
	}
	switch {
	case err != nil:
	case errs != nil && len(errs) != len(ds):
		err = fmt.Errorf("inbox: the handler returned %d errors for %d events", len(errs), len(ds))
	case errs != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("%w: %w", errTimeout, errors.Join(errs...))
	}
	return errs, err
}
