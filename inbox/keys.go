package inbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"
)

// A KeyPolicy says what becomes of the later messages of a key one of whose messages is a dead letter.
type KeyPolicy int

const (
	// SkipVersioned lets a key go on whose dead message has a version, since whoever comes later can tell what is missing, and
	// holds a key otherwise.
	SkipVersioned KeyPolicy = iota
	// Skip lets every key go on.
	Skip
	// HoldKey holds every key: its later messages become dead letters of class "behind", in their order, until all of the
	// key's letters are retried or dropped. They wait there, not at the broker, where they would use up what it hands out.
	HoldKey
)

// Order is how events of a key are handled by version. Its premise: the versions of the events of one key that this consumer
// reads follow each other without gaps, from 1. An event whose predecessor is not done is held: it goes back to the broker,
// uncounted. One whose version was passed becomes a dead letter of class "late". Events without a version are not ordered.
type Order struct {
	// Hold is how long an event is held. Default 5 minutes.
	Hold time.Duration
	// RunAfter says what then becomes of it: true handles it without its predecessor, which is late from then on;
	// false, the default, makes it a dead letter of class "gap", to be retried when the predecessor is done.
	RunAfter bool
}

func (o *Order) validate() error {
	if o.Hold < 0 {
		return fmt.Errorf("inbox: Config.Ordered.Hold is %s, below 0", o.Hold)
	}
	return nil
}

func (o *Order) hold() time.Duration {
	if o.Hold == 0 {
		return 5 * time.Minute
	}
	return o.Hold
}

// The classes of dead letters that the rules of keys make. None of them is a message that its handler refused.
const (
	classBehind = "behind"
	classLate   = "late"
	classGap    = "gap"
)

var errWaits = errors.New("inbox: the event waits for its predecessor")

// holds says whether d's key has to wait if d dies of why.
func (in *Inbox) holds(d *delivery, why *permanentError) bool {
	switch why.class {
	case classConflict, classLate, classGap:
		return false
	}
	return d.event.Key != "" && (in.cfg.KeyPolicy == HoldKey || in.cfg.KeyPolicy == SkipVersioned && d.event.Version == 0)
}

func behind(d *delivery) *permanentError {
	return &permanentError{classBehind, fmt.Errorf("inbox: a dead letter of the key %.64q is in front", d.event.Key)}
}

// keys are what the database knows of the keys of a group.
type keys struct {
	in   *Inbox
	held map[key]bool
	at   map[key]int64 // the version that is done
}

// queueKeys asks for what is known of the keys, in the same round trip as the inbox rows.
func (in *Inbox) queueKeys(b *pgx.Batch, ds []*delivery) *keys {
	k := &keys{in: in}
	var sources, names []string
	seen := make(map[key]bool, len(ds))
	for _, d := range ds {
		if id := d.key(); id.key != "" && !seen[id] {
			seen[id] = true
			sources, names = append(sources, id.source), append(names, id.key)
		}
	}
	if len(names) == 0 {
		return k
	}
	if in.cfg.KeyPolicy != Skip {
		k.held = map[key]bool{}
		b.Queue(in.sql.keysHeld, in.cfg.Consumer, names).Query(func(rows pgx.Rows) error {
			var id key
			_, err := pgx.ForEachRow(rows, []any{&id.source, &id.key}, func() error {
				k.held[id] = true
				return nil
			})
			return err
		})
	}
	if in.cfg.Ordered != nil {
		k.at = map[key]int64{}
		b.Queue(in.sql.positions, in.cfg.Consumer, sources, names).Query(func(rows pgx.Rows) error {
			var (
				id      key
				version int64
			)
			_, err := pgx.ForEachRow(rows, []any{&id.source, &id.key, &version}, func() error {
				k.at[id] = version
				return nil
			})
			return err
		})
	}
	return k
}

// admit returns those of fresh whose turn it is.
func (k *keys) admit(fresh []*delivery) []*delivery {
	turn := fresh[:0]
	at := make(map[key]int64, len(k.at))
	maps.Copy(at, k.at)
	for _, d := range fresh {
		order, id, version := k.in.cfg.Ordered, d.key(), d.event.Version
		switch {
		case k.held[id]:
			d.bury(behind(d))
			continue
		case order == nil || version == 0 || id.key == "":
		case version <= at[id]:
			d.bury(&permanentError{classLate, fmt.Errorf("inbox: version %d of %.64q came when %d was done", version, id.key, at[id])})
			continue
		case version > at[id]+1 && (d.held.IsZero() || time.Since(d.held) < order.hold()):
			d.outcome, d.err = waiting, errWaits
			k.in.metrics.held.Inc()
			continue
		case version > at[id]+1 && !order.RunAfter:
			d.bury(&permanentError{classGap, fmt.Errorf("inbox: version %d of %.64q came, and %d never did", version, id.key, at[id]+1)})
			continue
		}
		at[id] = version
		turn = append(turn, d)
	}
	return turn
}

// passes says whether a key goes on behind d as it is.
func (in *Inbox) passes(d *delivery) bool {
	switch d.outcome {
	case done, unknown:
		return true
	case dead:
		return d.fresh && !in.holds(d, d.why) && d.why.class != classLate && d.why.class != classGap
	}
	return false
}

// queueAdvance writes how far the keys have come. Positions only go forward: that another group was faster is an error.
func (in *Inbox) queueAdvance(b *pgx.Batch, k *keys, ds []*delivery) {
	if in.cfg.Ordered == nil || k.at == nil {
		return
	}
	moved := map[key]int64{}
	for _, d := range ds {
		id := d.key()
		if d.event.Version == 0 || id.key == "" || !in.passes(d) {
			continue
		}
		// A handled event may have passed over a gap, by RunAfter; a dead one goes on only where its predecessor is done.
		if at := max(k.at[id], moved[id]); d.event.Version == at+1 || d.event.Version > at && d.outcome != dead {
			moved[id] = d.event.Version
		}
	}
	if len(moved) == 0 {
		return
	}
	in.queueMoves(b, moved)
}

func (in *Inbox) queueMoves(b *pgx.Batch, moved map[key]int64) {
	var (
		sources, names []string
		versions       []int64
	)
	for _, id := range sortedKeys(moved) {
		sources, names, versions = append(sources, id.source), append(names, id.key), append(versions, moved[id])
	}
	b.Queue(in.sql.advance, in.cfg.Consumer, sources, names, versions).Query(func(rows pgx.Rows) error {
		var source string
		tag, err := pgx.ForEachRow(rows, []any{&source}, func() error { return nil })
		if err == nil && tag.RowsAffected() != int64(len(moved)) {
			err = errors.New("inbox: a key has gone on meanwhile")
		}
		return err
	})
}

// position is the version of a key that is done, 0 if none is.
func (in *Inbox) position(ctx context.Context, tx pgx.Tx, id key) (version int64, err error) {
	var found key
	err = tx.QueryRow(ctx, in.sql.positions, in.cfg.Consumer, []string{id.source}, []string{id.key}).Scan(&found.source, &found.key, &version)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return version, err
}
