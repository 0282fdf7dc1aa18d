package inboxtest_test

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/inbox/inboxtest"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

// A recorder is a test whose failures are counted, not suffered.
type recorder struct {
	testing.TB
	errors int
}

func (r *recorder) Helper()               {}
func (r *recorder) Errorf(string, ...any) { r.errors++ }

func TestOneEffectTellsAnInboxFromNone(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := stacktest.Postgres(t, migrations.Inbox)
	if _, err := pool.Exec(ctx, "CREATE TABLE effect (id text)"); err != nil {
		t.Fatal(err)
	}
	insert := func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
		_, err := tx.Exec(ctx, "INSERT INTO effect VALUES ($1)", e.ID)
		return err
	}
	for name, consumer := range map[string]func() message.NoPublishHandlerFunc{
		"inbox": func() message.NoPublishHandlerFunc {
			in, err := inbox.New(pool, inbox.Config{Consumer: "c"})
			if err != nil {
				t.Fatal(err)
			}
			return in.One(insert)
		},
		"none": func() message.NoPublishHandlerFunc {
			return func(m *message.Message) error {
				e, err := oncebox.Decode(m)
				if err != nil {
					return err
				}
				return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return insert(ctx, tx, e) })
			}
		},
	} {
		e := oncebox.Event{ID: uuid.NewString(), Source: "test", Type: "test.happened.v1", Key: "k"}
		r := &recorder{TB: t}
		inboxtest.OneEffect(r, consumer, e, func() (n int) {
			if err := pool.QueryRow(ctx, "SELECT count(*) FROM effect WHERE id = $1", e.ID).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		})
		if want := name == "none"; (r.errors > 0) != want {
			t.Errorf("%s: %d failures", name, r.errors)
		}
	}
}
