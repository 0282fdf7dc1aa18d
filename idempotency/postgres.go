package idempotency

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/internal/crash"
)

// PostgresConfig configures [Postgres].
type PostgresConfig struct {
	// Schema is where the table idempotency_keys is. Default "oncebox".
	Schema string
	// Forget is called in the transaction that deletes expired records, with their keys. A business row that has a key's hash as its
	// guard must lose it here, or it would refuse the key for ever:
	//
	//	UPDATE charge SET idem_key = NULL FROM unnest($1::text[], $2::bytea[]) AS k (tenant, key)
	//	WHERE tenant_id = tenant AND idem_key = key
	//
	// Default: nothing is to be forgotten.
	Forget func(ctx context.Context, tx pgx.Tx, keys []ExpiredKey) error
	// CleanEvery is the pause between two batches of Run that found nothing left, CleanBatch the most records of a batch. Default
	// 1 min and 1000.
	CleanEvery time.Duration
	CleanBatch int
}

// An ExpiredKey names a record that was deleted.
type ExpiredKey struct {
	Tenant string
	Key    []byte
}

// Postgres is the store whose records commit together with what the handler writes: the record of a request exists if, and only
// if, its effect does. An attempt holds a connection of the pool while its handler runs, a waiting duplicate holds none.
//
// A first request costs no round trip more than the same transaction without a key: its record is looked for together with BEGIN, and
// written together with COMMIT. A replay costs two, and one without a transaction where the request before was a replay too; a first
// request after a replay costs one more. The primary key of the table is what lets only one of two attempts commit; an advisory lock
// keeps the second one from running its handler for nothing.
//
// The pool must lead to the primary. [TunePool] sets what ends the transaction of a host that is cut off.
type Postgres struct {
	pool *pgxpool.Pool
	cfg  PostgresConfig

	lookSQL, insertSQL, expireSQL, cleanSQL string
	noLock                                  bool // tests take the advisory lock away

	// repeats says that the last request here was one that had been answered before. They come in runs, as after an outage: while they do,
	// a request is looked up before a transaction is begun for it.
	repeats atomic.Bool
}

// NewPostgres returns the store on pool, or an error that names the option that is wrong. It does not touch the database: the
// table comes from migrations.Idempotency.
func NewPostgres(pool *pgxpool.Pool, cfg PostgresConfig) (*Postgres, error) {
	if cfg.CleanEvery < 0 {
		return nil, fmt.Errorf("idempotency: PostgresConfig.CleanEvery is %s, below 0", cfg.CleanEvery)
	}
	if cfg.CleanBatch < 0 {
		return nil, fmt.Errorf("idempotency: PostgresConfig.CleanBatch is %d, below 0", cfg.CleanBatch)
	}
	if cfg.Schema == "" {
		cfg.Schema = "oncebox"
	}
	if cfg.CleanEvery == 0 {
		cfg.CleanEvery = time.Minute
	}
	if cfg.CleanBatch == 0 {
		cfg.CleanBatch = 1000
	}
	if cfg.Forget == nil {
		cfg.Forget = func(context.Context, pgx.Tx, []ExpiredKey) error { return nil }
	}
	table := pgx.Identifier{cfg.Schema, "idempotency_keys"}.Sanitize()
	return &Postgres{
		pool: pool, cfg: cfg,
		// clock_timestamp, not now: that one stands still in a transaction.
		lookSQL: `SELECT COALESCE($3::timestamptz <= clock_timestamp(), false), r.expires_at <= clock_timestamp(),
				r.fingerprint, r.principal, r.method, r.path, r.status, r.headers, r.body, r.dropped, r.created_at, r.expires_at
			FROM (VALUES (1)) one LEFT JOIN ` + table + ` r ON r.tenant_id = $1 AND r.key_hash = $2`,
		insertSQL: `INSERT INTO ` + table + ` (tenant_id, key_hash, fingerprint, principal, method, path, status, headers, body, dropped, expires_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, COALESCE($11::timestamptz, clock_timestamp()) + $12::interval)`,
		expireSQL: `DELETE FROM ` + table + ` WHERE tenant_id = $1 AND key_hash = $2 AND expires_at <= clock_timestamp()`,
		cleanSQL: `DELETE FROM ` + table + ` WHERE (tenant_id, key_hash) IN (
				SELECT tenant_id, key_hash FROM ` + table + ` WHERE expires_at <= clock_timestamp()
				ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)
			RETURNING tenant_id, key_hash`,
	}, nil
}

