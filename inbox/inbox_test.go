package inbox_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A rig is an inbox whose handler's effect is a row, without any key that would hide a second one.
type rig struct {
	t    *testing.T
	pool *pgxpool.Pool
	in   *inbox.Inbox
}

func newRig(t *testing.T) *rig {
	t.Helper()
	pool := stacktest.Postgres(t, migrations.Inbox, migrations.Outbox)
	must(t, createEffect(context.Background(), pool))
	r := &rig{t: t, pool: pool}
	r.in = r.inbox("consumer")
	return r
}

func createEffect(ctx context.Context, pool *pgxpool.Pool) error {
	_, err := pool.Exec(ctx, "CREATE TABLE effect (id text, data bytea)")
	return err
}

// migrateInbox makes an empty database one of a rig.
func migrateInbox(ctx context.Context, pool *pgxpool.Pool) error {
	return errors.Join(migrations.Up(ctx, pool, migrations.Inbox), createEffect(ctx, pool))
}

func (r *rig) inbox(consumer string) *inbox.Inbox {
	r.t.Helper()
	return r.inboxWith(inbox.Config{Consumer: consumer})
}

func (r *rig) inboxWith(cfg inbox.Config) *inbox.Inbox {
	r.t.Helper()
	cfg.Logger = slog.New(slog.NewTextHandler(r.t.Output(), nil))
	in, err := inbox.New(r.pool, cfg)
	must(r.t, err)
	return in
}

func toMessages(es []oncebox.Event) []*message.Message {
	ms := make([]*message.Message, len(es))
	for i, e := range es {
		ms[i] = e.Message()
	}
	return ms
}

// effect is a handler that inserts a row.
func effect(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
	_, err := tx.Exec(ctx, "INSERT INTO effect VALUES ($1, $2)", e.ID, e.Data)
	return err
}

func event(data string) oncebox.Event {
	id := uuid.NewString()
	return oncebox.Event{ID: id, Source: "test", Type: "test.happened.v1", Key: "key of " + id, Seq: 7, Data: []byte(data)}
}

// count counts rows.
func (r *rig) count(sql string, args ...any) (n int) {
	r.t.Helper()
	must(r.t, r.pool.QueryRow(context.Background(), "SELECT count(*) FROM "+sql, args...).Scan(&n))
	return n
}

func (r *rig) wantEffects(want int) {
	r.t.Helper()
	if n := r.count("effect"); n != want {
		r.t.Errorf("%d effects, want %d", n, want)
	}
}

// wantLetters compares the classes of the dead letters.
func (r *rig) wantLetters(classes ...string) {
	r.t.Helper()
	rows, err := r.pool.Query(context.Background(), "SELECT class FROM oncebox.dead_letter ORDER BY first_seen")
	must(r.t, err)
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(r.t, err)
	if diff := cmp.Diff(strings.Join(classes, " "), strings.Join(got, " ")); diff != "" {
		r.t.Errorf("dead letters (-want +got):\n%s", diff)
	}
}

func TestARedeliveryChangesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := event("a")
	for i := range 3 {
		m, repeated := e.Message(), false
		m.SetContext(oncebox.WithRepeated(context.Background(), func() { repeated = true }))
		must(t, r.in.One(effect)(m))
		if repeated != (i > 0) {
			t.Errorf("delivery %d: the subscriber hears %t of whether it was handled before", i+1, repeated)
		}
	}
	r.wantEffects(1)
	r.wantLetters()
	if n := r.count("oncebox.inbox WHERE consumer = 'consumer' AND source = 'test' AND id = $1 AND seq = 7 AND state = 'done'", e.ID); n != 1 {
		t.Errorf("%d inbox rows, want 1", n)
	}
}

