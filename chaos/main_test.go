package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/oncebox/oncebox/internal/devstack"
)

func TestMain(m *testing.M) {
	devstack.Helper()
	code := m.Run()
	if err := shared.remove(); err != nil {
		fmt.Fprintln(os.Stderr, "chaos: clean up:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// shared is what the tests of this binary have in common, made by the first that asks: the services' binaries, and a Postgres
// server on which each test has databases of its own.
var shared sharedParts

type sharedParts struct {
	once     sync.Once
	bin      string
	postgres *devstack.Postgres
	err      error
}

func (s *sharedParts) get(t testing.TB) (bin string, pg *devstack.Postgres) {
	t.Helper()
	s.once.Do(func() { s.err = s.start() })
	if s.err != nil {
		t.Fatal(s.err)
	}
	return s.bin, s.postgres
}

func (s *sharedParts) start() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // the first build of all dependencies
	defer cancel()
	var err error
	if s.bin, err = os.MkdirTemp("", "oncebox-chaos-"); err != nil {
		return err
	}
	if err := devstack.Build(ctx, s.bin, "./cmd/orders", "./cmd/billing", "./cmd/psp", "./cmd/oncebox"); err != nil {
		return err
	}
	s.postgres, err = devstack.StartPostgres(ctx, devstack.PostgresConfig{Fsync: true})
	return err
}

func (s *sharedParts) remove() error {
	var err error
	if s.bin != "" {
		err = os.RemoveAll(s.bin)
	}
	if s.postgres != nil {
		err = errors.Join(err, s.postgres.Remove())
	}
	return err
}
