package inbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
)

// An intent is an attempt of an outside call, as its inbox row has it.
type intent struct {
	owner   uuid.UUID     // the process and, in its second half, the attempt: two of one process are two
	claimed bool          // the row is ours
	crashes int           // attempts before this one that began and never ended
	since   time.Duration // how long ago the first one began
	until   time.Time     // by this process's clock: when the lease is over, at the latest
	ask     bool          // Prepare's word
	refused error         // Prepare's too: permanent, or ErrUnknownType
}

type intentStatements struct{ claim, claimDead, rest, release, end string }

func newIntentStatements(schema string) intentStatements {
	// What a process leaves open and comes back to has not crashed: it could not write, in an outage, that it had ended.
	const crashes = `i.crashes + CASE WHEN i.state = 'intent' AND substring(uuid_send(i.owner) FOR 8) <> substring(uuid_send($7) FOR 8) THEN 1 ELSE 0 END`
	table, letters := pgx.Identifier{schema, "inbox"}.Sanitize(), pgx.Identifier{schema, "dead_letter"}.Sanitize()
	return intentStatements{
		// The clock is the database's own: one for all processes. A row in state 'intent' whose lease is over is taken over, unless it
		// is of a dead letter's retry that died: that is for the next retry, which looks before it asks. Unless $9, the attempt of one that has crashed does not begin: it has no owner, and no lease.
		claim: `INSERT INTO ` + table + ` AS i (consumer, source, id, tenant_id, seq, digest, state, owner, lease_until)
			VALUES ($1, $2, $3, $4, $5, $6, 'intent', $7, clock_timestamp() + $8)
			ON CONFLICT (consumer, source, id) DO UPDATE SET state = 'intent', crashes = ` + crashes + `,
				owner = CASE WHEN $9 OR ` + crashes + ` = 0 THEN EXCLUDED.owner END,
				lease_until = CASE WHEN $9 OR ` + crashes + ` = 0 THEN EXCLUDED.lease_until ELSE clock_timestamp() END,
				at = CASE WHEN i.state = 'intent' THEN i.at ELSE EXCLUDED.at END
			WHERE i.digest = EXCLUDED.digest AND (i.state = 'started' OR i.state = 'intent' AND i.lease_until <= clock_timestamp()
				AND NOT EXISTS (SELECT FROM ` + letters + ` AS l WHERE l.consumer = $1 AND l.source = $2 AND l.id = $3 AND l.state = 'dead'))
			RETURNING crashes, clock_timestamp() - at`,
		// The same for the retry of a dead letter, whose message no broker brings any more. The age of what may have been asked for
		// is not known; $9 crashes say that it must not be asked for.
		claimDead: `INSERT INTO ` + table + ` AS i (consumer, source, id, tenant_id, seq, digest, state, owner, lease_until, crashes)
			VALUES ($1, $2, $3, $4, $5, $6, 'intent', $7, clock_timestamp() + $8, $9)
			ON CONFLICT (consumer, source, id) DO UPDATE SET state = 'intent', owner = EXCLUDED.owner, lease_until = EXCLUDED.lease_until,
				crashes = GREATEST(i.crashes, EXCLUDED.crashes)
			WHERE i.state = 'dead' OR i.state = 'intent' AND i.lease_until <= clock_timestamp()
			RETURNING crashes`,
		rest: `WITH r AS (UPDATE ` + table + ` SET state = 'dead', owner = NULL, lease_until = NULL
				WHERE consumer = $1 AND source = $2 AND id = $3 AND state = 'intent' AND lease_until <= clock_timestamp())
			SELECT EXISTS (SELECT FROM ` + table + ` WHERE consumer = $1 AND source = $2 AND id = $3 AND state = 'intent' AND lease_until > clock_timestamp())`,
		release: `UPDATE ` + table + ` SET owner = NULL, lease_until = clock_timestamp(), crashes = crashes + $5
			WHERE consumer = $1 AND source = $2 AND id = $3 AND state = 'intent' AND owner = $4`,
		end: `UPDATE ` + table + ` SET state = $5, owner = NULL, lease_until = NULL, at = clock_timestamp()
			WHERE consumer = $1 AND source = $2 AND id = $3 AND state = 'intent' AND owner = $4`,
	}
}