func TestOneMessageManyTimesAtOnceHasOneEffect(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	// Whatever the database's default: under REPEATABLE READ the loser would see an error, not the winner's row.
	_, err := r.pool.Exec(context.Background(), "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = ''repeatable read''', current_database()); END $$")
	must(t, err)
	r.pool.Reset()
	e := event("a")
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if err := r.in.One(effect)(e.Message()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	r.wantEffects(1)
}

func TestAnErrorTakesTheEffectBackAndTheMessageCanComeAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := event("a")
	passing := errors.New("passing")
	err := r.in.One(func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
		return errors.Join(effect(ctx, tx, e), passing)
	})(e.Message())
	if !errors.Is(err, passing) {
		t.Errorf("got %v, want the handler's error", err)
	}
	r.wantEffects(0)
	if n := r.count("oncebox.inbox"); n != 0 {
		t.Errorf("%d inbox rows after the rollback", n)
	}
	must(t, r.in.One(effect)(e.Message()))
	r.wantEffects(1)
	r.wantLetters()
}

func TestAPanicIsAnErrorOfTheHandler(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := event("a")
	err := r.in.One(func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
		must(t, effect(ctx, tx, e))
		panic("at the disco")
	})(e.Message())
	if err == nil || !strings.Contains(err.Error(), "at the disco") {
		t.Errorf("got %v, want the panic's value", err)
	}
	r.wantEffects(0)
	must(t, r.in.One(effect)(e.Message()))
	r.wantEffects(1)
}

func TestAPermanentErrorIsADeadLetterOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := event("\x00\xff")
	e.Key, e.TenantID, e.Version, e.Headers = "k", "acme", 3, map[string]string{"x": "y"}
	handler := func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
		must(t, effect(ctx, tx, e))
		return inbox.Permanent("no_use", errors.New("it will never work"))
	}
	for range 3 {
		m := e.Message()
		m.SetContext(oncebox.WithDelivered(context.Background(), 2))
		must(t, r.in.One(handler)(m))
	}
	r.wantEffects(0)
	r.wantLetters("no_use")
	type letter struct {
		MessageID, Topic, Key, TenantID, Class, Reason, State, Header string
		Version, Seq                                                  int64
		Attempts                                                      int
		Payload                                                       []byte
	}
	rows, err := r.pool.Query(context.Background(), `SELECT message_id, topic, key, tenant_id, class, reason, state, headers->>'x',
		version, seq, attempts, payload FROM oncebox.dead_letter`)
	must(t, err)
	got, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[letter])
	must(t, err)
	want := letter{MessageID: e.ID, Topic: e.Type, Key: "k", TenantID: "acme", Class: "no_use", Reason: "it will never work",
		State: "dead", Header: "y", Version: 3, Seq: 7, Attempts: 2, Payload: []byte("\x00\xff")}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if n := r.count("oncebox.inbox WHERE state = 'dead'"); n != 1 {
		t.Errorf("%d inbox rows of dead messages, want 1", n)
	}
	must(t, r.in.One(effect)(e.Message()))
	r.wantEffects(0) // it is remembered as handled
}

func TestAMessageThatIsNoEventIsADeadLetterOnce(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]func() *message.Message{
		"empty":        func() *message.Message { return message.NewMessage("", nil) },
		"random bytes": func() *message.Message { return message.NewMessage("x", []byte{0, 1, 0xff, 0xfe}) },
		"NUL in a header": func() *message.Message {
			m := event("a").Message()
			m.UUID, m.Metadata["ce-sequence"], m.Metadata["h\x00"] = "same", "-1", "\xff\x00"
			return m
		},
		"refused by the subscriber": func() *message.Message {
			m := event("a").Message()
			m.UUID, m.Metadata[oncebox.HeaderRefused] = "same", "header ce-id is sent 2 times"
			return m
		},
		"id of a megabyte": func() *message.Message {
			m := event("a").Message()
			m.Metadata["ce-id"] = strings.Repeat("x", 1<<20)
			m.UUID = m.Metadata["ce-id"]
			return m
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			for range 2 {
				must(t, r.in.One(effect)(m()))
			}
			r.wantEffects(0)
			r.wantLetters("undecodable")
		})
	}
}

func TestTheSameIDWithOtherContentIsAConflict(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := event("a")
	second := first
	second.Data = []byte("b")
	must(t, r.in.One(effect)(first.Message()))
	for range 2 {
		must(t, r.in.One(effect)(second.Message()))
	}
	must(t, r.in.One(effect)(first.Message()))
	r.wantEffects(1)
	if n := r.count("effect WHERE data = 'a'"); n != 1 {
		t.Error("the first effect did not stay")
	}
	r.wantLetters("conflict")
}

