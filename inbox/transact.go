package inbox

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/internal/crash"
)

// An outageError says that the database was away, whatever was asked of it.
type outageError struct{ err error }

func (e *outageError) Error() string { return "inbox: the database is away: " + e.err.Error() }
func (e *outageError) Unwrap() error { return e.err }

// transact runs f in a READ COMMITTED transaction with a lock_timeout. It takes as long as two handlers at most, also on a
// server that does not answer any more.
func (in *Inbox) transact(ctx context.Context, f func(context.Context, pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*in.cfg.Timeout)
	defer cancel()
	conn, err := in.pool.Acquire(ctx)
	if err != nil {
		return outage(ctx, fmt.Errorf("inbox: begin: %w", err), true)
	}
	tx, err := conn.BeginTx(ctx, in.sql.begin)
	if err = crash.After("inbox-begin", err); err == nil {
		if err = f(ctx, tx); err == nil {
			err = commit(ctx, conn, tx)
		}
	}
	if hung, ok := errors.AsType[*hungError](err); ok {
		go func() { // the handler may still be at the connection
			<-hung.returned
			conn.Release()
		}()
		return err
	}
	if err != nil && tx != nil {
		_ = tx.Rollback(ctx) // what cannot be rolled back is closed by the pool
	}
	// A handler that ended a query of its own by a shorter deadline has broken its connection too.
	closed := conn.Conn().IsClosed() && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled)
	conn.Release()
	return outage(ctx, err, closed)
}

func commit(ctx context.Context, conn *pgxpool.Conn, tx pgx.Tx) error {
	if err := crash.Before("inbox-commit"); err != nil {
		return err
	}
	return crash.CutAfter("inbox-commit", tx.Commit(ctx), conn)
}

// outage marks err if the database was the reason: its connection broke, or it takes no work at this time.
func outage(ctx context.Context, err error, broken bool) error {
	if err == nil || ctx.Err() != nil || errors.Is(err, errTimeout) {
		return err
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		// Shutting down, starting, too many connections, a standby that is not promoted yet.
		broken = broken || strings.HasPrefix(pg.Code, "57P") || strings.HasPrefix(pg.Code, "08") || pg.Code == "53300" || pg.Code == "25006"
	}
	if broken {
		return &outageError{err}
	}
	return err
}

// answered says that an error is the server's word.
func answered(err error) bool {
	_, ok := errors.AsType[*pgconn.PgError](err)
	return ok
}

const (
	minOutagePause = 50 * time.Millisecond
	maxOutagePause = 2 * time.Second
)

// patiently repeats f while the database is away. The message stays in hand meanwhile: to send it back would only bring it
// again, and make an outage look like a message's fault.
func (in *Inbox) patiently(ctx context.Context, f func() error) error {
	end := time.Now().Add(in.cfg.Patience)
	for pause := minOutagePause; ; pause = min(2*pause, maxOutagePause) {
		err := f()
		if _, away := errors.AsType[*outageError](err); !away || time.Now().After(end) {
			return err
		}
		in.metrics.outages.Inc()
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
}
