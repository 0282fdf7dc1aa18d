package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/internal/crash"
)

// parkedRows is what the active relay knows of its cursor's parked rows.
type parkedRows struct {
	seqs map[int64]struct{}  // also of those retried or dropped: a relay that goes back passes them by
	keys map[string]struct{} // whose later events wait
	open int                 // neither retried nor dropped
}

var (
	errParkedBefore = errors.New("parked before")
	errKeyWaits     = errors.New("an event of its key before it is parked")
)

func (r *Relay) parkedTable() string { return pgx.Identifier{r.cfg.Schema, "outbox_parked"}.Sanitize() }

func (r *Relay) loadParked(ctx context.Context) error {
	rows, err := r.pool.Query(ctx, "SELECT seq, key, outcome NOT IN ('retried', 'dropped') FROM "+r.parkedTable()+" WHERE cursor = $1", r.cfg.Name)
	if err != nil {
		return fmt.Errorf("load the parked rows: %w", err)
	}
	type parkedRow struct {
		Seq  int64
		Key  string
		Open bool
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[parkedRow])
	if err != nil {
		return fmt.Errorf("load the parked rows: %w", err)
	}
	r.parked = parkedRows{seqs: make(map[int64]struct{}, len(all)), keys: map[string]struct{}{}}
	for _, p := range all {
		r.parked.seqs[p.Seq] = struct{}{}
		if p.Open {
			r.parked.open++
			r.hold(p.Key)
		}
	}
	r.metrics.parked.Set(float64(r.parked.open))
	return nil
}

func (r *Relay) hold(key string) {
	if r.cfg.Parked == HoldKey {
		r.parked.keys[key] = struct{}{}
	}
}

// unsendable says why a row is not sent: the log can never hold it, or it has to wait; nil for nearly all.
func (r *Relay) unsendable(row *row) error {
	if _, parked := r.parked.seqs[row.Seq]; parked {
		return errParkedBefore
	}
	if _, waits := r.parked.keys[row.Key]; waits {
		return errKeyWaits
	}
	if row.broken != nil {
		return row.broken
	}
	return r.sink.Check(row.Event)
}

// park takes a row out of the way of those behind it. The park row is on disk, under our epoch, before any of those is sent:
// else a relay that takes over could send it behind them.
func (r *Relay) park(ctx context.Context, row *row, reason error) error {
	if err := r.flush(ctx); err != nil {
		return err
	}
	if errors.Is(reason, errParkedBefore) {
		r.pos.seq = row.Seq
		return nil
	}
	if err := crash.Before("relay-park"); err != nil {
		return err
	}
	err := r.cursor.saveWith(ctx, r.safe(), r.created, "INSERT INTO "+r.parkedTable()+` (cursor, seq, id, source, topic, key, version, tenant_id,
			time, headers, payload, reason, waits)
		SELECT saved.name, seq, id, source, topic, key, version, tenant_id, time, headers, payload, $13, $14
		FROM saved, `+pgx.Identifier{r.cfg.Schema, "outbox"}.Sanitize()+" WHERE seq = $12 ON CONFLICT DO NOTHING",
		row.Seq, reason.Error(), errors.Is(reason, errKeyWaits))
	if err = crash.After("relay-park", err); err != nil {
		return fmt.Errorf("park row %d: %w", row.Seq, err)
	}
	r.pos.seq = row.Seq
	r.parked.seqs[row.Seq] = struct{}{}
	r.parked.open++
	r.hold(row.Key)
	r.metrics.parked.Set(float64(r.parked.open))
	r.log.Error("relay: an event is parked", "seq", row.Seq, "id", row.ID, "type", row.Type, "key", row.Key, "reason", reason)
	return nil
}

// unparkAtOnce bounds how many parked rows are sent between two rounds.
const unparkAtOnce = 100

