package chaos

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// A fault is a point of internal/crash and what happens there when it is passed the n-th time.
type fault struct {
	point, mode string
	n           int
}

func (f fault) String() string { return fmt.Sprintf("%s=%s:%d", f.point, f.mode, f.n) }

const (
	kill    = "kill"
	failure = "error"
)

// armed names the file by which a process is armed.
const armed = "ONCEBOX_CRASH"

// arm has the service fail so, once. It may run already.
func (s *service) arm(t testing.TB, f fault) {
	t.Helper()
	file := s.process[armed]
	err := os.WriteFile(file+".new", []byte(f.String()), 0o600)
	if err == nil {
		err = os.Rename(file+".new", file)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// awaitFault returns when the service has failed as it was armed to. One that is killed is gone then.
func (s *service) awaitFault(t testing.TB, f fault) {
	t.Helper()
	stacktest.Eventually(t, patience, fmt.Sprintf("%s has passed %s", s.name, f), func() (bool, error) {
		_, err := os.Stat(s.process[armed])
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		return false, err
	})
	if f.mode != kill {
		return
	}
	s.awaitEnd(t)
	exit, ok := errors.AsType[*exec.ExitError](s.proc.Err())
	if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("%s was to be killed, and ended with %v", s.name, s.proc.Err())
	}
}

func (s *service) awaitEnd(t testing.TB) {
	t.Helper()
	select {
	case <-s.proc.Done():
	case <-time.After(patience):
		t.Fatalf("%s still runs", s.name)
	}
}

// A crash is an operation before and after which services are to fail.
type crash struct {
	operation string
	only      string                     // "before" or "after"; "" is both
	on        func(s *system) []*service // in the order in which they come to it
	n         int                        // which pass; 0 is the first
	stops     bool                       // the services end after it in any case
	by        approach
}

// faults are those of the operation.
func (x crash) faults() (all []fault) {
	for _, side := range []string{"before", "after"} {
		if x.only == "" || x.only == side {
			for _, mode := range []string{kill, failure} {
				all = append(all, fault{x.operation + "/" + side, mode, max(1, x.n)})
			}
		}
	}
	return all
}

// A crashed is a system whose services fail one time after the other.
type crashed struct {
	*system
	orderCount, directCount int // accepted so far
}

// tagged are the services' binaries with crash points in them.
var tagged struct {
	once sync.Once
	err  error
}

// taggedBinaries is the folder that they are in.
func taggedBinaries(t testing.TB) string {
	t.Helper()
	bin, _ := shared.get(t)
	dir := filepath.Join(bin, "tagged")
	tagged.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		tagged.err = devstack.Build(ctx, dir, "-tags=chaos", "./cmd/orders", "./cmd/billing")
	})
	if tagged.err != nil {
		t.Fatal(tagged.err)
	}
	return dir
}

// newCrashed returns a system of which nothing but the broker runs, whose services can be armed, and without the charge table's guards.
func newCrashed(t testing.TB) *crashed {
	t.Helper()
	dir := taggedBinaries(t)
	c := &crashed{system: newSystem(t)}
	c.dropChargeGuards(t)
	for _, svc := range onBoth(c.system) {
		svc.binary = filepath.Join(dir, svc.name)
		svc.process = map[string]string{armed: filepath.Join(t.TempDir(), "armed")}
	}
	return c
}

// load makes a few orders.
func (c *crashed) load(t testing.TB, n int) (wait func()) {
	t.Helper()
	wait = c.clients(t, fmt.Sprint("order-", c.orderCount), n)
	c.orderCount += n
	return wait
}

// run has the services fail at each point in each mode, brings them back, and judges what is left. It ends with the first case that
// fails: what follows would be of a system that is broken.
func (c *crashed) run(t *testing.T, crashes []crash, judge func(testing.TB)) {
	for _, x := range crashes {
		for _, f := range x.faults() {
			passed := t.Run(f.String(), func(t *testing.T) {
				c.fail(t, x, f)
				judge(t)
			})
			if !passed {
				return
			}
		}
	}
}

// fail has the services of x fail, and returns when they are back and what they were at is over.
func (c *crashed) fail(t testing.TB, x crash, f fault) {
	t.Helper()
	svcs := x.on(c.system)
	wait := x.by(t, c, svcs, func() {
		for _, svc := range svcs {
			svc.arm(t, f)
		}
	})
	for _, svc := range svcs {
		svc.awaitFault(t, f)
		if x.stops {
			svc.awaitEnd(t)
			if err := svc.proc.Err(); f.mode != kill && err != nil {
				t.Errorf("%s ended with %v", svc.name, err)
			}
		}
		if x.stops || f.mode == kill {
			svc.launch(t)
		}
		svc.awaitReady(t)
	}
	wait()
}

func (c *crashed) judgeOnce(t testing.TB) {
	t.Helper()
	c.settle(t)
	c.checkOnce(t, c.orderCount)
}
