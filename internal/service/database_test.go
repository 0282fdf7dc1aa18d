package service

import (
	"bytes"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
)

// A database that goes away between the first connection and the look at its migrations is waited for; it is not called unmigrated.
func TestTheLookAtTheMigrationsWaitsForADatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pg := stacktest.OwnPostgres(t, devstack.PostgresConfig{})
	pool, err := pgxpool.New(ctx, pg.URL("postgres"))
	must(t, err)
	defer pool.Close()
	d := Definition{Name: "orders", Line: migrations.Orders}
	must(t, migrations.Up(ctx, pool, d.lines()...))
	must(t, pg.StopImmediate(ctx))
	var waits waitsLog
	checked := start(func() error { return d.checkMigrated(ctx, pool, slog.New(slog.NewTextHandler(&waits, nil))) })
	stacktest.Eventually(t, 20*time.Second, "it waits", func() (bool, error) { return waits.n.Load() > 0, nil })
	must(t, pg.Restart(ctx))
	must(t, <-checked)
}

// waitsLog counts the lines that tell of waiting.
type waitsLog struct{ n atomic.Int64 }

func (w *waitsLog) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte("waiting for Postgres")) {
		w.n.Add(1)
	}
	return len(line), nil
}