// unpark does what was asked for the parked rows: it is called between rounds, when nothing is on its way, so that a row that
// is sent now has all rounds before it in the log and none behind.
func (r *Relay) unpark(ctx context.Context) error {
	if r.parked.open == 0 {
		return nil
	}
	var asked bool
	err := r.pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+r.parkedTable()+" WHERE cursor = $1 AND outcome IN ('retry', 'drop'))", r.cfg.Name).Scan(&asked)
	if err != nil || !asked {
		return wrap("look at the parked rows", err)
	}
	if err := r.finish(ctx, "outcome = 'drop'", "dropped"); err != nil {
		return err
	}
	// Of a key that is held, those which waited follow the one before them, and nothing overtakes one that stays.
	rows, err := r.pool.Query(ctx, `SELECT seq, key FROM (
			SELECT seq, key, outcome = 'retry' OR $2 AND waits AS ready,
				$2 AND bool_or(outcome <> 'retry' AND NOT waits) OVER (PARTITION BY key ORDER BY seq) AS behind
			FROM `+r.parkedTable()+` WHERE cursor = $1 AND outcome IN ('', 'retry')) AS p
		WHERE ready AND NOT behind ORDER BY seq LIMIT $3`, r.cfg.Name, r.cfg.Parked == HoldKey, unparkAtOnce)
	if err != nil {
		return fmt.Errorf("look at the parked rows: %w", err)
	}
	type ready struct {
		Seq int64
		Key string
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[ready])
	if err != nil {
		return fmt.Errorf("look at the parked rows: %w", err)
	}
	stays := map[string]bool{}
	for _, p := range all {
		if stays[p.Key] {
			continue
		}
		sent, err := r.sendParked(ctx, p.Seq)
		if err != nil {
			return err
		}
		stays[p.Key] = !sent && r.cfg.Parked == HoldKey
	}
	return r.loadParked(ctx)
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// sendParked sends one parked row; false says that it still cannot be sent.
func (r *Relay) sendParked(ctx context.Context, seq int64) (bool, error) {
	rows, _, err := readRows(ctx, r.pool, 1, "SELECT seq, id::text, source, topic, key, version, tenant_id, time, headers::text, payload, false FROM "+
		r.parkedTable()+" WHERE cursor = $1 AND seq = $2", r.cfg.Name, seq)
	if err != nil || len(rows) == 0 {
		return false, err
	}
	row := rows[0]
	reason := row.broken
	if reason == nil {
		reason = r.sink.Check(row.Event)
	}
	switch {
	case reason != nil:
		_, err := r.pool.Exec(ctx, "UPDATE "+r.parkedTable()+" SET outcome = '', waits = false, reason = $3 WHERE cursor = $1 AND seq = $2",
			r.cfg.Name, seq, reason.Error())
		return false, wrap("park again", err)
	case r.stored[row.ID] > 0: // by a relay that died before it could say so
		if r.stored[row.ID]--; r.stored[row.ID] == 0 {
			delete(r.stored, row.ID)
		}
		r.metrics.skipped.Inc()
		r.advance()
	default:
		round := r.pos.seq // a parked row is none of the round's
		if err := r.give(ctx, []oncebox.Event{row.Event}, func(oncebox.Event) int64 { return round }); err != nil {
			return false, err
		}
		if err := r.flush(ctx); err != nil {
			return false, err
		}
	}
	return true, r.finish(ctx, fmt.Sprintf("seq = %d", seq), "retried")
}

// finish notes the end of parked rows, under our epoch.
func (r *Relay) finish(ctx context.Context, which, outcome string) error {
	if err := crash.Before("relay-unpark"); err != nil {
		return err
	}
	err := r.cursor.saveWith(ctx, r.safe(), r.created, "UPDATE "+r.parkedTable()+` SET outcome = $12, stream_seq = $13
		FROM saved WHERE cursor = saved.name AND `+which, outcome, r.last)
	return wrap("note that parked rows are "+outcome, crash.After("relay-unpark", err))
}

// parkAgain has those parked rows sent once more that were retried and that a log which ends at last has lost.
func (r *Relay) parkAgain(ctx context.Context, last uint64) error {
	_, err := r.pool.Exec(ctx, "UPDATE "+r.parkedTable()+" SET outcome = 'retry' WHERE cursor = $1 AND outcome = 'retried' AND stream_seq > $2", r.cfg.Name, last)
	if err != nil {
		return fmt.Errorf("retry parked rows that the log lost: %w", err)
	}
	return r.loadParked(ctx)
}
