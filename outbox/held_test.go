package outbox_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

// TestTicksAndSavesStayFastWhileATransactionIsOpen has a transaction keep each version of the cursor's row, with a Postgres that syncs
// and the relay's own times. How fast is looked at where the machine has nothing else to do: in make soak, for ten minutes.
func TestTicksAndSavesStayFastWhileATransactionIsOpen(t *testing.T) {
	length := 2 * time.Second
	if soaking() { // alone
		length = 10 * time.Minute
	} else {
		t.Parallel()
	}
	ctx := context.Background()
	pg, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{})
	must(t, err)
	t.Cleanup(func() { must(t, pg.Remove()) })
	cfg, err := pgxpool.ParseConfig(pg.URL("postgres"))
	must(t, err)
	var clock writeClock
	cfg.ConnConfig.Tracer = &clock
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	must(t, err)
	t.Cleanup(pool.Close)
	must(t, migrations.Up(ctx, pool, migrations.Outbox))
	r := rigOn(t, pool, stacktest.NATS(t))
	relay := r.relay(func(c *outbox.RelayConfig) {
		*c = outbox.RelayConfig{Name: c.Name, Registerer: c.Registerer, Logger: c.Logger}
	})
	stacktest.Eventually(t, 10*time.Second, "it leads", func() (bool, error) { return relay.Leading(), nil })
	open, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	must(t, err)
	t.Cleanup(func() { _ = open.Rollback(ctx) })
	r.add(open, event("open", 1)) // which takes a snapshot and an id
	n := 0
	load := time.NewTicker(10 * time.Millisecond)
	defer load.Stop()
	for end := time.Now().Add(length); time.Now().Before(end); n++ {
		r.commit(event("k", int64(n+1)))
		relay.Wake()
		<-load.C
	}
	stacktest.Eventually(t, 10*time.Second, "all is sent", func() (bool, error) { return reached(r.logged(), n) })
	relay.stop()
	ticks, saves := p99(clock.ticks), p99(clock.saves)
	t.Logf("%d events in %s: %d looks and ticks, p99 %s; %d saves, p99 %s", n, length, len(clock.ticks), ticks, len(clock.saves), saves)
	if len(clock.ticks) < n/10 || len(clock.saves) == 0 {
		t.Error("the relay was hardly at work")
	}
	if limit := 5 * time.Millisecond; soaking() && (ticks > limit || saves > limit) {
		t.Errorf("p99 is above %s", limit)
	}
}

// A writeClock takes the time of a pool's ticks and of its writes of the cursor.
type writeClock struct {
	mu           sync.Mutex
	ticks, saves []time.Duration
}

type began struct {
	at time.Time
	to *[]time.Duration
}

func (c *writeClock) begin(ctx context.Context, sql string) context.Context {
	switch {
	case strings.Contains(sql, "outbox_tick") && strings.Contains(sql, "ON CONFLICT DO NOTHING RETURNING"):
		return context.WithValue(ctx, c, began{time.Now(), &c.ticks})
	case strings.Contains(sql, "SET n = $3"):
		return context.WithValue(ctx, c, began{time.Now(), &c.saves})
	}
	return ctx
}

func (c *writeClock) end(ctx context.Context) {
	if b, ok := ctx.Value(c).(began); ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		*b.to = append(*b.to, time.Since(b.at))
	}
}

func (c *writeClock) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	return c.begin(ctx, d.SQL)
}

func (c *writeClock) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	c.end(ctx)
}

func (c *writeClock) TraceBatchStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceBatchStartData) context.Context {
	return c.begin(ctx, d.Batch.QueuedQueries[len(d.Batch.QueuedQueries)-1].SQL)
}

func (c *writeClock) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (c *writeClock) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchEndData) {
	c.end(ctx)
}

func p99(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)*99/100]
}
