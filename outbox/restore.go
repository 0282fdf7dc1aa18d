package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/oncebox/oncebox/internal/crash"
)

// AfterRestore says what a relay does where its tables were restored into another cluster than the one they were written in,
// whose transaction ids mean something else. Base backups, point-in-time recovery and promotion keep the cluster's identity.
type AfterRestore string

// The values of [AfterRestore].
const (
	// Refuse ends Run with an error.
	Refuse AfterRestore = ""
	// Resend takes every row for new and sends what the log does not hold: after pg_dump and pg_restore. It rewrites the rows'
	// transaction ids, the one place where rows are changed.
	Resend AfterRestore = "resend"
	// Resume goes on where the cursor stands: after pg_upgrade, which keeps transaction ids. It ends Run with an error where
	// rows have ids that this cluster has not come to yet.
	Resume AfterRestore = "resume"
)

// rewriteAtOnce is how many rows get a transaction id of this cluster in one transaction.
const rewriteAtOnce = 10_000

var errRestored = errors.New("the outbox was restored into this cluster, and is read from its beginning")

// checkCluster compares the cluster with the one that the cursor's snapshots are of. It is called under the lease.
func (r *Relay) checkCluster(ctx context.Context) error {
	cursors := pgx.Identifier{r.cfg.Schema, "outbox_cursor"}.Sanitize()
	var here, known string
	err := r.pool.QueryRow(ctx, "SELECT (SELECT system_identifier::text FROM pg_control_system()), cluster FROM "+cursors+" WHERE name = $1", r.cfg.Name).
		Scan(&here, &known)
	if err != nil {
		return fmt.Errorf("read the cluster's identity: %w", err)
	}
	if here == known {
		return nil
	}
	adopt := func() error {
		_, err := r.pool.Exec(ctx, "UPDATE "+cursors+" SET cluster = $3 WHERE name = $1 AND epoch = $2", r.cfg.Name, r.cursor.epoch, here)
		return wrap("note the cluster's identity", err)
	}
	switch {
	case known == "": // new
		return adopt()
	case r.cfg.AfterRestore == Resume:
		var ahead bool
		err := r.pool.QueryRow(ctx, "SELECT COALESCE(max(xid) >= pg_snapshot_xmax(pg_current_snapshot()), false) FROM "+
			pgx.Identifier{r.cfg.Schema, "outbox"}.Sanitize()).Scan(&ahead)
		if err != nil {
			return fmt.Errorf("look for foreign rows: %w", err)
		}
		if ahead {
			return &setupError{errors.New("outbox: rows have transaction ids that this cluster has not come to: AfterRestore cannot be resume")}
		}
		r.log.Warn("relay: going on in another cluster", "was", known, "is", here)
		return adopt()
	case r.cfg.AfterRestore == Resend:
		return r.adoptRows(ctx, known, here)
	}
	return &setupError{fmt.Errorf("outbox: cursor %s is of cluster %s, this one is %s: set AfterRestore to resend after pg_restore, to resume after pg_upgrade",
		r.cfg.Name, known, here)}
}

// adoptRows gives every row a transaction id of this cluster and lets every cursor begin anew: its log is read back from the
// beginning, and what it holds is not sent. It can be broken off and begun again at any point.
func (r *Relay) adoptRows(ctx context.Context, was, is string) error {
	table := func(name string) string { return pgx.Identifier{r.cfg.Schema, name}.Sanitize() }
	var end int64
	if err := r.pool.QueryRow(ctx, "SELECT COALESCE(max(seq), 0) FROM "+table("outbox")).Scan(&end); err != nil {
		return fmt.Errorf("adopt restored rows: %w", err)
	}
	r.log.Warn("relay: adopting restored rows", "was", was, "is", is, "last_seq", end)
	for pos := int64(0); pos < end; {
		var last *int64
		if err := crash.Before("relay-rewrite"); err != nil {
			return err
		}
		err := r.pool.QueryRow(ctx, "WITH page AS (SELECT seq FROM "+table("outbox")+` WHERE seq > $1 AND seq <= $2 ORDER BY seq LIMIT $3),
			changed AS (UPDATE `+table("outbox")+` AS o SET xid = pg_current_xact_id() FROM page WHERE o.seq = page.seq)
			SELECT max(seq) FROM page`, pos, end, rewriteAtOnce).Scan(&last)
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "42501" {
			return &setupError{fmt.Errorf("outbox: adopting restored rows needs the rights of their owner: run the relay once as that role: %w", err)}
		}
		if err = crash.After("relay-rewrite", err); err != nil {
			return fmt.Errorf("adopt restored rows behind %d: %w", pos, err)
		}
		if last == nil {
			break
		}
		pos = *last
		if err := r.cursor.save(ctx, r.pos, r.created); err != nil { // renews the lease
			return err
		}
	}
	if err := crash.Before("relay-adopt"); err != nil {
		return err
	}
	err := pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, "SELECT FROM "+table("outbox_cursor")+" WHERE name = $1 AND epoch = $2 FOR UPDATE", r.cfg.Name, r.cursor.epoch)
		if err == nil && tag.RowsAffected() == 0 {
			err = errFenced
		}
		if err != nil {
			return err
		}
		for _, sql := range []string{
			"DELETE FROM " + table("outbox_tick"),
			"INSERT INTO " + table("outbox_tick") + " (cursor, n, epoch, snap, stream_seq, slot) SELECT name, 0, 0, '1:1:', 0, 0 FROM " + table("outbox_cursor"),
			"UPDATE " + table("outbox_cursor") + " SET cluster = (SELECT system_identifier::text FROM pg_control_system()), n = 1, seq = 0, stream_seq = 0",
		} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	})
	if err = crash.After("relay-adopt", err); err != nil {
		return fmt.Errorf("begin anew after a restore: %w", err)
	}
	return errRestored // the lease is taken once more, on the new ticks
}
