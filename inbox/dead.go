package inbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
)

// A Letter is a dead letter.
type Letter struct {
	// N names the letter. Later ones have greater numbers.
	N        int64     `json:"n"`
	Source   string    `json:"source"`
	ID       uuid.UUID `json:"id"`
	TenantID string    `json:"tenant_id"`
	// MessageID is the id as it was sent; ID is made from it where it is no UUID.
	MessageID string `json:"message_id"`
	Topic     string `json:"topic"`
	Key       string `json:"key"`
	Version   int64  `json:"version"`
	Seq       int64  `json:"seq"`
	Class     string `json:"class"`
	Reason    string `json:"reason"`
	// Attempts are the deliveries before it died, and retries and returns since.
	Attempts int    `json:"attempts"`
	State    string `json:"state" enum:"dead,retried,dropped"`
	// HoldsKey: as long as it is dead, later messages of its key become letters of class "behind".
	HoldsKey  bool              `json:"holds_key"`
	Headers   map[string]string `json:"headers"`
	Payload   []byte            `json:"payload"`
	FirstSeen time.Time         `json:"first_seen"`
	LastSeen  time.Time         `json:"last_seen"`
}

// A Filter selects dead letters. Empty fields select all.
type Filter struct {
	TenantID, Source, Topic, Key, Class string
	// State is "dead", "retried", "dropped", or "" for all.
	State string
	// Before selects letters that died before then.
	Before time.Time
	// After selects letters with greater numbers, for the next page.
	After int64
}

var (
	// ErrNotDead says that there is no such letter, or that it was retried or dropped already, perhaps this very moment.
	ErrNotDead = errors.New("inbox: no such dead letter")
	// ErrHasEffect says that a letter cannot be retried, since another message under its id has had its effect.
	ErrHasEffect = errors.New("inbox: another message under the letter's id was handled")
	// ErrBehind says that an older letter of the same key has to be retried or dropped first.
	ErrBehind = errors.New("inbox: an older dead letter holds the key")
)

// DeadLetters are a consumer's messages that could not be handled. Its methods are safe for concurrent use, by any number of
// processes: a letter's row is the state of what is done with it, and the lock; of [Inbox.DeadOutside] the lock is a lease.
type DeadLetters struct {
	in      *Inbox
	retry   func(ctx context.Context, n int64) error
	outside *external // nil unless the effects are outside the database
	list    string
	lock    string
	blocked string
	failed  string
	resolve string
}

// Dead returns the consumer's dead letters. Retries run h, which is to be the consumer's own handler. Of a consumer whose messages
// are handled by [Inbox.External] the letters are those of [Inbox.DeadOutside].
func (in *Inbox) Dead(h GroupHandler) *DeadLetters {
	letter := pgx.Identifier{in.cfg.Schema, "dead_letter"}.Sanitize()
	inbox := pgx.Identifier{in.cfg.Schema, "inbox"}.Sanitize()
	const columns = `n, source, id, tenant_id, message_id, topic, key, version, seq, class, reason, attempts, state, holds_key, headers, payload, first_seen, last_seen`
	d := &DeadLetters{in: in,
		list: `SELECT ` + columns + ` FROM ` + letter + `
			WHERE consumer = $1 AND n > $2 AND ($3 = '' OR tenant_id = $3) AND ($4 = '' OR source = $4) AND ($5 = '' OR topic = $5)
				AND ($6 = '' OR key = $6) AND ($7 = '' OR class = $7) AND ($8 = '' OR state = $8) AND ($9::timestamptz IS NULL OR first_seen < $9)
			ORDER BY n LIMIT $10`,
		lock: `SELECT ` + columns + ` FROM ` + letter + ` WHERE consumer = $1 AND n = $2 AND state = 'dead' FOR UPDATE`,
		blocked: `SELECT EXISTS (SELECT FROM ` + letter + ` WHERE consumer = $1 AND source = $2 AND key = $3 AND n < $4
			AND holds_key AND state = 'dead')`,
		failed: `UPDATE ` + letter + ` SET class = $3, reason = $4, attempts = attempts + 1, last_seen = clock_timestamp()
			WHERE consumer = $1 AND n = $2`,
		resolve: `WITH l AS (UPDATE ` + letter + ` SET state = $3, last_seen = clock_timestamp(),
				attempts = attempts + CASE WHEN $3 = 'retried' THEN 1 ELSE 0 END
				WHERE consumer = $1 AND n = $2 AND state = 'dead' RETURNING source, id, key, version, class),
			i AS (UPDATE ` + inbox + ` AS i SET state = 'done', at = clock_timestamp() FROM l
				WHERE $3 = 'retried' AND i.consumer = $1 AND i.source = l.source AND i.id = l.id)
			SELECT source, key, version, class FROM l`,
	}
	d.retry = func(ctx context.Context, n int64) error { return d.retryInside(ctx, n, h) }
	return d
}

// List returns letters in the order of their numbers, limit at most.
func (d *DeadLetters) List(ctx context.Context, f Filter, limit int) ([]Letter, error) {
	var before *time.Time
	if !f.Before.IsZero() {
		before = &f.Before
	}
	rows, err := d.in.pool.Query(ctx, d.list, d.in.cfg.Consumer, f.After, f.TenantID, f.Source, f.Topic, f.Key, f.Class, f.State, before, limit)
	if err != nil {
		return nil, fmt.Errorf("inbox: list dead letters: %w", err)
	}
	letters, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Letter])
	if err != nil {
		return nil, fmt.Errorf("inbox: list dead letters: %w", err)
	}
	return letters, nil
}

