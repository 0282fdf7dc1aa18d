package inbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/oncebox/oncebox"
)

// A Handler makes the effect of e in tx, and nothing outside it: an error takes back all of it. After an error the message
// comes again, later and later, unless the error is marked by [Permanent]. A handler must neither commit nor roll tx back, nor
// keep it. It runs again, with the same e, after any crash before the commit, so ids that it makes are to be functions of e:
// see [oncebox.DerivedID]. It is to heed ctx, which ends after [Config.Timeout]. Handlers of several messages run at once.
type Handler func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error

// A GroupHandler makes the effects of several messages in tx, of a key in the order in which they stand. It returns nil if all
// are made, else one error for each event, nil for those whose effect is made:
//
//   - [ErrUnknownType] and errors marked by [Permanent] stand for themselves, and say that tx holds nothing of that message;
//   - any other takes back the whole group. Its messages then run in smaller groups, down to one by one, so that an error that
//     concerns all may be returned for all: slices.Repeat([]error{err}, len(es)).
//
// For a single event any error takes back all of it, so that a handler which cannot tell whose rows it wrote returns an error
// for all, and a permanent one when it is asked about one. All else that [Handler] says holds here too.
type GroupHandler func(ctx context.Context, tx pgx.Tx, es []oncebox.Event) []error

// ErrUnknownType is what a handler returns for a type of event that it does not know. The message is remembered as done and
// counted: producers may add types before their consumers know them.
var ErrUnknownType = errors.New("unknown type of event")

// Permanent marks err as one that no repetition can mend. Class is a word for its kind, such as "no_such_order", by which
// dead letters are counted and found. The handler's effect is taken back and the message becomes a dead letter.
func Permanent(class string, err error) error {
	return &permanentError{class: class, err: err}
}

type permanentError struct {
	class string
	err   error
}

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// Each makes a GroupHandler of a Handler that runs for one event after the other.
func Each(h Handler) GroupHandler {
	return func(ctx context.Context, tx pgx.Tx, es []oncebox.Event) []error {
		var errs []error
		w := &watchedTx{Tx: tx}
		for i, e := range es {
			w.used = false
			err := h(ctx, w, e)
			if err == nil {
				continue
			}
			if errs == nil {
				errs = make([]error, len(es))
			}
			errs[i] = err
			if !standsForItself(err) || w.used {
				// Something of this message may be in tx, so that the group is lost: what comes behind is not run for nothing.
				errs[i] = &remainsError{err}
				return errs
			}
		}
		return errs
	}
}

func standsForItself(err error) bool {
	_, permanent := errors.AsType[*permanentError](err)
	return permanent || errors.Is(err, ErrUnknownType)
}

// A remainsError says that tx may hold something of the message that failed.
type remainsError struct{ err error }

func (e *remainsError) Error() string { return e.err.Error() }
func (e *remainsError) Unwrap() error { return e.err }

// A watchedTx knows whether a handler has used it.
type watchedTx struct {
	pgx.Tx
	used bool
}

func (w *watchedTx) Begin(ctx context.Context) (pgx.Tx, error) {
	w.used = true
	return w.Tx.Begin(ctx)
}

func (w *watchedTx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error) {
	w.used = true
	return w.Tx.CopyFrom(ctx, table, columns, rows)
}

func (w *watchedTx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	w.used = true
	return w.Tx.SendBatch(ctx, b)
}

func (w *watchedTx) LargeObjects() pgx.LargeObjects {
	w.used = true
	return w.Tx.LargeObjects()
}

func (w *watchedTx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	w.used = true
	return w.Tx.Prepare(ctx, name, sql)
}

func (w *watchedTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	w.used = true
	return w.Tx.Exec(ctx, sql, args...)
}

func (w *watchedTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	w.used = true
	return w.Tx.Query(ctx, sql, args...) //nolint:rowserrcheck // the rows are the handler's
}

func (w *watchedTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	w.used = true
	return w.Tx.QueryRow(ctx, sql, args...)
}

func (w *watchedTx) Conn() *pgx.Conn {
	w.used = true
	return w.Tx.Conn()
}

// ByType returns a Handler that hands each event to the handler of its type, and [ErrUnknownType] for any other.
func ByType(handlers map[string]Handler) Handler {
	return func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
		h, ok := handlers[e.Type]
		if !ok {
			return fmt.Errorf("%w: %.64q", ErrUnknownType, e.Type)
		}
		return h(ctx, tx, e)
	}
}

// Typed returns a Handler that reads the event's data as JSON into a T first; see [Read].
func Typed[T any](h func(ctx context.Context, tx pgx.Tx, e oncebox.Event, data T) error) Handler {
	return func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
		data, err := Read[T](e)
		if err != nil {
			return err
		}
		return h(ctx, tx, e, data)
	}
}

// Read reads the event's data as JSON into a T. Fields that T does not have are ignored, so that producers may add some; data
// that are not a T, no UTF-8, or hold a name twice in one object, are a permanent error of class "malformed".
func Read[T any](e oncebox.Event) (data T, err error) {
	if err := unmarshal(e.Data, &data); err != nil {
		return data, Permanent("malformed", fmt.Errorf("data of %s: %w", e.Type, err))
	}
	return data, nil
}