// TunePool sets, where cfg does not say otherwise, what bounds the time for which a client that was cut off holds a key: sessions
// that are idle in a transaction end after 30 s, and dead connections are noticed. A connection pooler between here and
// Postgres may refuse such settings; then they belong to the role (ALTER ROLE … SET).
func TunePool(cfg *pgxpool.Config) {
	for name, value := range map[string]string{
		"idle_in_transaction_session_timeout": "30s",
		"client_connection_check_interval":    "5s",
		"tcp_keepalives_idle":                 "15",
		"tcp_keepalives_interval":             "5",
		"tcp_keepalives_count":                "3",
	} {
		if _, ok := cfg.ConnConfig.RuntimeParams[name]; !ok {
			cfg.ConnConfig.RuntimeParams[name] = value
		}
	}
}

// retries is how often Begin tries again after an error that says so.
const retries = 3

const (
	firstPause = 4 * time.Millisecond // between two looks at a request that another process executes; it doubles
	lastPause  = 64 * time.Millisecond
)

// Begin implements [Store]. While it waits for another attempt it holds no connection.
func (p *Postgres) Begin(ctx context.Context, req Request) (Attempt, Outcome, error) {
	failed := func(err error) (Attempt, Outcome, error) {
		return nil, Outcome{}, fmt.Errorf("idempotency: look a key up: %w", err)
	}
	if p.repeats.Load() {
		if out, err := p.look(ctx, req); err != nil {
			return failed(err)
		} else if out.State != Fresh {
			return nil, out, nil
		}
	}
	until, failures := time.Now().Add(req.Wait), 0
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		a, out, err := p.try(ctx, req)
		if err != nil {
			if failures++; failures <= retries && takenBack(err) {
				continue
			}
			return failed(err)
		}
		if a != nil {
			return a, out, nil
		}
		left := time.Until(until)
		if out.State != Busy || left <= 0 {
			return nil, out, nil
		}
		select {
		case <-ctx.Done():
			return nil, out, nil
		case <-time.After(min(pause, left)):
		}
	}
}

// takenBack says whether Postgres took a transaction back for another's sake: 40001 is a serialization failure, 40P01 a deadlock.
func takenBack(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == "40001" || pg.Code == "40P01")
}

// look finds what is kept, outside a transaction: what it finds stays so. Fresh is nothing, so far.
func (p *Postgres) look(ctx context.Context, req Request) (Outcome, error) {
	var past bool
	var found foundRecord
	if err := p.pool.QueryRow(ctx, p.lookSQL, req.Tenant, req.Key[:], req.ends()).Scan(found.columns(&past)...); err != nil {
		return Outcome{}, err
	}
	p.repeats.Store(found.live())
	switch {
	case found.live():
		return found.outcome(req)
	case past:
		return Outcome{State: Expired}, nil
	}
	return Outcome{State: Fresh}, nil
}

// try begins the transaction, takes the lock and looks the record up, in one round trip. The look is a statement of its own
// behind the lock: its snapshot sees what the lock's last holder committed. READ COMMITTED is set whatever the database's
// default, for the same reason.
func (p *Postgres) try(ctx context.Context, req Request) (*postgresAttempt, Outcome, error) {
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return nil, Outcome{}, err
	}
	free := true
	defer func() {
		if free {
			conn.Release() // which closes it if it is in a transaction still
		}
	}()
	locked := true
	var past bool
	var found foundRecord
	b := &pgx.Batch{}
	b.Queue("BEGIN ISOLATION LEVEL READ COMMITTED")
	if !p.noLock {
		b.Queue("SELECT pg_try_advisory_xact_lock($1)", req.lockID()).QueryRow(func(row pgx.Row) error { return row.Scan(&locked) })
	}
	b.Queue(p.lookSQL, req.Tenant, req.Key[:], req.ends()).QueryRow(func(row pgx.Row) error { return row.Scan(found.columns(&past)...) })
	if err := crash.After("idempotency-begin", conn.SendBatch(ctx, b).Close()); err != nil {
		return nil, Outcome{}, err
	}
	live := found.live()
	p.repeats.Store(live)
	if !live && !past && locked {
		a := &postgresAttempt{store: p, conn: conn, req: req, expired: found.exists()}
		if err := a.expire(ctx); err != nil {
			return nil, Outcome{}, err
		}
		a.ctx = WithTx(ctx, &lentTx{conn: conn.Conn()})
		free = false
		return a, Outcome{State: Fresh}, nil
	}
	if _, err := conn.Exec(ctx, "ROLLBACK"); err != nil {
		return nil, Outcome{}, err
	}
	switch {
	case live:
		out, err := found.outcome(req)
		return nil, out, err
	case past:
		return nil, Outcome{State: Expired}, nil
	}
	return nil, Outcome{State: Busy, RetryAfter: time.Second}, nil
}

