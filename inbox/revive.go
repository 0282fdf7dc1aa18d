package inbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// DeadOutside returns the dead letters of a consumer whose messages are handled by [Inbox.External] with the same o. A retry is an
// attempt as a delivery's: the intent, then the other side, then the answer together with the letter's end. But it looks for the
// effect first, by o.Find, since a letter may have had it; and where that finds nothing, it asks for the effect unless the letter
// says that nobody knows, by its class "crashed" or [ClassOutcomeUnknown]: such a one stays dead. While one process retries a
// letter, others get [ErrNotDead]; of a process that dies meanwhile the letter is free after the lease.
func (in *Inbox) DeadOutside(o Outside) (*DeadLetters, error) {
	x, err := in.external(o)
	if err != nil {
		return nil, err
	}
	d := in.Dead(nil)
	d.outside, d.retry = x, d.retryOutside
	return d, nil
}

func (d *DeadLetters) retryOutside(ctx context.Context, n int64) error {
	x := d.outside
	letter, l, i, err := d.claim(ctx, n)
	if err != nil {
		return err
	}
	answer, err := []byte(nil), i.refused
	if err == nil && i.ask {
		answer, err = x.ask(ctx, l, i, func(ctx context.Context) ([]byte, error) { return x.findOrCall(ctx, l, letter, i) })
	}
	if known := !errors.Is(err, ErrUnknownType); err == nil || !known {
		err = d.end(ctx, n, l, i, "done", func(ctx context.Context, tx pgx.Tx) error {
			if known {
				if err := x.Settle(ctx, tx, l.event, answer); err != nil {
					return err
				}
			}
			return d.resolved(ctx, tx, n, "retried")
		})
	}
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(d.in.cfg.Patience, d.in.cfg.Timeout))
	defer cancel()
	return errors.Join(err, d.end(ctx, n, l, i, "dead", func(ctx context.Context, tx pgx.Tx) error {
		if why := permanent(err); why != nil {
			return d.stays(ctx, tx, n, why)
		}
		return nil
	}))
}

// end is external's for a letter's retry. It locks the letter before the inbox row, in the order of claim and rest.
func (d *DeadLetters) end(ctx context.Context, n int64, l *delivery, i intent, state string, f func(context.Context, pgx.Tx) error) error {
	return d.in.patiently(ctx, func() error {
		return d.in.transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, d.lock, d.in.cfg.Consumer, n); err != nil {
				return err
			}
			if err := d.outside.move(ctx, tx, l, i, state); err != nil {
				return err
			}
			return f(ctx, tx)
		})
	})
}

// claim commits the intent of a retry, together with what Prepare writes.
func (d *DeadLetters) claim(ctx context.Context, n int64) (letter Letter, l *delivery, i intent, err error) {
	x := d.outside
	err = d.in.transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		found, err := d.take(ctx, tx, n)
		if err != nil {
			return err
		}
		letter, l = found, d.in.read(found.message())
		if l.verdict != nil {
			return l.verdict
		}
		crashes := 0
		if letter.unknown() {
			crashes = d.in.cfg.MaxCrashes
		}
		i = intent{owner: d.in.attemptID(), until: time.Now().Add(x.Lease), ask: true}
		err = tx.QueryRow(ctx, x.sql.claimDead, d.in.cfg.Consumer, letter.Source, letter.ID, letter.TenantID, l.event.Seq, l.digest,
			i.owner, x.Lease, crashes).Scan(&i.crashes)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrNotDead
		}
		if err != nil || x.Prepare == nil {
			return err
		}
		return x.prepare(ctx, tx, l, &i)
	})
	return letter, l, i, err
}

// unknown says that the effect may have been made, and that nobody may ask for it.
func (l Letter) unknown() bool { return l.Class == classCrashed || l.Class == ClassOutcomeUnknown }

// findOrCall goes by the intent's crashes, not by the letter's class, which a retry that failed otherwise has changed since.
func (x *external) findOrCall(ctx context.Context, l *delivery, letter Letter, i intent) (answer []byte, err error) {
	answer, found, err := x.Find(ctx, l.event)
	switch {
	case err != nil || found:
		return answer, err
	case i.crashes >= x.in.cfg.MaxCrashes:
		class := letter.Class
		if !letter.unknown() {
			class = ClassOutcomeUnknown
		}
		return nil, Permanent(class, fmt.Errorf("inbox: it is still not found, %s after it died", time.Since(letter.FirstSeen).Round(time.Second)))
	}
	return x.call(ctx, l)
}

// rest is for a letter that is to be dropped: it fails with [ErrNotDead] if it is being retried, and ends a retry that died.
func (d *DeadLetters) rest(ctx context.Context, tx pgx.Tx, n int64) error {
	letter, err := d.take(ctx, tx, n)
	if errors.Is(err, ErrHasEffect) || errors.Is(err, ErrBehind) {
		return nil
	}
	if err != nil {
		return err
	}
	var retried bool
	err = tx.QueryRow(ctx, d.outside.sql.rest, d.in.cfg.Consumer, letter.Source, letter.ID).Scan(&retried)
	if err == nil && retried {
		err = ErrNotDead
	}
	return err
}