func TestWhatPostgresCannotHoldIsADeadLetter(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
		_, err := tx.Exec(ctx, "INSERT INTO effect VALUES ($1, NULL)", string(e.Data))
		return err
	}
	must(t, r.in.One(h)(event("a\x00b").Message()))
	must(t, r.in.One(h)(event("good").Message()))
	r.wantEffects(1)
	r.wantLetters("bad_data")
}

func TestAnUnknownTypeIsDone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := inbox.ByType(map[string]inbox.Handler{"test.other.v1": effect})
	must(t, r.in.One(h)(event("a").Message()))
	r.wantEffects(0)
	r.wantLetters()
	if n := r.count("oncebox.inbox WHERE state = 'done'"); n != 1 {
		t.Errorf("%d inbox rows, want 1", n)
	}
}

func TestTypedRefusesWhatIsNotItsType(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := inbox.Typed(func(ctx context.Context, tx pgx.Tx, e oncebox.Event, data struct{ N int }) error {
		if data.N != 3 {
			t.Errorf("got %d", data.N)
		}
		return effect(ctx, tx, e)
	})
	for _, data := range []string{"", "null and void", `{"n":"three"}`, `{"n":1e400}`, strings.Repeat("[", 20000),
		`{"n":3,"n":3}`, `{"n":3,"N":4}`, `{"n":3,"x":[{"a":{},"a":1}]}`, `{"n":3,"x":"` + "\xff" + `"}`, `{"n":3} {}`} {
		must(t, r.in.One(h)(event(data).Message()))
	}
	must(t, r.in.One(h)(event(`{"n":3,"new":true,"x":[{"a":1,"n":"n"},{"a":"a"},"a","a"]}`).Message()))
	r.wantEffects(1)
	r.wantLetters(slices.Repeat([]string{"malformed"}, 10)...)
}

func TestEachConsumerAndEachSourceHasItsOwn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := event("a")
	other := e
	other.Source = "elsewhere"
	second := r.inbox("second")
	for range 2 {
		must(t, r.in.One(effect)(e.Message()))
		must(t, second.One(effect)(e.Message()))
		must(t, r.in.One(effect)(other.Message()))
	}
	r.wantEffects(3)
}

func TestAnIDThatIsNoUUIDIsRememberedToo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e, other := event("a"), event("a")
	e.ID, other.ID = "order/17", "order/18"
	for range 2 {
		must(t, r.in.One(effect)(e.Message()))
		must(t, r.in.One(effect)(other.Message()))
	}
	r.wantEffects(2)
}

func TestWhatTheHandlerSendsCommitsWithItsEffect(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w, err := outbox.NewWriter(outbox.WriterConfig{Source: "test"})
	must(t, err)
	e := event("a")
	failing := true
	committed := 0
	in, err := inbox.New(r.pool, inbox.Config{Consumer: "c", Committed: func() { committed++ }})
	must(t, err)
	h := in.One(func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
		id := oncebox.DerivedID(e, "c", "test.answered.v1", 0)
		if err := w.Add(ctx, tx, oncebox.Event{ID: id, Type: "test.answered.v1", Key: "k"}); err != nil {
			return err
		}
		if failing {
			return errors.New("passing")
		}
		return effect(ctx, tx, e)
	})
	if h(e.Message()) == nil {
		t.Error("the handler's error got lost")
	}
	if n := r.count("oncebox.outbox"); n != 0 || committed != 0 {
		t.Errorf("%d events in the outbox and %d commits after a rollback", n, committed)
	}
	failing = false
	for range 2 {
		must(t, h(e.Message()))
	}
	r.wantEffects(1)
	if n := r.count("oncebox.outbox"); n != 1 || committed != 1 {
		t.Errorf("%d events in the outbox and %d commits, want one of each", n, committed)
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	if _, err := inbox.New(nil, inbox.Config{}); err == nil {
		t.Error("New took a Config without a consumer")
	}
}
