package heal

import (
	"context"
	"fmt"
	"math/big"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A Table is a [Book] of rows in Postgres.
type Table struct {
	// Pool reads them.
	Pool *pgxpool.Pool
	// Rows is a query for the columns bucket (bigint), id (uuid), seq (bigint), hash (bigint) and at (timestamptz, or NULL), of the
	// rows in the buckets $1 to $2 whose id is in $3, a uuid[], or of all where that is NULL. [HashSQL], [TimeBucketSQL] and
	// [TimeRangeSQL] help to write it.
	Rows string
}

// anew has Postgres plan a statement for the values that come with it: one range may be a bucket or everything.
const anew = pgx.QueryExecModeCacheDescribe

// reading is how the whole of a table may be read, also in sessions that otherwise go by indexes only.
var reading = pgx.TxOptions{BeginQuery: "BEGIN READ ONLY; SET LOCAL enable_seqscan = on"}

// Digests implements [Book].
func (t Table) Digests(ctx context.Context, from, to int64) (digests []Digest, err error) {
	err = pgx.BeginTxFunc(ctx, t.Pool, reading, func(tx pgx.Tx) error {
		digests, err = t.digests(ctx, tx, from, to)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("digest rows: %w", err)
	}
	return digests, nil
}

func (t Table) digests(ctx context.Context, tx pgx.Tx, from, to int64) ([]Digest, error) {
	rows, err := tx.Query(ctx, `SELECT bucket, count(*), sum(hash)::text FROM (`+t.Rows+`) AS r GROUP BY bucket ORDER BY bucket`,
		anew, from, to, []string(nil))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (Digest, error) {
		var (
			d   Digest
			sum string
		)
		if err := row.Scan(&d.Bucket, &d.Count, &sum); err != nil {
			return d, err
		}
		n, ok := new(big.Int).SetString(sum, 10)
		if !ok {
			return d, fmt.Errorf("the sum %q is no number", sum)
		}
		d.Sum = n.And(n, mask).Uint64()
		return d, nil
	})
}

// mask takes a number modulo 2^64: of a negative one too, whose bits And takes as two's complement.
var mask = new(big.Int).SetUint64(1<<64 - 1)

// Entries implements [Book].
func (t Table) Entries(ctx context.Context, bucket int64) ([]Entry, error) {
	return t.entries(ctx, bucket, bucket, nil)
}

// Find implements [Book].
func (t Table) Find(ctx context.Context, ids []string) ([]Entry, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	return t.entries(ctx, 0, LastBucket, ids)
}

func (t Table) entries(ctx context.Context, from, to int64, ids []string) ([]Entry, error) {
	rows, err := t.Pool.Query(ctx, `SELECT id::text, seq, hash, at FROM (`+t.Rows+`) AS r`, anew, from, to, ids)
	if err != nil {
		return nil, fmt.Errorf("read rows: %w", err)
	}
	entries, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Entry, error) {
		var (
			e    Entry
			hash int64
			at   *time.Time
		)
		err := row.Scan(&e.ID, &e.Seq, &hash, &at)
		e.Hash = uint64(hash)
		if at != nil {
			e.At = at.UTC()
		}
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("read rows: %w", err)
	}
	return entries, nil
}

// HashSQL is the 64-bit hash, a bigint, of an expression of type bytea: the beginning of its SHA-256.
func HashSQL(bytes string) string {
	return `('x' || encode(substr(sha256(` + bytes + `), 1, 8), 'hex'))::bit(64)::bigint`
}

// HashTextSQL is [HashSQL] of an expression of type text.
func HashTextSQL(text string) string { return HashSQL(`convert_to(` + text + `, 'UTF8')`) }

// timeShift makes buckets of 4.1 s of the milliseconds that a UUID of version 7 or 8 begins with.
const timeShift = 12

// TimeBucketSQL is the bucket of a UUID that begins with a time, as those of version 7 and [oncebox.DerivedID] do.
func TimeBucketSQL(id string) string {
	return fmt.Sprintf(`(('x' || encode(substr(uuid_send(%s), 1, 6), 'hex'))::bit(48)::bigint >> %d)`, id, timeShift)
}

// TimeRangeSQL says whether such a UUID is in the buckets $1 to $2.
func TimeRangeSQL(id string) string {
	bound := func(bucket, rest string) string {
		return fmt.Sprintf(`(lpad(to_hex(least(%s, (1::bigint << %d) - 1) << %d), 12, '0') || '%s')::uuid`, bucket, 48-timeShift, timeShift, rest)
	}
	const low = "00000000000000000000"
	return id + ` >= ` + bound("$1::bigint", low) + ` AND ` + id + ` < ` + bound("$2::bigint + 1", low)
}

// TimeBucket is the bucket of what was made at t.
func TimeBucket(t time.Time) int64 { return max(0, t.UnixMilli()) >> timeShift }
