// Package heal compares what two services should have alike, and repairs what a broker lost between them.
//
// What is compared is a [Book]: rows in numbered buckets, such as the events that a producer wrote and those which a consumer has
// in its inbox, by the producer's seq. The two sides first tell a count and a sum of hashes for each bucket; only buckets that
// differ are read row by row, and a row is missing only when the other side, asked by its id, does not have it. So a comparison
// with nothing wrong costs a few numbers, whatever the rows.
//
// An [Auditor] beside a producer's relay does so now and then with each consumer, over NATS, and has events sent again that a
// consumer lost: a restored database, a stream that lost its end behind an acknowledgement. It charges nobody twice, since events
// that come again are the inbox's to know. What it cannot repair, it reports.
package heal

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// A Book is one side of what two sides should have alike. Implementations are safe for concurrent use.
type Book interface {
	// Digests are those of the buckets from to to, both inclusive, that hold any row, in their order.
	Digests(ctx context.Context, from, to int64) ([]Digest, error)
	// Entries are the rows of one bucket, in no order.
	Entries(ctx context.Context, bucket int64) ([]Entry, error)
	// Find are the rows with these ids, in any bucket.
	Find(ctx context.Context, ids []string) ([]Entry, error)
}

// A Digest stands for the rows of a bucket: how many there are, and the sum of their hashes modulo 2^64. A sum, since rows come one
// by one and in any order; not XOR, under which a row that is there twice would vanish.
type Digest struct {
	Bucket int64  `json:"b"`
	Count  int64  `json:"n"`
	Sum    uint64 `json:"s"`
}

// An Entry is a row as the books know it.
type Entry struct {
	ID   string `json:"id"`
	Seq  int64  `json:"seq,omitempty"` // of an event: the producer's
	Hash uint64 `json:"h"`
	// At is when an event was written, by the clock of the producer's database; only on the producer's side.
	At time.Time `json:"at,omitzero"`
}

// LastBucket is above every bucket's number.
const LastBucket = 1 << 52

// A Difference is what two sides do not have alike.
type Difference struct {
	// Rows is how many were compared, by their digests: the greater number of the two sides.
	Rows int64
	// Left and Right are the rows which only that side has.
	Left, Right []Entry
	// Unequal are those which both have, with other content, as the left side has them.
	Unequal []Entry
}

// Empty says that there is none.
func (d Difference) Empty() bool { return len(d.Left) == 0 && len(d.Right) == 0 && len(d.Unequal) == 0 }

// findAtOnce bounds the ids of one question.
const findAtOnce = 5000

// Compare compares the buckets from to to of two sides. A side is asked for what only the other one has after that one was read:
// what came meanwhile is no difference.
func Compare(ctx context.Context, left, right Book, from, to int64) (Difference, error) {
	var d Difference
	if from > to {
		return d, nil
	}
	l, r, err := both(ctx, left, right, func(ctx context.Context, b Book) ([]Digest, error) { return b.Digests(ctx, from, to) })
	if err != nil {
		return d, fmt.Errorf("compare digests: %w", err)
	}
	buckets, rows := unequal(l, r)
	d.Rows = rows
	for _, b := range buckets {
		le, re, err := both(ctx, left, right, func(ctx context.Context, side Book) ([]Entry, error) { return side.Entries(ctx, b) })
		if err != nil {
			return d, fmt.Errorf("compare bucket %d: %w", b, err)
		}
		onlyLeft, onlyRight, unequal := split(le, re)
		d.Left, d.Right, d.Unequal = append(d.Left, onlyLeft...), append(d.Right, onlyRight...), append(d.Unequal, unequal...)
	}
	return d, d.settle(ctx, left, right)
}

// Again looks once more at the rows that differed, and returns what still does.
func (d Difference) Again(ctx context.Context, left, right Book) (Difference, error) {
	all := slices.Concat(d.Left, d.Right, d.Unequal)
	l, r, err := both(ctx, left, right, func(ctx context.Context, b Book) ([]Entry, error) { return find(ctx, b, all) })
	if err != nil {
		return d, err
	}
	again := Difference{Rows: d.Rows}
	again.Left, again.Right, again.Unequal = split(l, r)
	return again, nil
}

// settle takes out what the other side has in another bucket.
func (d *Difference) settle(ctx context.Context, left, right Book) error {
	elsewhere := func(mine []Entry, other Book) ([]Entry, error) {
		found, err := find(ctx, other, mine)
		if err != nil {
			return nil, fmt.Errorf("look for rows in other buckets: %w", err)
		}
		only, _, unequal := split(mine, found)
		d.Unequal = append(d.Unequal, unequal...)
		return only, nil
	}
	var err error
	if d.Left, err = elsewhere(d.Left, right); err != nil {
		return err
	}
	d.Right, err = elsewhere(d.Right, left)
	return err
}

func find(ctx context.Context, b Book, entries []Entry) ([]Entry, error) {
	ids := make([]string, len(entries))
	for i, e := range entries {
		ids[i] = e.ID
	}
	var found []Entry
	for some := range slices.Chunk(ids, findAtOnce) {
		f, err := b.Find(ctx, some)
		if err != nil {
			return nil, err
		}
		found = append(found, f...)
	}
	return found, nil
}

// unequal are the buckets whose digests differ, and how many rows all of them have.
func unequal(l, r []Digest) (buckets []int64, rows int64) {
	right := make(map[int64]Digest, len(r))
	for _, d := range r {
		right[d.Bucket] = d
	}
	for _, d := range l {
		o := right[d.Bucket]
		delete(right, d.Bucket)
		rows += max(d.Count, o.Count)
		if d.Count != o.Count || d.Sum != o.Sum {
			buckets = append(buckets, d.Bucket)
		}
	}
	for b, d := range right {
		rows += d.Count
		buckets = append(buckets, b)
	}
	slices.Sort(buckets)
	return buckets, rows
}

// split compares rows by id.
func split(l, r []Entry) (onlyLeft, onlyRight, unequal []Entry) {
	left, right := byID(l), byID(r)
	for id, e := range left {
		switch o, there := right[id]; {
		case !there:
			onlyLeft = append(onlyLeft, e)
		case o.Hash != e.Hash:
			unequal = append(unequal, e)
		}
	}
	for id, e := range right {
		if _, there := left[id]; !there {
			onlyRight = append(onlyRight, e)
		}
	}
	for _, some := range [][]Entry{onlyLeft, onlyRight, unequal} {
		slices.SortFunc(some, func(a, b Entry) int { return cmp.Or(cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.ID, b.ID)) })
	}
	return onlyLeft, onlyRight, unequal
}

// byID are the rows by their ids. One that is there twice has another hash than one that is there once.
func byID(entries []Entry) map[string]Entry {
	m := make(map[string]Entry, len(entries))
	for _, e := range entries {
		if o, twice := m[e.ID]; twice {
			e.Hash = e.Hash*31 + o.Hash + 1
		}
		m[e.ID] = e
	}
	return m
}

// both asks both sides at once.
func both[T any](ctx context.Context, left, right Book, ask func(context.Context, Book) (T, error)) (l, r T, err error) {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { l, err = ask(ctx, left); return err })
	g.Go(func() (err error) { r, err = ask(ctx, right); return err })
	return l, r, g.Wait()
}
