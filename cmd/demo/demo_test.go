package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

func TestDemo(t *testing.T) {
	bin := t.TempDir()
	if err := devstack.Build(t.Context(), bin, "-buildvcs=false", "./cmd/demo"); err != nil {
		t.Fatal(err)
	}
	bin = filepath.Join(bin, "demo")
	t.Run("ends with the result and leaves nothing", func(t *testing.T) { testResult(t, bin) })
	t.Run("uses the servers that are given, and stays up until a signal", func(t *testing.T) { testGivenServers(t, bin) })
	t.Run("leaves nothing after a signal in mid-run", func(t *testing.T) { testSignal(t, bin) })
	t.Run("refuses wrong flags with exit status 2", func(t *testing.T) { testWrongFlags(t, bin) })
}

func testResult(t *testing.T, bin string) {
	const orders, kills = 100, 1
	r := start(t, bin, "-orders", strconv.Itoa(orders), "-kills", strconv.Itoa(kills), "-seed", "1", "-exit")
	if err := r.wait(); err != nil {
		t.Fatalf("%v\n%s", err, r.out.String())
	}
	line := r.lastLine()
	fields := regexp.MustCompile(`^orders=100 charged=100 duplicates=0 lost=0 naive_charged=(\d+) attempts=(\d+) replies_lost=(\d+) ` +
		`kills=1 redelivered=(\d+) guard_inbox=(\d+) guard_order=0$`).FindStringSubmatch(line)
	if fields == nil {
		t.Fatalf("last line: %s", line)
	}
	n := make([]int, len(fields))
	for i := range n {
		n[i], _ = strconv.Atoi(fields[i])
	}
	naive, attempts, lost, redelivered := n[1], n[2], n[3], n[4]

	// What the seed decides is known before: each intent is tried until a reply comes through.
	wantLost := 0
	for _, c := range []string{keyedPrefix, naivePrefix} {
		for intent := range orders {
			for attempt := 1; (fate{seed: 1, loss: 0.4}).lost(c, intent, attempt); attempt++ {
				wantLost++
			}
		}
	}
	if lost != wantLost || attempts != wantLost+2*orders {
		t.Errorf("%d attempts and %d lost replies, want %d and %d", attempts, lost, wantLost+2*orders, wantLost)
	}
	if naive <= orders || redelivered < kills {
		t.Errorf("%d naive charges, %d redelivered", naive, redelivered)
	}
	r.leavesNothing(t)
}

