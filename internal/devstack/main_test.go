package devstack_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oncebox/oncebox/internal/devstack"
)

// parentEnv makes this test binary the parent that TestNothingIsLeftBehindByAKilledParent kills.
const parentEnv = "DEVSTACK_TEST_PARENT"

func TestMain(m *testing.M) {
	devstack.Helper()
	if os.Getenv(parentEnv) != "" {
		if err := beParent(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	code := m.Run()
	if pg, err := shared(); err == nil {
		if err := pg.Remove(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// shared is the server of the tests that neither stop nor configure one.
var shared = sync.OnceValues(func() (*devstack.Postgres, error) {
	return devstack.StartPostgres(context.Background(), devstack.PostgresConfig{})
})

func sharedPostgres(t *testing.T) *devstack.Postgres {
	t.Helper()
	pg, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return pg
}

// A family is what the parent tells of its children.
type family struct {
	Pids    []int
	Folders []string
}

// beParent starts one of each, tells their ids and folders on stdout, and waits to be killed.
func beParent() error {
	ctx := context.Background()
	pg, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{})
	if err != nil {
		return err
	}
	broker, err := devstack.StartNATS(ctx, devstack.NATSConfig{})
	if err != nil {
		return err
	}
	sleep, err := devstack.StartProcess(devstack.ProcessConfig{Path: "sleep", Args: []string{"600"}})
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(family{
		Pids:    []int{pg.Pid(), broker.Pid(), sleep.Pid()},
		Folders: []string{filepath.Dir(pg.LogPath()), filepath.Dir(broker.LogPath())},
	}); err != nil {
		return err
	}
	<-sleep.Done()
	return nil
}

// gone tells whether a process has ended. One that nobody has waited for yet counts: who adopts orphans is not ours to choose.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X")
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// eventually is stacktest.Eventually, which this package cannot import.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10s: %s", what)
		}
	}
}
