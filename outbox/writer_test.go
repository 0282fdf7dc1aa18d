package outbox_test

import (
	"context"
	"errors"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

// versions are those of the outbox's rows, in order of seq.
func versions(t *testing.T, q interface {
	Query(context.Context, string, ...any) (pgx.Rows, error)
}) []int64 {
	t.Helper()
	rows, err := q.Query(context.Background(), "SELECT version FROM oncebox.outbox ORDER BY seq")
	must(t, err)
	got, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	must(t, err)
	return got
}

func TestAddKeepsTheOrderOfItsEvents(t *testing.T) {
	t.Parallel()
	pool := stacktest.Postgres(t, migrations.Outbox)
	w, err := outbox.NewWriter(outbox.WriterConfig{Source: "test"})
	must(t, err)
	var events []oncebox.Event
	var want []int64
	for i := range int64(2000) {
		events, want = append(events, event("k", i)), append(want, i)
	}
	must(t, pgx.BeginFunc(context.Background(), pool, func(tx pgx.Tx) error { return w.Add(context.Background(), tx, events...) }))
	if diff := cmp.Diff(want, versions(t, pool)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestAddIsUndoneWithItsTransaction(t *testing.T) {
	t.Parallel()
	r := &rig{t: t, pool: stacktest.Postgres(t, migrations.Outbox)}
	var err error
	r.writer, err = outbox.NewWriter(outbox.WriterConfig{Source: "test"})
	must(t, err)
	tx := r.begin()
	r.add(tx, event("k", 1))
	must(t, tx.Rollback(context.Background()))
	if got := versions(t, r.pool); len(got) != 0 {
		t.Errorf("rows after the rollback: %v", got)
	}
}

func TestARefusedEventLeavesTheTransactionUsable(t *testing.T) {
	t.Parallel()
	r := &rig{t: t, pool: stacktest.Postgres(t, migrations.Outbox)}
	var err error
	r.writer, err = outbox.NewWriter(outbox.WriterConfig{Source: "test", MaxPayload: 4096})
	must(t, err)
	ctx := context.Background()
	tx := r.begin()
	large := event("k", 1)
	large.Data = make([]byte, 4096)
	if err := r.writer.Add(ctx, tx, event("k", 1), large); !errors.Is(err, outbox.ErrTooLarge) {
		t.Errorf("a large event: got %v, want ErrTooLarge", err)
	}
	if err := r.writer.Add(ctx, tx, event("", 1)); !errors.Is(err, oncebox.ErrInvalid) {
		t.Errorf("an event without a key: got %v, want ErrInvalid", err)
	}
	foreign := event("k", 1)
	foreign.Source = "elsewhere"
	if err := r.writer.Add(ctx, tx, foreign); !errors.Is(err, oncebox.ErrInvalid) {
		t.Errorf("an event of another source: got %v, want ErrInvalid", err)
	}
	if err := r.writer.Queue(&pgx.Batch{}, event("", 1)); !errors.Is(err, oncebox.ErrInvalid) {
		t.Errorf("the same in a batch: got %v, want ErrInvalid", err)
	}
	r.add(tx, event("k", 2))
	must(t, tx.Commit(ctx))
	if diff := cmp.Diff([]int64{2}, versions(t, r.pool)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestQueueIsPartOfTheCallersBatch(t *testing.T) {
	t.Parallel()
	pool := stacktest.Postgres(t, migrations.Outbox)
	w, err := outbox.NewWriter(outbox.WriterConfig{Source: "test"})
	must(t, err)
	ctx := context.Background()
	must(t, pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		b := &pgx.Batch{}
		b.Queue("SELECT 1")
		must(t, w.Queue(b, event("k", 1), event("k", 2)))
		return tx.SendBatch(ctx, b).Close()
	}))
	if diff := cmp.Diff([]int64{1, 2}, versions(t, pool)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestPublisherWritesInItsTransaction(t *testing.T) {
	t.Parallel()
	pool := stacktest.Postgres(t, migrations.Outbox)
	w, err := outbox.NewWriter(outbox.WriterConfig{Source: "test"})
	must(t, err)
	ctx := context.Background()
	publish := func(topic string, m ...*message.Message) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			p, err := w.Publisher(tx)
			must(t, err)
			return p.Publish(topic, m...)
		})
	}
	whole := event("order-1", 7)
	plain := message.NewMessage(uuid.NewString(), []byte("plain"))
	plain.Metadata["name"] = "Happened"
	must(t, publish("test.happened.v1", whole.Message(), plain))

	type row struct {
		ID, Topic, Key, Headers string
		Version                 int64
		Payload                 []byte
	}
	rows, err := pool.Query(ctx, "SELECT id::text, topic, key, headers::text, version, payload FROM oncebox.outbox ORDER BY seq")
	must(t, err)
	got, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	must(t, err)
	if diff := cmp.Diff([]row{
		{whole.ID, "test.happened.v1", "order-1", `{}`, 7, whole.Data},
		{plain.UUID, "test.happened.v1", plain.UUID, `{"name": "Happened"}`, 0, plain.Payload},
	}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	if err := publish("test.other.v1", whole.Message()); !errors.Is(err, oncebox.ErrInvalid) {
		t.Errorf("an event under another topic: got %v, want ErrInvalid", err)
	}
	rollback := errors.New("rollback")
	if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		p, err := w.Publisher(tx)
		must(t, err)
		must(t, p.Publish("test.happened.v1", event("k", 1).Message()))
		return rollback
	}); !errors.Is(err, rollback) {
		t.Fatal(err)
	}
	if n := len(versions(t, pool)); n != 2 {
		t.Errorf("%d rows, want the 2 of the transaction that committed", n)
	}
}

func TestWriterConfigIsChecked(t *testing.T) {
	t.Parallel()
	for _, cfg := range []outbox.WriterConfig{{}, {Source: "s", MaxPayload: -1}} {
		if _, err := outbox.NewWriter(cfg); err == nil {
			t.Errorf("NewWriter(%+v) took it", cfg)
		}
	}
}
