package outbox_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5/stdlib"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

// The tables are made by another migration tool, in a schema of one's own, and the events added by database/sql.
func TestAnOutboxInASchemaOfOnesOwn(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := rigOn(t, stacktest.Postgres(t), stacktest.NATS(t))
	ddl, err := migrations.Outbox.In("Our Events").SQL()
	must(t, err)
	db := stdlib.OpenDBFromPool(r.pool)
	defer db.Close()
	conn, err := r.pool.Acquire(ctx)
	must(t, err)
	_, err = conn.Conn().PgConn().Exec(ctx, ddl).ReadAll()
	must(t, err)
	_, err = conn.Exec(ctx, "RESET search_path")
	must(t, err)
	conn.Release()

	w, err := outbox.NewWriter(outbox.WriterConfig{Source: "test", Schema: "Our Events"})
	must(t, err)
	relay := r.relay(often, func(c *outbox.RelayConfig) { c.Schema = "Our Events" })
	events := []oncebox.Event{event("k", 1), event("k", 2)}
	undone, err := db.BeginTx(ctx, nil)
	must(t, err)
	must(t, w.AddSQL(ctx, undone, event("k", 9)))
	must(t, undone.Rollback())
	tx, err := db.BeginTx(ctx, nil)
	must(t, err)
	must(t, w.AddSQL(ctx, tx, events...))
	must(t, tx.Commit())
	r.eventuallyLogged(events...)
	relay.stop()
	s, err := relay.Status(ctx)
	if err != nil || s.StreamSeq != 2 {
		t.Errorf("status is %+v, %v", s, err)
	}
}
