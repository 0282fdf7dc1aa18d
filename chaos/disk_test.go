package chaos

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// A disk is a file system of the test's own, small enough to be filled.
type disk struct{ path string }

// disks is where they are mounted: Postgres passes through as another user.
const disks = "/var/tmp/oncebox-disk-"

// smallDisk mounts a tmpfs of so many MiB until the end of the test.
func smallDisk(t *testing.T, mib int) disk {
	t.Helper()
	unmountStale(t)
	dir, err := os.MkdirTemp(filepath.Dir(disks), filepath.Base(disks)+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0755", mib)); err != nil {
		_ = os.Remove(dir)
		t.Skipf("NOT TRIED: a disk that is full. A small file system cannot be mounted here, which takes root: %v", err)
	}
	t.Cleanup(func() {
		if err := errors.Join(syscall.Unmount(dir, syscall.MNT_DETACH), os.Remove(dir)); err != nil {
			t.Errorf("remove the small disk: %v", err)
		}
	})
	return disk{dir}
}

// unmountStale removes what a run left behind that was killed.
func unmountStale(t *testing.T) {
	t.Helper()
	found, err := filepath.Glob(disks + "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range found {
		pid, _, _ := strings.Cut(strings.TrimPrefix(dir, disks), "-")
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
			_ = syscall.Unmount(dir, syscall.MNT_DETACH)
			_ = os.Remove(dir)
		}
	}
}

func (d disk) ballast() string { return filepath.Join(d.path, "ballast") }

// fill takes all the room there is. What the server frees itself is its own to take again.
func (d disk) fill(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile(d.ballast(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 1<<20)) // of the last one as much as there is room for
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
}

// free makes room again.
func (d disk) free(t testing.TB) {
	t.Helper()
	if err := os.Remove(d.ballast()); err != nil {
		t.Fatal(err)
	}
}

// logged says whether a server has written this into its log.
func logged(t testing.TB, path, what string) bool {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Contains(b, []byte(what))
}

// noSpace is what the operating system says.
const noSpace = "no space left on device"

// Invariant: while Postgres's disk is full a request is answered with an error that says to come again, and nothing that was accepted
// is lost or charged twice. When there is room again, and the server was started again where it had to end, all goes on by itself,
// without the charge table's guards.
func TestAPostgresWhoseDiskIsFullLosesAndDoublesNothing(t *testing.T) {
	t.Parallel()
	for name, logToo := range map[string]bool{
		"ForTables": false, // that cannot grow: statements fail
		"ForTheLog": true,  // that cannot go on: the server ends itself, and does not come back as long as its disk is full
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := smallDisk(t, 256)
			pg := stacktest.OwnPostgres(t, devstack.PostgresConfig{Dir: filepath.Join(d.path, "postgres"), Fsync: true,
				Settings: map[string]string{"max_wal_size": "64MB", "min_wal_size": "32MB"}})
			s := newSystemOn(t, pg, stacktest.NATS(t, asDeployed(t, tester)))
			s.dropChargeGuards(t)
			s.start(t)
			const before, during = 20, 300
			s.clients(t, "before", before)()
			s.settle(t)
			if !logToo { // it is given segments for later
				for range 4 {
					s.orders.exec(t, "SELECT pg_logical_emit_message(true, 'test', 'x'), pg_switch_wal()")
				}
				s.orders.exec(t, "CHECKPOINT")
			}

			d.fill(t)
			wait := s.clients(t, "during", during)
			if logToo {
				stacktest.Eventually(t, patience, "Postgres has ended", func() (bool, error) {
					_, _ = s.orders.db.Exec(t.Context(), "SELECT pg_logical_emit_message(true, 'test', repeat('x', 1000)), pg_switch_wal()")
					return errors.Is(syscall.Kill(pg.Pid(), 0), syscall.ESRCH), nil
				})
			}
			asked := s.askUntilRefused(t, 5)
			if !logged(t, pg.LogPath(), "No space left on device") || logged(t, pg.LogPath(), "PANIC") != logToo {
				t.Errorf("Postgres did not end as it was to: see %s", pg.LogPath())
			}
			d.free(t)
			if logToo {
				if err := pg.Restart(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			wait()
			s.acceptedAfterAll(t, asked)
			s.settle(t)
			s.checkOnce(t, before+during+len(asked))
		})
	}
}

// askUntilRefused asks for orders, each with a key of its own, until so many were refused. What became of each is returned.
func (s *system) askUntilRefused(t *testing.T, refusals int) (asked []answer) {
	t.Helper()
	refused := 0
	stacktest.Eventually(t, patience, "requests are refused", func() (bool, error) {
		a, err := s.orders.post(t.Context(), fmt.Sprint("asked-", len(asked)), 4200)
		if err != nil {
			t.Fatalf("no answer at all: %v", err)
		}
		asked = append(asked, a)
		switch {
		case a.status == http.StatusCreated:
		case a.status == http.StatusServiceUnavailable && a.header.Get("Content-Type") == "application/problem+json":
			refused++
		default:
			t.Fatalf("POST answered %d: %s", a.status, a.body)
		}
		return refused == refusals, nil
	})
	return asked
}

// acceptedAfterAll asks for the same orders once more: those that were accepted are answered alike, and the others are accepted now.
func (s *system) acceptedAfterAll(t *testing.T, asked []answer) {
	t.Helper()
	for i, first := range asked {
		var again answer
		err := accepted(t.Context(), func() (answer, error) {
			var err error
			again, err = s.orders.post(t.Context(), fmt.Sprint("asked-", i), 4200)
			return again, err
		})
		if err != nil {
			t.Fatal(err)
		}
		if first.status == http.StatusCreated && !bytes.Equal(first.body, again.body) {
			t.Errorf("order %d was answered\n%s\nand then\n%s", i, first.body, again.body)
		}
	}
}

// Invariant: while the broker's disk is full orders are taken, and none of their events is parked, lost or charged twice. When there is
// room again, and the server was started again, since a stream that could not write takes nothing more, all goes on by itself.
func TestABrokerWhoseDiskIsFullLosesAndDoublesNothing(t *testing.T) {
	t.Parallel()
	d := smallDisk(t, 64)
	nats := stacktest.NATS(t, asDeployed(t, tester), func(cfg *devstack.NATSConfig) { cfg.Dir = filepath.Join(d.path, "nats") })
	_, pg := shared.get(t)
	s := newSystemOn(t, pg, nats)
	s.dropChargeGuards(t)
	s.start(t)
	const before, during = 20, 300
	s.clients(t, "before", before)()
	s.settle(t)

	d.fill(t)
	s.clients(t, "during", during)() // orders are taken
	if !s.orders.isReady(t) {
		t.Error("orders is not ready")
	}
	stacktest.Eventually(t, patience, "the broker has no room", func() (bool, error) { return logged(t, nats.LogPath(), noSpace), nil })
	stacktest.Eventually(t, patience, "the relay cannot publish", func() (bool, error) {
		return s.orders.metric(t, "oncebox_relay_failures_total")+s.billing.metric(t, "oncebox_relay_failures_total") > 0, nil
	})
	d.free(t)
	if err := nats.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.settle(t)
	for _, svc := range onBoth(s) {
		if n := one[int](t, svc.db, "SELECT count(*) FROM oncebox.outbox_parked"); n > 0 {
			t.Errorf("%s has parked %d events", svc.name, n)
		}
	}
	s.checkOnce(t, before+during)
}