// Retry runs the handler for letter n as if its message had come again, and marks the letter retried, in one transaction;
// [Inbox.DeadOutside] says how it is done there. An error of the handler is returned and leaves the letter dead: with the new class
// and reason if it is permanent. Others: [ErrNotDead], [ErrHasEffect], [ErrBehind], [oncebox.ErrInvalid] for a message that is no event.
func (d *DeadLetters) Retry(ctx context.Context, n int64) error {
	if err := d.retry(ctx, n); err != nil {
		return fmt.Errorf("retry dead letter %d: %w", n, err)
	}
	if d.in.cfg.Committed != nil {
		d.in.cfg.Committed()
	}
	return nil
}

func (d *DeadLetters) retryInside(ctx context.Context, n int64, h GroupHandler) error {
	if h == nil {
		return errors.New("inbox: Dead was given no handler")
	}
	var failed error
	err := d.in.transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		failed = nil
		l, err := d.take(ctx, tx, n)
		if err != nil {
			return err
		}
		m := l.message()
		e, err := oncebox.Decode(m)
		if err != nil {
			return err
		}
		savepoint, err := tx.Begin(ctx)
		if err != nil {
			return err
		}
		errs, err := d.in.call(ctx, h, savepoint, []*delivery{{event: e, id: l.ID, raw: m}})
		if err == nil && errs != nil && !errors.Is(errs[0], ErrUnknownType) {
			err = errs[0]
		}
		if err == nil {
			if err := savepoint.Commit(ctx); err != nil {
				return err
			}
			return d.resolved(ctx, tx, n, "retried")
		}
		why := permanent(err)
		if why == nil {
			return err
		}
		failed = err
		if err := savepoint.Rollback(ctx); err != nil {
			return err
		}
		return d.stays(ctx, tx, n, why)
	})
	return errors.Join(err, failed)
}

// message is the letter's, as it came.
func (l Letter) message() *message.Message {
	m := message.NewMessage(l.MessageID, l.Payload)
	maps.Copy(m.Metadata, l.Headers)
	return m
}

// stays notes why a letter could not be retried.
func (d *DeadLetters) stays(ctx context.Context, tx pgx.Tx, n int64, why *permanentError) error {
	_, err := tx.Exec(ctx, d.failed, d.in.cfg.Consumer, n, why.class, printableText(why.Error()))
	return err
}

// take locks the letter's row, and returns it if it may run.
func (d *DeadLetters) take(ctx context.Context, tx pgx.Tx, n int64) (Letter, error) {
	rows, err := tx.Query(ctx, d.lock, d.in.cfg.Consumer, n)
	if err != nil {
		return Letter{}, err
	}
	l, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Letter])
	if errors.Is(err, pgx.ErrNoRows) {
		return Letter{}, ErrNotDead
	}
	if err != nil {
		return Letter{}, err
	}
	if l.Class == classConflict {
		return Letter{}, ErrHasEffect
	}
	var blocked bool
	if err := tx.QueryRow(ctx, d.blocked, d.in.cfg.Consumer, l.Source, l.Key, n).Scan(&blocked); err != nil {
		return Letter{}, err
	}
	if blocked {
		return Letter{}, ErrBehind
	}
	return l, nil
}

// resolved marks a letter, and moves the position of its key where order is kept and it is next.
func (d *DeadLetters) resolved(ctx context.Context, tx pgx.Tx, n int64, state string) error {
	var (
		id      key
		version int64
		class   string
	)
	err := tx.QueryRow(ctx, d.resolve, d.in.cfg.Consumer, n, state).Scan(&id.source, &id.key, &version, &class)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrNotDead
	}
	if err != nil || d.in.cfg.Ordered == nil || version == 0 || id.key == "" || class == classConflict {
		return err
	}
	at, err := d.in.position(ctx, tx, id)
	if err != nil || version != at+1 {
		return err
	}
	b := &pgx.Batch{}
	d.in.queueMoves(b, map[key]int64{id: version})
	return tx.SendBatch(ctx, b).Close()
}

// A Report says what became of the letters of a RetryAll.
type Report struct {
	Retried, Failed int
	// Errors holds the errors of the first ten that failed.
	Errors []error
}

// RetryAll retries the dead letters that f selects, in the order of their numbers, each in a transaction of its own. Letters
// that others retry or drop meanwhile are left out, and so are those that can never be retried. It returns early only when ctx
// ends or the database is away.
func (d *DeadLetters) RetryAll(ctx context.Context, f Filter) (Report, error) {
	var r Report
	f.State = "dead"
	const page = 100
	for {
		letters, err := d.List(ctx, f, page)
		if err != nil {
			return r, err
		}
		for _, l := range letters {
			f.After = l.N
			err := d.Retry(ctx, l.N)
			_, away := errors.AsType[*outageError](err)
			switch {
			case err == nil:
				r.Retried++
			case errors.Is(err, ErrNotDead) || errors.Is(err, ErrHasEffect):
			case away || ctx.Err() != nil:
				return r, err
			default:
				r.Failed++
				if len(r.Errors) < 10 {
					r.Errors = append(r.Errors, err)
				}
			}
		}
		if len(letters) < page {
			return r, nil
		}
	}
}

// Drop gives letter n up: it has no effect, ever. It returns [ErrNotDead] if it was retried or dropped already.
func (d *DeadLetters) Drop(ctx context.Context, n int64) error {
	err := d.in.transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if d.outside != nil {
			if err := d.rest(ctx, tx, n); err != nil {
				return err
			}
		}
		return d.resolved(ctx, tx, n, "dropped")
	})
	if err != nil {
		return fmt.Errorf("drop dead letter %d: %w", n, err)
	}
	return nil
}
