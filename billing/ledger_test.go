package billing_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/outbox"
)

// The check of the ledger's foreign key never reads the whole of the charges, also on a connection that planned it when they were few,
// and statistics said so.
func TestTheLedgersForeignKeyIsCheckedByItsIndex(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	must(t, r.handle(request()))
	_, err := r.pool.Exec(t.Context(), "ANALYZE charge")
	must(t, err)
	w, err := outbox.NewWriter(outbox.WriterConfig{Source: billing.Name})
	must(t, err)
	s, err := billing.New(r.pool, w, billing.Config{ChargeLimit: limit})
	must(t, err)
	handle := s.GroupHandler()
	conn, err := r.pool.Acquire(t.Context())
	must(t, err)
	defer conn.Release()
	for range 2 { // the first one plans, the second has many more rows before it
		must(t, pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
			es := make([]oncebox.Event, 100)
			for i := range es {
				es[i] = request()
			}
			for i, err := range handle(t.Context(), tx, es) {
				if err != nil {
					t.Errorf("event %d: %v", i, err)
				}
			}
			var scans int64
			must(t, tx.QueryRow(context.Background(), "SELECT COALESCE(sum(seq_scan), 0) FROM pg_stat_xact_user_tables WHERE relname = 'charge'").Scan(&scans))
			if scans > 0 {
				t.Errorf("the charges were read as a whole %d times", scans)
			}
			return nil
		}))
	}
}
