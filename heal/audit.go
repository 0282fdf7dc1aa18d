package heal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/outbox"
)

// audit compares the outbox with one consumer's inbox. What is compared is not chosen by time: it is what stands in the stream at or
// below the position that the consumer has acknowledged, as the relay's ticks tell. All of that has to be in the inbox.
func (a *Auditor) audit(ctx context.Context, consumer string, o Options) (r Report, err error) {
	p := peer{nc: a.nc, consumer: consumer, source: a.cfg.Source, timeout: a.cfg.Timeout}
	there, err := p.state(ctx)
	if err != nil {
		return r, err
	}
	r.Dead = there.Dead
	book := EventsBook(a.cfg.Source, consumer)
	ours, err := a.marks.Get(ctx, book, Left)
	if err != nil {
		return r, err
	}
	snapshot, err := a.acknowledged(ctx, there.Acknowledged)
	if err != nil || snapshot == "" { // nothing is
		return r, err
	}
	first, err := a.first(ctx)
	if err != nil {
		return r, err
	}
	closed, err := a.closed(ctx, snapshot)
	if err != nil {
		return r, err
	}
	chosen := Written{Schema: a.cfg.Schema, Cursor: a.cfg.Cursor, Topics: there.Topics, Since: there.ExpectsFrom, snapshot: snapshot}
	left := Outbox(a.pool, chosen)
	if r.FromBucket = first / bucketRows; !o.Full {
		r.FromBucket = max(r.FromBucket, min(ours, there.Mark))
	}
	d, err := Compare(ctx, left, p, r.FromBucket, LastBucket)
	if err != nil {
		return r, err
	}
	r.Compared = d.Rows
	// What the consumer has and the snapshot does not show may only be newer, or parked and sent by hand, or not its topic's.
	every := Outbox(a.pool, Written{Schema: a.cfg.Schema})
	if d.Right, err = a.unknown(ctx, every, d.Right); err != nil {
		return r, err
	}
	r.Unknown, r.UnknownIDs = len(d.Right), ids(d.Right)
	r.Conflicts, r.ConflictIDs = len(d.Unequal), ids(d.Unequal)
	r.Missing, r.MissingIDs = len(d.Left), ids(d.Left)
	lost := slices.DeleteFunc(slices.Clone(d.Left), func(e Entry) bool { return e.At.Before(there.CompleteSince) })
	r.TooOld = len(d.Left) - len(lost)
	if len(lost) > 0 {
		if err := a.resend(ctx, &r, lost, snapshot, o.DryRun); err != nil {
			return r, err
		}
	}
	if !r.Alike() || o.DryRun || closed <= min(ours, there.Mark) {
		return r, nil
	}
	if err := a.marks.Set(ctx, book, Left, closed); err != nil {
		return r, err
	}
	return r, p.mark(ctx, closed)
}

const idsShown = 100

func ids(entries []Entry) []string {
	var all []string
	for _, e := range entries[:min(len(entries), idsShown)] {
		all = append(all, e.ID)
	}
	return all
}

// acknowledged is a snapshot of which all that it shows, and that the relay sent, stands in the stream at or below position. It is
// the newest that is known: a tick tells where the stream ended when all before it was sent, the cursor where it is now.
func (a *Auditor) acknowledged(ctx context.Context, position uint64) (snapshot string, err error) {
	table := func(name string) string { return pgx.Identifier{schema(a.cfg.Schema), name}.Sanitize() }
	err = a.pool.QueryRow(ctx, `
		SELECT snap::text FROM (
			SELECT t.n, t.snap FROM `+table("outbox_cursor")+` AS c JOIN `+table("outbox_tick")+` AS t
				ON t.cursor = c.name AND t.n = c.n - 1 AND t.slot = ((c.n - 1) >> 16) & 15
				WHERE c.name = $1 AND c.stream_seq <= $2
			UNION ALL
			SELECT t.n - 1, t.prev FROM generate_series(0, 15) AS s CROSS JOIN LATERAL (SELECT n, prev FROM `+table("outbox_tick")+`
				WHERE slot = s AND cursor = $1 AND stream_seq <= $2 AND prev IS NOT NULL ORDER BY n DESC LIMIT 1) AS t
		) AS known ORDER BY n DESC LIMIT 1`, anew, a.cfg.Cursor, int64(position)).Scan(&snapshot)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("heal: find what is acknowledged: %w", err)
	}
	return snapshot, nil
}

// first is the least seq that the outbox still holds.
func (a *Auditor) first(ctx context.Context) (seq int64, err error) {
	err = a.pool.QueryRow(ctx, "SELECT COALESCE(min(seq), 0) FROM "+pgx.Identifier{schema(a.cfg.Schema), "outbox"}.Sanitize()).Scan(&seq)
	if err != nil {
		return 0, fmt.Errorf("heal: find the outbox's beginning: %w", err)
	}
	return seq, nil
}

