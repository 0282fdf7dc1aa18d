package chaos

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// releasedCommit is what the last release was made of: the last tag v*, or what migrations/released says.
func releasedCommit(t *testing.T) string {
	t.Helper()
	if tag, err := git(t.Context(), "describe", "--tags", "--abbrev=0", "--match", "v*"); err == nil {
		return strings.TrimSpace(string(tag))
	}
	lines := strings.Split(strings.TrimSpace(readRepositoryFile(t, "migrations/released")), "\n")
	return lines[len(lines)-1]
}

func git(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = repository
	return cmd.Output()
}

// releasedBinaries builds the services of the last release.
func releasedBinaries(t *testing.T) (dir string) {
	t.Helper()
	commit := releasedCommit(t)
	source, err := git(t.Context(), "archive", commit, "--", ".", ":!docs")
	if err != nil {
		t.Skipf("NOT TRIED: the binaries of the last release on these migrations. There is no %s here, as in a clone that is shallow or no clone at all: %v", commit, err)
	}
	dir = t.TempDir()
	tar := exec.CommandContext(t.Context(), "tar", "-x", "-C", dir)
	tar.Stdin = bytes.NewReader(source)
	if out, err := tar.CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v\n%s", commit, err, out)
	}
	bin := filepath.Join(dir, "released-bin")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", bin+string(filepath.Separator), "./cmd/orders", "./cmd/billing")
	build.Dir = dir
	build.Env = append(os.Environ(), "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", commit, err, out)
	}
	return bin
}

// Invariant: on databases that are migrated as of now, the services of the last release do their work, and so does each of them
// beside the other one of now and beside its own successor, as they meet in a rolling release and when one is taken back.
func TestTheLastReleaseWorksOnTheseMigrations(t *testing.T) {
	t.Parallel()
	old := releasedBinaries(t)
	s := newSystem(t)
	use := func(svc *service, released bool) {
		t.Helper()
		dir, _ := shared.get(t)
		if released {
			dir = old
		}
		svc.binary = filepath.Join(dir, svc.name)
	}
	use(s.orders, true)
	use(s.billing, true)
	s.start(t)
	s.order(t, "both-released")
	s.settle(t)
	for _, step := range []struct {
		name            string
		orders, billing bool // of the last release
	}{
		{"orders-of-now", false, true},
		{"billing-of-now", true, false},
		{"both-of-now", false, false},
	} {
		for svc, released := range map[*service]bool{s.orders: step.orders, s.billing: step.billing} {
			svc.terminate(t)()
			use(svc, released)
			svc.start(t)
		}
		s.order(t, step.name)
		s.settle(t)
	}
	// An instance of each of the last release comes beside the one of now, on the same database.
	for _, svc := range []*service{s.orders, s.billing} {
		twin := svc.twin(t, brisk)
		use(twin, true)
		twin.start(t)
		if svc == s.orders {
			a, err := twin.post(t.Context(), "both-of-now", 4200)
			if err != nil || a.status != http.StatusCreated || a.header.Get("Idempotent-Replayed") != "true" {
				t.Errorf("the last release answers a request that the one of now took with %d %s, replayed %q: %v", a.status, a.body,
					a.header.Get("Idempotent-Replayed"), err)
			}
		}
	}
	s.clients(t, "load", 50)()
	s.settle(t)
	s.checkOnce(t, 54)
}
