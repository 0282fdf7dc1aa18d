package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/internal/crash"
)

// AddAt is [Writer.Add] of events that are sent no earlier than at, by the database's clock. They delay nobody else, and have
// no order with events that are added otherwise, nor a Seq or Time before they become due. An active relay looks for them with
// each poll.
func (w *Writer) AddAt(ctx context.Context, tx pgx.Tx, at time.Time, events ...oncebox.Event) error {
	if len(events) == 0 {
		return nil
	}
	c, err := w.columns(events)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "INSERT INTO "+pgx.Identifier{w.cfg.Schema, "outbox_delayed"}.Sanitize()+
		` (id, source, topic, key, version, tenant_id, headers, payload, not_before)
		SELECT *, $9::timestamptz FROM unnest(`+unnested+`)`, append(c.arrays(), at)...)
	if err != nil {
		return fmt.Errorf("outbox: add %d delayed events: %w", len(events), err)
	}
	return nil
}

// dueEvery bounds how often the relay looks for events that became due.
const dueEvery = 20 * time.Millisecond

// releaseDue makes ordinary rows of the delayed events that are due, in one statement: own xid, own seq.
func (r *Relay) releaseDue(ctx context.Context) error {
	if time.Since(r.dueAt) < dueEvery {
		return nil
	}
	r.dueAt = time.Now()
	const columns = "id, source, topic, key, version, tenant_id, headers, payload"
	delayed := pgx.Identifier{r.cfg.Schema, "outbox_delayed"}.Sanitize()
	if err := crash.Before("relay-due"); err != nil {
		return err
	}
	_, err := r.pool.Exec(ctx, `WITH due AS (DELETE FROM `+delayed+` WHERE n IN (
			SELECT n FROM `+delayed+` WHERE not_before <= clock_timestamp() ORDER BY not_before, n LIMIT 1000 FOR UPDATE SKIP LOCKED)
			RETURNING not_before, n, `+columns+`)
		INSERT INTO `+pgx.Identifier{r.cfg.Schema, "outbox"}.Sanitize()+" ("+columns+") SELECT "+columns+" FROM due ORDER BY not_before, n")
	return wrap("send what is due", crash.After("relay-due", err))
}