// Two orders and a kill: there is no load to kill billing in, so that it is stopped first and handed a message then.
func testGivenServers(t *testing.T, bin string) {
	pg, broker := stacktest.OwnPostgres(t, devstack.PostgresConfig{}), stacktest.NATS(t)
	t.Setenv("DATABASE_URL", pg.URL("postgres"))
	t.Setenv("NATS_URL", broker.URL())
	r := start(t, bin, "-orders", "2", "-kills", "1", "-loss", "0")
	const want = "orders=2 charged=2 duplicates=0 lost=0 "
	stacktest.Eventually(t, time.Minute, "the result is there", func() (bool, error) {
		return strings.Contains(r.out.String(), "\n"+want), nil
	})
	link := regexp.MustCompile(`through the link that loses replies: (\S+)`).FindStringSubmatch(r.out.String())
	if link == nil {
		t.Fatalf("output:\n%s", r.out.String())
	}
	if err := newClient("mine-", false, "", link[1]).order(t.Context(), 1); err != nil {
		t.Errorf("an order of one's own: %v", err)
	}

	other := start(t, bin, "-exit") // would share streams with it
	if err := other.wait(); err == nil || !strings.Contains(other.out.String(), "has a stream ORDERS already") {
		t.Errorf("a second demo on the same server ended with %v:\n%s", err, other.out.String())
	}
	other.leavesNothing(t)

	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := r.wait(); err != nil || !strings.HasPrefix(r.lastLine(), want) {
		t.Errorf("it ended with %v:\n%s", err, r.out.String())
	}
	r.leavesNothing(t)
	db, err := pgx.Connect(t.Context(), pg.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.Background())
	var left int
	err = db.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1'))
		+ (SELECT count(*) FROM pg_roles WHERE rolname !~ '^(postgres$|pg_)')`).Scan(&left)
	if err != nil || left > 0 {
		t.Errorf("%d databases and roles are left, %v", left, err)
	}
	js, err := jetstream.New(stacktest.Connect(t, broker))
	if err != nil {
		t.Fatal(err)
	}
	for name := range js.StreamNames(t.Context()).Name() {
		t.Errorf("stream %s is left", name)
	}
}

func testSignal(t *testing.T, bin string) {
	r := start(t, bin, "-orders", "100000", "-kills", "3")
	stacktest.Eventually(t, time.Minute, "the run goes on", func() (bool, error) {
		return strings.Contains(r.out.String(), "running: charged"), nil
	})
	// demo, orders, billing, the naive consumer and, where they are the demo's, servers: else the look at its end proves nothing
	if found := processes(t, r.mark); runtime.GOOS == "linux" && len(found) < 4 {
		t.Errorf("processes: %v", found)
	}
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := r.wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("it ended with %v", err)
	}
	if !strings.Contains(r.out.String(), "demo: stopped by a signal (terminated)") {
		t.Errorf("output:\n%s", r.out.String())
	}
	r.leavesNothing(t)
}

func testWrongFlags(t *testing.T, bin string) {
	r := start(t, bin, "-loss", "1.5")
	var exit *exec.ExitError
	if err := r.wait(); !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Errorf("it ended with %v", err)
	}
	if got, want := r.out.String(), "demo: -loss is 1.5, and must be from 0 to 0.9 (-help tells the flags)\n"; got != want {
		t.Errorf("output %q, want %q", got, want)
	}
}

// A command is a running demo, with a folder for its temporary files, whose name marks its processes too.
type command struct {
	cmd  *exec.Cmd
	out  output
	mark string
}

func start(t *testing.T, bin string, args ...string) *command {
	t.Helper()
	r := &command{mark: t.TempDir()}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	r.cmd = exec.CommandContext(ctx, bin, args...)
	r.cmd.Cancel = func() error { return r.cmd.Process.Signal(syscall.SIGTERM) }
	r.cmd.Env = append(os.Environ(), "TMPDIR="+r.mark)
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *command) wait() error { return r.cmd.Wait() }

func (r *command) lastLine() string {
	lines := strings.Split(strings.TrimSpace(r.out.String()), "\n")
	return lines[len(lines)-1]
}

// leavesNothing looks for processes that were started by the demo, for files of its own, and for its servers' folders.
func (r *command) leavesNothing(t *testing.T) {
	t.Helper()
	if left := processes(t, r.mark); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	if left, err := filepath.Glob(filepath.Join(r.mark, "*")); err != nil || len(left) > 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
	owners, err := filepath.Glob(fmt.Sprintf("/var/tmp/oncebox-%d/*/owner", os.Getuid()))
	if err != nil {
		t.Fatal(err)
	}
	for _, owner := range owners {
		if pid, err := os.ReadFile(owner); err == nil && strings.TrimSpace(string(pid)) == strconv.Itoa(r.cmd.Process.Pid) {
			t.Errorf("%s is left", filepath.Dir(owner))
		}
	}
}

// processes are the ids and names of those with mark in their environment.
func processes(t *testing.T, mark string) []string {
	t.Helper()
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, path := range environs {
		env, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(env, []byte("TMPDIR="+mark)) {
			continue // ended meanwhile, or not ours to read
		}
		name, err := os.ReadFile(filepath.Join(filepath.Dir(path), "comm"))
		if err == nil {
			found = append(found, filepath.Base(filepath.Dir(path))+" "+strings.TrimSpace(string(name)))
		}
	}
	return found
}

// output may be read while it is written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}
