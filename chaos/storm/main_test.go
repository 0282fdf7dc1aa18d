package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oncebox/oncebox/internal/devstack"
)

// asCommand in the environment has this binary be the command.
const asCommand = "ONCEBOX_STORM"

func TestMain(m *testing.M) {
	devstack.Helper()
	if os.Getenv(asCommand) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// Ctrl-C in the middle of a storm ends it soon, with status 1, and nothing of it is left: no process, no file.
func TestCtrlCStopsAndRemovesAll(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-orders", "50000", "-kills", "100", "-seed", "4")
	cmd.Env = append(os.Environ(), asCommand+"=yes", "TMPDIR="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	faults := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), "answered") && !faults {
			faults = true
			if left := processesOf(t, dir); len(left) < 4 {
				t.Errorf("%d processes run from %s, want four at least", len(left), dir)
			}
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			defer time.AfterFunc(stopLimit+5*time.Second, func() { _ = cmd.Process.Kill() }).Stop()
		}
	}
	err = cmd.Wait()
	if !faults || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("it ended with %v, after it had begun: %t", err, faults)
	}
	if left := processesOf(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind in %s: %v, %v", dir, left, err)
	}
}

// processesOf are the command lines of processes that name the folder.
func processesOf(t *testing.T, dir string) (found []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(line), dir) { // one that is gone by now is not left behind
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}
