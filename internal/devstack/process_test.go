package devstack_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oncebox/oncebox/internal/devstack"
)

func TestProcessSaysHowItEnded(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := shell(t, `echo "$GREETING"; echo two >&2; exit 3`, &out, "GREETING=one")
	<-p.Done()
	var exit *exec.ExitError
	if !errors.As(p.Err(), &exit) || exit.ExitCode() != 3 {
		t.Errorf("Err is %v, want exit status 3", p.Err())
	}
	if out.String() != "one\ntwo\n" {
		t.Errorf("output %q", out.String())
	}
	if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("Signal after the end: %v, want os.ErrProcessDone", err)
	}
	if err := errors.Join(p.Stop(t.Context()), p.Kill()); err != nil {
		t.Errorf("Stop and Kill after the end: %v", err)
	}
}

func TestProcessEndsWhenAGrandchildHoldsItsOutput(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := shell(t, `sleep 600 & echo $!`, &out)
	<-p.Done()
	var grandchild int
	if _, err := fmt.Sscan(out.String(), &grandchild); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(grandchild, syscall.SIGKILL); err != nil {
		t.Errorf("the grandchild: %v", err)
	}
	if p.Err() != nil {
		t.Errorf("Err is %v", p.Err())
	}
}

func TestStopWaitsForAProcessThatStopsInOrder(t *testing.T) {
	t.Parallel()
	p := ready(t, `trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done`)
	if err := p.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if p.Err() != nil {
		t.Errorf("Err is %v", p.Err())
	}
}

func TestStopKillsAProcessThatDoesNotListen(t *testing.T) {
	t.Parallel()
	p := ready(t, `trap '' TERM; echo ready; while :; do sleep 0.01; done`)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Stop: %v, want context.DeadlineExceeded", err)
	}
	if !gone(p.Pid()) {
		t.Error("the process still runs")
	}
}

func TestPausedProcessStandsStill(t *testing.T) {
	t.Parallel()
	p := ready(t, `echo ready; while :; do :; done`)
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(stat), ") T ") {
		t.Errorf("its state is %s", stat)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Pause(); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("Pause after the end: %v, want os.ErrProcessDone", err)
	}
}

func TestProcessIsNotReachedByTheTerminal(t *testing.T) {
	t.Parallel()
	p, err := devstack.StartProcess(devstack.ProcessConfig{Path: "sleep", Args: []string{"600"}})
	if err != nil {
		t.Fatal(err)
	}
	killAtEnd(t, p)
	group, err := syscall.Getpgid(p.Pid())
	if err != nil || group != p.Pid() {
		t.Errorf("process group %d (%v), want its own, %d", group, err, p.Pid())
	}
}

func TestMissingExecutableIsAnError(t *testing.T) {
	t.Parallel()
	if _, err := devstack.StartProcess(devstack.ProcessConfig{Path: "/no/such/binary"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want os.ErrNotExist", err)
	}
}

func TestBuildMakesBinariesThatRun(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "bin")
	if err := devstack.Build(t.Context(), dir, "./internal/devstack/testdata/hello"); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(filepath.Join(dir, "hello")).Output()
	if err != nil || string(out) != "hello\n" {
		t.Errorf("it says %q, %v", out, err)
	}
	if err := devstack.Build(t.Context(), dir, "./no/such/package"); err == nil {
		t.Error("a package that does not exist was built")
	}
}

func shell(t *testing.T, script string, out *bytes.Buffer, env ...string) *devstack.Process {
	t.Helper()
	p, err := devstack.StartProcess(devstack.ProcessConfig{Path: "sh", Args: []string{"-c", script}, Env: env, Output: out})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// ready starts a script and returns when it has written a line.
func ready(t *testing.T, script string) *devstack.Process {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := devstack.StartProcess(devstack.ProcessConfig{Path: "sh", Args: []string{"-c", script}, Output: w})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	killAtEnd(t, p)
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return p
}

func killAtEnd(t *testing.T, p *devstack.Process) {
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	})
}