// lockID is the advisory lock of a request's name. Two names with one id cost a 409, and nothing else.
func (r Request) lockID() int64 {
	f := newFields()
	f.add("oncebox idempotency")
	f.add(r.Tenant)
	f.Write(r.Key[:])
	return int64(binary.BigEndian.Uint64(f.Sum(nil)))
}

// ends is when the record of a request that says its own age is over; nil of another.
func (r Request) ends() *time.Time {
	if r.Minted.IsZero() {
		return nil
	}
	at := r.Minted.Add(r.Retention)
	return &at
}

// A foundRecord is a row of the table, or none.
type foundRecord struct {
	expired            *bool
	fingerprint        []byte
	header, body       []byte
	principal          *string
	method, path       *string
	status             *int16
	dropped            *bool
	createdAt, expires *time.Time
}

func (f *foundRecord) columns(past *bool) []any {
	return []any{past, &f.expired, &f.fingerprint, &f.principal, &f.method, &f.path, &f.status, &f.header, &f.body, &f.dropped,
		&f.createdAt, &f.expires}
}

func (f *foundRecord) exists() bool { return f.expired != nil }

func (f *foundRecord) live() bool { return f.exists() && !*f.expired }

// outcome is what a live record is to req.
func (f *foundRecord) outcome(req Request) (Outcome, error) {
	if !req.Fingerprint.Equal(Fingerprint(f.fingerprint)) {
		return Outcome{State: Mismatch}, nil
	}
	rec, err := f.record()
	return Outcome{State: Replay, Record: rec}, err
}

func (f *foundRecord) record() (Record, error) {
	header, err := DecodeHeader(f.header)
	return Record{Fingerprint: Fingerprint(f.fingerprint), Principal: *f.principal, Method: *f.method, Path: *f.path,
		Response:  Response{Status: int(*f.status), Header: header, Body: f.body, Dropped: *f.dropped},
		CreatedAt: *f.createdAt, ExpiresAt: *f.expires}, err
}

// Lookup implements [Operator]. A request that is being worked on is not seen.
func (p *Postgres) Lookup(ctx context.Context, tenant string, key KeyHash) (rec Record, state State, err error) {
	var past bool
	var found foundRecord
	err = p.pool.QueryRow(ctx, p.lookSQL, tenant, key[:], nil).Scan(found.columns(&past)...)
	if err != nil {
		return Record{}, 0, fmt.Errorf("idempotency: look a key up: %w", err)
	}
	if !found.live() {
		return Record{}, 0, nil
	}
	rec, err = found.record()
	return rec, Replay, err
}

// Resolve implements [Operator]: with a transaction no outcome is unknown, so it returns [ErrNotUnknown].
func (*Postgres) Resolve(context.Context, string, KeyHash, *Response) error { return ErrNotUnknown }

// Clean deletes one batch of expired records and returns their number. Batches of several processes do not wait for each other.
func (p *Postgres) Clean(ctx context.Context) (n int, err error) {
	err = pgx.BeginTxFunc(ctx, p.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, p.cleanSQL, p.cfg.CleanBatch)
		if err != nil {
			return err
		}
		keys, err := pgx.CollectRows(rows, pgx.RowToStructByPos[ExpiredKey])
		if err != nil || len(keys) == 0 {
			return err
		}
		n = len(keys)
		return p.cfg.Forget(ctx, tx, keys)
	})
	if err != nil {
		return 0, fmt.Errorf("idempotency: clean: %w", err)
	}
	return n, nil
}

// Run cleans, batch after batch, until ctx is done; then it returns nil. It returns an error that a repetition does not mend.
func (p *Postgres) Run(ctx context.Context) error {
	for {
		n, err := p.Clean(ctx)
		var pg *pgconn.PgError
		if errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "42501") { // no such table, no right to it
			return err
		}
		if n == p.cfg.CleanBatch && ctx.Err() == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(p.cfg.CleanEvery):
		}
	}
}
