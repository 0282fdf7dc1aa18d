package outboxtest_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
	"github.com/oncebox/oncebox/outbox/outboxtest"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

// failing records what it is told, in place of a test that would fail.
type failing struct {
	testing.TB
	said string
}

func (f *failing) Helper() {}

func (f *failing) Fatalf(format string, args ...any) {
	f.said = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// fails is what Inserted says where it fails the test.
func fails(t *testing.T, tx pgx.Tx, typ string) string {
	f := &failing{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		outboxtest.Inserted(f, tx, typ)
	}()
	<-done
	return f.said
}

func TestInsertedIsTheOneEventOfTheTransaction(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := stacktest.Postgres(t, migrations.Outbox)
	w, err := outbox.NewWriter(outbox.WriterConfig{Source: "test"})
	if err != nil {
		t.Fatal(err)
	}
	add := func(tx pgx.Tx, typ string) {
		t.Helper()
		e := oncebox.Event{Type: typ, Key: "k", Version: 3, CorrelationID: "c", Headers: map[string]string{"x": "y"}, Data: []byte("d")}
		if err := w.Add(ctx, tx, e); err != nil {
			t.Fatal(err)
		}
	}
	if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { add(tx, "a.v1"); return nil }); err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	if said := fails(t, tx, "a.v1"); said == "" {
		t.Error("an event of another transaction was taken")
	}
	add(tx, "a.v1")
	add(tx, "b.v1")
	e := outboxtest.Inserted(t, tx, "a.v1")
	if e.ID == "" || e.Seq == 0 || e.Source != "test" || e.Key != "k" || e.Version != 3 || e.CorrelationID != "c" || len(e.Headers) != 1 || string(e.Data) != "d" {
		t.Errorf("got %+v", e)
	}
	add(tx, "a.v1")
	if said := fails(t, tx, "a.v1"); said != "the transaction added 2 events of type a.v1, want 1" {
		t.Errorf("said %q", said)
	}
}
