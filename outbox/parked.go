package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Parked are the events of a relay's cursor that its log can never hold, and, under [HoldKey], those which wait for them. It
// is safe for concurrent use, also beside a relay in another process.
type Parked struct{ r *Relay }

// Parked returns the relay's parked events.
func (r *Relay) Parked() *Parked { return &Parked{r} }

// A ParkedEvent is one that was taken out of the way of those behind it.
type ParkedEvent struct {
	Seq           int64
	ID, Type, Key string
	Reason        string
	Waits         bool // for one of its key before it; it follows that one by itself
	Asked         bool // Retry or Drop was called, and the active relay has not come to it yet
	ParkedAt      time.Time
	Bytes         int // of its data
}

// List returns up to limit parked events, the oldest first.
func (p *Parked) List(ctx context.Context, limit int) ([]ParkedEvent, error) {
	rows, err := p.r.pool.Query(ctx, `SELECT seq, id::text AS id, topic AS type, key, reason, waits, outcome <> '' AS asked, parked_at AS "ParkedAt",
			octet_length(payload) AS bytes
		FROM `+p.r.parkedTable()+` WHERE cursor = $1 AND outcome NOT IN ('retried', 'dropped') ORDER BY seq LIMIT $2`, p.r.cfg.Name, limit)
	if err != nil {
		return nil, fmt.Errorf("outbox: list parked events: %w", err)
	}
	events, err := pgx.CollectRows(rows, pgx.RowToStructByName[ParkedEvent])
	if err != nil {
		return nil, fmt.Errorf("outbox: list parked events: %w", err)
	}
	return events, nil
}

// Retry asks the active relay to check the events once more and to send them if the log can hold them now; one that it cannot
// hold stays parked. It returns how many of them are parked.
func (p *Parked) Retry(ctx context.Context, seqs ...int64) (int, error) {
	return p.ask(ctx, "retry", seqs)
}

// Drop asks the active relay to give the events up. Those which wait for one of them are sent. It returns how many of them are
// parked.
func (p *Parked) Drop(ctx context.Context, seqs ...int64) (int, error) {
	return p.ask(ctx, "drop", seqs)
}

func (p *Parked) ask(ctx context.Context, what string, seqs []int64) (int, error) {
	tag, err := p.r.pool.Exec(ctx, "UPDATE "+p.r.parkedTable()+` SET outcome = $3
		WHERE cursor = $1 AND seq = ANY($2) AND outcome NOT IN ('retried', 'dropped')`, p.r.cfg.Name, seqs, what)
	if err != nil {
		return 0, fmt.Errorf("outbox: %s parked events: %w", what, err)
	}
	p.r.Wake()
	return int(tag.RowsAffected()), nil
}
