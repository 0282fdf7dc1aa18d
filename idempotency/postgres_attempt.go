package idempotency

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/internal/crash"
)

// A postgresAttempt is a transaction that holds the advisory lock of its request.
type postgresAttempt struct {
	store   *Postgres
	conn    *pgxpool.Conn
	req     Request
	ctx     context.Context
	expired bool // there is a record whose time is over
}

// expire puts an expired record away.
func (a *postgresAttempt) expire(ctx context.Context) error {
	if !a.expired {
		return nil
	}
	tx := &lentTx{conn: a.conn.Conn()}
	gone, err := tx.Exec(ctx, a.store.expireSQL, a.req.Tenant, a.req.Key[:])
	if err != nil || gone.RowsAffected() == 0 { // a cleaner was first
		return err
	}
	return a.store.cfg.Forget(ctx, tx, []ExpiredKey{{Tenant: a.req.Tenant, Key: a.req.Key[:]}})
}

// undo takes the handler's effects back and begins anew. The lock is given back with them: the primary key alone decides, should
// another attempt come in between.
func (a *postgresAttempt) undo(ctx context.Context) error {
	if _, err := a.conn.Exec(ctx, "ROLLBACK; BEGIN ISOLATION LEVEL READ COMMITTED"); err != nil {
		return err
	}
	return a.expire(ctx)
}

func (a *postgresAttempt) Context() context.Context { return a.ctx }

// Complete inserts the whole record and commits, in one round trip. The insert waits for another attempt's, should there be one,
// and fails if that one commits: behind a failure Postgres does not get to the COMMIT.
func (a *postgresAttempt) Complete(ctx context.Context, r Response) error {
	defer a.conn.Release()
	if status := a.conn.Conn().PgConn().TxStatus(); status == 'I' {
		return errors.New("idempotency: the handler has ended the transaction that it was lent")
	}
	if r.Undo {
		if err := a.undo(ctx); err != nil {
			return fmt.Errorf("idempotency: take a refusal's effects back: %w", err)
		}
	}
	var minted any
	if !a.req.Minted.IsZero() {
		minted = a.req.Minted
	}
	body := r.Body
	if body == nil {
		body = []byte{}
	}
	b := &pgx.Batch{}
	b.Queue(a.store.insertSQL, a.req.Tenant, a.req.Key[:], a.req.Fingerprint[:], a.req.Principal, a.req.Method, a.req.Path,
		r.Status, EncodeHeader(r.Header), body, r.Dropped, minted, a.req.Retention)
	b.Queue("COMMIT")
	err := crash.Before("idempotency-commit")
	if err == nil {
		err = crash.After("idempotency-commit", a.conn.SendBatch(ctx, b).Close())
	}
	if err == nil {
		return nil
	}
	if err = committed(err); !errors.Is(err, ErrOutcomeUnknown) {
		// Nothing was committed. Without this the connection would be closed, which is no more than a loss of time.
		_, _ = a.conn.Exec(ctx, "ROLLBACK")
	}
	return err
}

// committed tells an error after which nothing was committed from one after which nobody knows.
func committed(err error) error {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case ok && pg.Code == "23505" && pg.ConstraintName == "idempotency_keys_pkey":
		return ErrTaken
	case ok && pg.SeverityUnlocalized == "ERROR", !ok && pgconn.SafeToRetry(err): // said by a server that goes on; not sent
		return fmt.Errorf("idempotency: keep an answer: %w", err)
	}
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
}

// Abandon rolls back, which proves that nothing happened in the transaction.
func (a *postgresAttempt) Abandon(ctx context.Context, _ Applied) error {
	defer a.conn.Release()
	if a.conn.Conn().IsClosed() { // the server rolls back by itself
		return nil
	}
	if _, err := a.conn.Exec(ctx, "ROLLBACK"); err != nil {
		return fmt.Errorf("idempotency: roll back: %w", err)
	}
	return nil
}

// A lentTx is a transaction that its user does not end. It is none of pgx's own, whose beginning would be a round trip more than
// that of try; where a savepoint is wanted, one of those is made.
type lentTx struct {
	conn  *pgx.Conn
	outer pgx.Tx // made for the first savepoint
}

var errLent = errors.New("idempotency: the transaction ends with the answer: return an error status to have it rolled back")

func (*lentTx) Commit(context.Context) error   { return errLent }
func (*lentTx) Rollback(context.Context) error { return errLent }

// Begin sets a savepoint.
func (t *lentTx) Begin(ctx context.Context) (pgx.Tx, error) {
	if t.outer == nil {
		outer, err := t.conn.BeginTx(ctx, pgx.TxOptions{BeginQuery: "SAVEPOINT idempotency"})
		if err != nil {
			return nil, err
		}
		t.outer = outer
	}
	return t.outer.Begin(ctx)
}

func (t *lentTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return t.conn.Exec(ctx, sql, args...)
}

func (t *lentTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return t.conn.Query(ctx, sql, args...) //nolint:rowserrcheck // the caller reads the rows
}

func (t *lentTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return t.conn.QueryRow(ctx, sql, args...)
}

func (t *lentTx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	return t.conn.SendBatch(ctx, b)
}

func (t *lentTx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, from pgx.CopyFromSource) (int64, error) {
	return t.conn.CopyFrom(ctx, table, columns, from)
}

func (t *lentTx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	return t.conn.Prepare(ctx, name, sql)
}

// LargeObjects are those of a savepoint only: there a statement can fail before they are asked for.
func (t *lentTx) LargeObjects() pgx.LargeObjects {
	if t.outer == nil {
		panic("idempotency: large objects need a savepoint: call Begin, and ask the transaction that it returns")
	}
	return t.outer.LargeObjects()
}

func (t *lentTx) Conn() *pgx.Conn { return t.conn }
