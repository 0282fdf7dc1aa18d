package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/internal/crash"
)

// A Range says which events of the outbox are meant: those for which all that is set holds. At least one has to be.
type Range struct {
	FromSeq, ToSeq int64     // both inclusive; 0 is no bound
	From, To       time.Time // From inclusive, To exclusive; zero is no bound
	Topic, Key     string    // "" is any
}

// ReplayOptions say how events are sent again.
type ReplayOptions struct {
	// DryRun only counts.
	DryRun bool
	// Rate is how many events a second are sent again at most. Default 1000.
	Rate int
}

// A Report tells what [Relay.Replay] did, or would do.
type Report struct {
	Events            int64
	FirstSeq, LastSeq int64 // of the events as they were first written; 0 where there are none
}

const replayStep = 100 * time.Millisecond

// Replay has events sent once more, with the same ids and in the same order among themselves, by whichever relay leads: it
// writes copies of them into the outbox, behind what is there. Their header is [oncebox.HeaderReplay], and no duplicate window
// holds them back; what was a replay itself is left out. Consumers that remember ids take no notice of those which they have.
// Events that retention has removed are gone.
//
// It returns when the copies are committed, and with an error tells how far it came. It may be called from any goroutine, also
// of a relay that does not run.
func (r *Relay) Replay(ctx context.Context, which Range, o ReplayOptions) (Report, error) {
	if which == (Range{}) {
		return Report{}, errors.New("outbox: replay everything? Say which range")
	}
	if o.Rate < 0 {
		return Report{}, fmt.Errorf("outbox: ReplayOptions.Rate is %d, below 0", o.Rate)
	}
	setDefault(&o.Rate, 1000)
	table := pgx.Identifier{r.cfg.Schema, "outbox"}.Sanitize()
	chosen := `FROM ` + table + ` WHERE seq > $1 AND seq <= $2 AND NOT headers ? '` + oncebox.HeaderReplay + `'
		AND ($3::timestamptz IS NULL OR time >= $3) AND ($4::timestamptz IS NULL OR time < $4) AND ($5 = '' OR topic = $5) AND ($6 = '' OR key = $6)`
	var end int64 // what is written from now on, the copies too, is not meant
	if err := r.pool.QueryRow(ctx, "SELECT COALESCE(max(seq), 0) FROM "+table).Scan(&end); err != nil {
		return Report{}, fmt.Errorf("outbox: replay: %w", err)
	}
	if which.ToSeq > 0 {
		end = min(end, which.ToSeq)
	}
	args := func(pos int64) []any {
		return []any{pos, end, orNull(which.From), orNull(which.To), which.Topic, which.Key}
	}
	var report Report
	if o.DryRun {
		err := r.pool.QueryRow(ctx, "SELECT count(*), COALESCE(min(seq), 0), COALESCE(max(seq), 0) "+chosen, args(which.FromSeq-1)...).
			Scan(&report.Events, &report.FirstSeq, &report.LastSeq)
		return report, wrap("outbox: count what to replay", err)
	}
	step := max(1, o.Rate/int(time.Second/replayStep))
	pause := time.NewTicker(time.Duration(float64(step) / float64(o.Rate) * float64(time.Second)))
	defer pause.Stop()
	for pos := which.FromSeq - 1; ; {
		var n, first, last int64
		if err := crash.Before("relay-replay"); err != nil {
			return report, err
		}
		err := r.pool.QueryRow(ctx, `WITH chosen AS (SELECT * `+chosen+` ORDER BY seq LIMIT $7),
			copies AS (INSERT INTO `+table+` (id, source, topic, key, version, tenant_id, time, headers, payload)
				SELECT id, source, topic, key, version, tenant_id, time, headers || jsonb_build_object('`+oncebox.HeaderReplay+`', seq::text), payload
				FROM chosen ORDER BY seq)
			SELECT count(*), COALESCE(min(seq), 0), COALESCE(max(seq), 0) FROM chosen`, append(args(pos), step)...).Scan(&n, &first, &last)
		if err = crash.After("relay-replay", err); err != nil {
			return report, fmt.Errorf("outbox: replay behind %d: %w", pos, err)
		}
		if n > 0 {
			if report.Events == 0 {
				report.FirstSeq = first
			}
			report.Events, report.LastSeq, pos = report.Events+n, last, last
			r.Wake()
		}
		if n < int64(step) {
			return report, nil
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return report, ctx.Err()
		}
	}
}

func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
