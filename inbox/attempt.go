package inbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox/internal/crash"
)

// alone runs a delivery that was handed out before. A row says so before the handler starts, and that it ended is noted behind
// it, so that only attempts which began and never ended are counted: a message that killed its process, not one that
// failed, nor one that was in hand beside the killer.
func (in *Inbox) alone(ctx context.Context, d *delivery, h GroupHandler) {
	in.suspects.RLock()
	started, crashes, err := in.start(ctx, d, false)
	if err == nil && crashes > 0 {
		in.suspects.RUnlock()
		in.suspects.Lock()
		defer in.suspects.Unlock()
		started, crashes, err = in.start(ctx, d, true)
	} else {
		defer in.suspects.RUnlock()
	}
	if err != nil {
		d.retry(err)
		return
	}
	if crashes >= in.cfg.MaxCrashes && d.verdict == nil {
		d.verdict = &permanentError{classCrashed, fmt.Errorf("inbox: %d attempts began and never ended", crashes)}
	}
	in.single(ctx, d, h)
	if !started || d.outcome != again {
		return
	}
	end := in.sql.end
	if _, hung := errors.AsType[*hungError](d.err); hung {
		end = in.sql.hung
	}
	err = in.patiently(ctx, func() error {
		ctx, cancel := context.WithTimeout(ctx, max(in.cfg.Patience, in.cfg.Timeout))
		defer cancel()
		_, err := in.pool.Exec(ctx, end, in.cfg.Consumer, d.event.Source, d.id, in.me)
		return outage(ctx, err, !answered(err))
	})
	if err != nil {
		d.err = errors.Join(d.err, fmt.Errorf("inbox: note the end of an attempt: %w", err))
	}
}

// start writes that an attempt begins, and returns how many began and never ended. Started is false if the message is done, or
// another one's row is there. Unless suspect is true, the attempt of one that has crashed does not begin. The commit does not
// wait for the disk: what is counted is our own deaths, not Postgres's.
func (in *Inbox) start(ctx context.Context, d *delivery, suspect bool) (started bool, crashes int, err error) {
	err = in.patiently(ctx, func() error {
		b := &pgx.Batch{}
		b.Queue("SELECT set_config('synchronous_commit', 'off', true), set_config('lock_timeout', $1, true)",
			strconv.FormatInt(in.cfg.LockTimeout.Milliseconds(), 10)) // a peer that stands still may hold the row
		b.Queue(in.sql.start, in.cfg.Consumer, d.event.Source, d.id, d.event.TenantID, d.event.Seq, d.digest, in.me, suspect).
			Query(func(rows pgx.Rows) error {
				_, err := pgx.ForEachRow(rows, []any{&crashes}, func() error {
					started = true
					return nil
				})
				return err
			})
		err := crash.Before("inbox-start")
		if err == nil {
			err = crash.After("inbox-start", in.pool.SendBatch(ctx, b).Close())
		}
		return outage(ctx, err, !answered(err))
	})
	if err != nil {
		return false, 0, fmt.Errorf("inbox: note an attempt: %w", err)
	}
	return started, crashes, nil
}
