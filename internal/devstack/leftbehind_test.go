package devstack_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/oncebox/oncebox/internal/devstack"
)

func TestNothingIsLeftBehindByAKilledParent(t *testing.T) {
	t.Parallel()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	parent, err := devstack.StartProcess(devstack.ProcessConfig{
		Path:   os.Args[0],
		Env:    []string{parentEnv + "=1"},
		Output: in,
	})
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	told, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatalf("the parent did not tell: %v", parent.Err())
	}
	var f family
	if err := json.Unmarshal(told, &f); err != nil {
		t.Fatalf("the parent told %q: %v", told, err)
	}
	for _, pid := range f.Pids {
		if gone(pid) {
			t.Errorf("process %d is gone before its parent", pid)
		}
	}
	if err := parent.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range f.Pids {
		eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool { return gone(pid) })
	}
	if hasSharedMemory(t, f.Pids[0]) {
		t.Error("Postgres left its shared memory behind")
	}

	start(t, devstack.NATSConfig{})
	for _, dir := range f.Folders {
		if exists(dir) {
			t.Errorf("the next start left %s", dir)
		}
	}
}

func TestNothingIsLeftBehindByRemove(t *testing.T) {
	t.Parallel()
	pg, err := devstack.StartPostgres(t.Context(), devstack.PostgresConfig{})
	if err != nil {
		t.Fatal(err)
	}
	broker, err := devstack.StartNATS(t.Context(), devstack.NATSConfig{})
	if err != nil {
		t.Fatal(err)
	}
	pids := []int{pg.Pid(), broker.Pid()}
	dirs := []string{filepath.Dir(pg.LogPath()), filepath.Dir(broker.LogPath())}
	for _, remove := range []func() error{pg.Remove, broker.Remove} {
		if err := remove(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range pids {
		if !gone(pids[i]) {
			t.Errorf("process %d still runs", pids[i])
		}
		if exists(dirs[i]) {
			t.Errorf("%s still exists", dirs[i])
		}
	}
	if hasSharedMemory(t, pids[0]) {
		t.Error("Postgres left its shared memory behind")
	}
}

func TestAStartLeavesTheFoldersOfTheLiving(t *testing.T) {
	t.Parallel()
	first := start(t, devstack.NATSConfig{})
	start(t, devstack.NATSConfig{})
	if !exists(first.LogPath()) {
		t.Error("the second start removed the first one's folder")
	}
}

// It does not run in parallel: nothing else makes or removes this process's folders then.
func TestNothingIsLeftBehindByAFailedStart(t *testing.T) {
	before := ownFolders(t)
	_, err := devstack.StartPostgres(t.Context(), devstack.PostgresConfig{Settings: map[string]string{"no_such_setting": "1"}})
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("got %v, want an error that names no_such_setting", err)
	}
	if after := ownFolders(t); !slices.Equal(before, after) {
		t.Errorf("folders before: %v, after: %v", before, after)
	}
}

// ownFolders returns the folders that this process has made and not removed.
func ownFolders(t *testing.T) []string {
	t.Helper()
	owners, err := filepath.Glob(fmt.Sprintf("/var/tmp/oncebox-%d/*/owner", os.Getuid()))
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(owners, func(path string) bool {
		pid, err := os.ReadFile(path)
		return err != nil || strings.TrimSpace(string(pid)) != strconv.Itoa(os.Getpid())
	})
}

// hasSharedMemory looks for a System V segment that the process made.
func hasSharedMemory(t *testing.T, pid int) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		t.Fatal(err)
	}
	// key shmid perms size cpid …
	return regexp.MustCompile(fmt.Sprintf(`(?m)^\s*-?\d+\s+\d+\s+\d+\s+\d+\s+%d\s`, pid)).Match(table)
}

func start(t *testing.T, cfg devstack.NATSConfig) *devstack.NATS {
	t.Helper()
	broker, err := devstack.StartNATS(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := broker.Remove(); err != nil {
			t.Error(err)
		}
	})
	return broker
}