// A drawn is a look at the sequence: when it had drawn seq, every transaction that had drawn up to there was below xmax.
type drawn struct {
	seq  int64
	xmax string
}

// closed is the first bucket that may hold rows, now or later, which the snapshot does not show. A sequence says nothing of who is
// yet to commit what it gave out; so it is looked at, and counts once all that ran then is over.
func (a *Auditor) closed(ctx context.Context, snapshot string) (int64, error) {
	var d drawn
	err := a.pool.QueryRow(ctx, "SELECT COALESCE(pg_sequence_last_value(pg_get_serial_sequence($1, 'seq')::regclass), 0)",
		pgx.Identifier{schema(a.cfg.Schema), "outbox"}.Sanitize()).Scan(&d.seq)
	if err == nil { // a statement of its own, later: who has drawn has its xid by then
		err = a.pool.QueryRow(ctx, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text").Scan(&d.xmax)
	}
	if err != nil {
		return 0, fmt.Errorf("heal: look at the sequence: %w", err)
	}
	const looks = 100
	a.drawn = append(a.drawn[max(0, len(a.drawn)-looks):], d)
	seqs, xmaxes := make([]int64, len(a.drawn)), make([]string, len(a.drawn))
	for i, d := range a.drawn {
		seqs[i], xmaxes[i] = d.seq, d.xmax
	}
	outbox := pgx.Identifier{schema(a.cfg.Schema), "outbox"}.Sanitize()
	var seq *int64
	err = a.pool.QueryRow(ctx, `SELECT least(
			(SELECT max(seq) FROM unnest($1::bigint[], $2::text[]) AS d (seq, xmax) WHERE xmax::xid8 <= pg_snapshot_xmin(pg_current_snapshot())),
			(SELECT min(seq) - 1 FROM `+outbox+` WHERE xid >= pg_snapshot_xmin($3::text::pg_snapshot) AND NOT pg_visible_in_snapshot(xid, $3::text::pg_snapshot)))`,
		anew, seqs, xmaxes, snapshot).Scan(&seq)
	if err != nil {
		return 0, fmt.Errorf("heal: find what is closed: %w", err)
	}
	if seq == nil {
		return 0, nil
	}
	return (*seq + 1) / bucketRows, nil
}

// unknown are those of the consumer's events which the outbox does not have, and which it has not forgotten either: it is asked
// first for them and then for its beginning, since emptying a slot is seen at once, whatever a query began with.
func (a *Auditor) unknown(ctx context.Context, every Table, right []Entry) ([]Entry, error) {
	if len(right) == 0 {
		return nil, nil
	}
	found, err := find(ctx, every, right)
	if err != nil {
		return nil, err
	}
	known := byID(found)
	first, err := a.first(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(right), func(e Entry) bool {
		_, there := known[e.ID]
		return there || e.Seq < first
	}), nil
}

// resend gives what is lost to the relay, unless it is on its way: a copy that the snapshot does not show is not acknowledged yet.
func (a *Auditor) resend(ctx context.Context, r *Report, lost []Entry, snapshot string, dry bool) error {
	rows, err := a.pool.Query(ctx, `SELECT (headers->>'`+oncebox.HeaderReplay+`')::bigint FROM `+pgx.Identifier{schema(a.cfg.Schema), "outbox"}.Sanitize()+`
		WHERE xid >= pg_snapshot_xmin($1::text::pg_snapshot) AND NOT pg_visible_in_snapshot(xid, $1::text::pg_snapshot)
			AND headers ? '`+oncebox.HeaderReplay+`'`, anew, snapshot)
	if err != nil {
		return fmt.Errorf("heal: look what is on its way: %w", err)
	}
	copies, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("heal: look what is on its way: %w", err)
	}
	slices.Sort(copies)
	var seqs []int64
	for _, e := range lost {
		if _, onWay := slices.BinarySearch(copies, e.Seq); onWay {
			r.OnWay++
		} else {
			seqs = append(seqs, e.Seq)
		}
	}
	if dry {
		return nil
	}
	slices.Sort(seqs)
	begin := time.Now()
	for _, s := range runs(seqs) {
		report, err := a.relay.Replay(ctx, outbox.Range{FromSeq: s[0], ToSeq: s[1]}, outbox.ReplayOptions{Rate: a.cfg.Rate})
		r.Resent += int(report.Events)
		a.metrics.resent.Add(float64(report.Events))
		if err != nil {
			return fmt.Errorf("heal: send again: %w", err)
		}
		due := begin.Add(time.Duration(r.Resent) * time.Second / time.Duration(a.cfg.Rate))
		select {
		case <-time.After(time.Until(due)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// runs are the seqs, in order, as ranges without a gap.
func runs(seqs []int64) (ranges [][2]int64) {
	for _, s := range seqs {
		if n := len(ranges); n > 0 && ranges[n-1][1] == s-1 {
			ranges[n-1][1] = s
		} else {
			ranges = append(ranges, [2]int64{s, s})
		}
	}
	return ranges
}
