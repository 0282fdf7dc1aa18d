// Package examples tests that the example programs do what they say.
package examples

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Each is to fit on a screen.
func TestExamplesAreShort(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"outbox", "inbox"} {
		b, err := os.ReadFile(filepath.Join(name, "main.go"))
		must(t, err)
		if lines := strings.Count(string(b), "\n"); lines >= 60 {
			t.Errorf("examples/%s has %d lines, want below 60", name, lines)
		}
	}
}

// A sale that is posted to the one is counted by the other, once, though it is delivered again.
func TestASaleIsCountedOnce(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	bin := t.TempDir()
	must(t, devstack.Build(ctx, bin, "-buildvcs=false", "./examples/outbox", "./examples/inbox"))
	nats := stacktest.NATS(t)
	port, err := devstack.FreePort()
	must(t, err)
	listen := fmt.Sprintf("127.0.0.1:%d", port)
	start := func(name, database string) {
		t.Helper()
		p, err := devstack.StartProcess(devstack.ProcessConfig{Path: filepath.Join(bin, name), Output: t.Output(),
			Env: []string{"DATABASE_URL=" + database, "NATS_URL=" + nats.URL(), "LISTEN=" + listen}})
		must(t, err)
		t.Cleanup(func() { must(t, p.Kill()) })
	}
	start("outbox", stacktest.PostgresURL(t))
	stock := stacktest.PostgresURL(t)
	start("inbox", stock)
	stacktest.Eventually(t, 30*time.Second, "a sale is accepted", func() (bool, error) {
		res, err := http.Post("http://"+listen+"/sales/tea", "", nil)
		if err != nil {
			return false, err
		}
		defer res.Body.Close()
		return res.StatusCode == http.StatusCreated, nil
	})
	pool, err := pgxpool.New(ctx, stock)
	must(t, err)
	t.Cleanup(pool.Close)
	counted := func() (bool, error) {
		var times int
		err := pool.QueryRow(ctx, "SELECT times FROM sold WHERE item = 'tea'").Scan(&times)
		return times == 1, err
	}
	stacktest.Eventually(t, 30*time.Second, "the sale is counted", counted)

	// A durable that is gone is made again, and gets all of the stream.
	js, err := jetstream.New(stacktest.Connect(t, nats))
	must(t, err)
	must(t, js.DeleteConsumer(ctx, "SHOP", "stock"))
	stacktest.Eventually(t, 30*time.Second, "the sale is delivered again", func() (bool, error) {
		c, err := js.Consumer(ctx, "SHOP", "stock")
		return err == nil && c.CachedInfo().AckFloor.Stream == 1, err
	})
	if once, err := counted(); !once || err != nil {
		t.Errorf("after the second delivery the sale is not counted once (%v)", err)
	}
}