func (in *Inbox) attemptID() uuid.UUID {
	id := uuid.New()
	copy(id[:8], in.me[:])
	return id
}

// begin commits the intent, together with what Prepare writes. Unless suspect is true, the attempt of one that has crashed does
// not begin.
func (x *external) begin(ctx context.Context, d *delivery, suspect bool) (i intent, err error) {
	err = x.in.patiently(ctx, func() error {
		i = intent{owner: x.in.attemptID(), until: time.Now().Add(x.Lease), ask: true}
		return x.in.transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
			err := tx.QueryRow(ctx, x.sql.claim, x.in.cfg.Consumer, d.event.Source, d.id, d.event.TenantID, d.event.Seq, d.digest,
				i.owner, x.Lease, suspect).Scan(&i.crashes, &i.since)
			if errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			i.claimed = err == nil
			if err != nil || x.Prepare == nil || i.crashes > 0 && !suspect {
				return err
			}
			return x.prepare(ctx, tx, d, &i)
		})
	})
	if err != nil {
		return i, fmt.Errorf("inbox: write the intent of %s: %w", d.id, err)
	}
	return i, nil
}

// prepare runs Prepare in a savepoint, so that the intent of one that it refuses for good is written all the same.
func (x *external) prepare(ctx context.Context, tx pgx.Tx, d *delivery, i *intent) error {
	savepoint, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	errs, err := x.in.call(ctx, func(ctx context.Context, tx pgx.Tx, es []oncebox.Event) []error {
		ask, err := x.Prepare(ctx, tx, es[0])
		i.ask = ask
		return []error{err}
	}, savepoint, []*delivery{d})
	if err == nil {
		err = errs[0]
	}
	if err == nil {
		return savepoint.Commit(ctx)
	}
	if permanent(err) == nil && !errors.Is(err, ErrUnknownType) {
		return err
	}
	i.refused = err
	return savepoint.Rollback(ctx)
}

// end moves the row on and runs f in one transaction, if the row is still ours.
func (x *external) end(ctx context.Context, d *delivery, i intent, state string, f func(context.Context, pgx.Tx) error) error {
	return x.in.patiently(ctx, func() error {
		return x.in.transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
			if err := x.move(ctx, tx, d, i, state); err != nil || f == nil {
				return err
			}
			return f(ctx, tx)
		})
	})
}

func (x *external) move(ctx context.Context, tx pgx.Tx, d *delivery, i intent, state string) error {
	tag, err := tx.Exec(ctx, x.sql.end, x.in.cfg.Consumer, d.event.Source, d.id, i.owner, state)
	if err == nil && tag.RowsAffected() == 0 {
		err = fmt.Errorf("inbox: the call for %s took longer than its lease, and is another's now", d.id)
	}
	return err
}

// release ends an attempt that failed, so that the next one need not wait for the lease. One that hangs is as good as dead, and
// counted as such.
func (x *external) release(ctx context.Context, d *delivery, i intent) {
	crashed := 0
	if _, hung := errors.AsType[*hungError](d.err); hung {
		crashed = 1
	}
	err := x.in.patiently(ctx, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(x.in.cfg.Patience, x.in.cfg.Timeout))
		defer cancel()
		_, err := x.in.pool.Exec(ctx, x.sql.release, x.in.cfg.Consumer, d.event.Source, d.id, i.owner, crashed)
		return outage(ctx, err, !answered(err))
	})
	if err != nil {
		d.err = errors.Join(d.err, fmt.Errorf("inbox: release %s: %w", d.id, err))
	}
}
