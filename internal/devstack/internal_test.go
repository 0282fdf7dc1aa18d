package devstack

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestNoPostgresSaysWhatToType(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := postgresBinaries(filepath.Join(t.TempDir(), "*", "bin"))
	if !errors.Is(err, ErrNoPostgres) || !strings.Contains(err.Error(), "apt-get install") {
		t.Errorf("got %v", err)
	}
}

func TestTheNewestPostgresIsTaken(t *testing.T) {
	dir := t.TempDir()
	for _, v := range []string{"9.6", "15", "9", "120"} {
		write(t, filepath.Join(dir, v, "bin", "initdb"), "")
		if v != "120" { // only the client is installed
			write(t, filepath.Join(dir, v, "bin", "postgres"), "")
		}
	}
	got, err := postgresBinaries(filepath.Join(dir, "*", "bin"))
	if want := filepath.Join(dir, "15", "bin"); err != nil || got != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}

func TestNATSNeedsTheHelper(t *testing.T) {
	helperReady.Store(false)
	defer helperReady.Store(true)
	if _, err := StartNATS(t.Context(), NATSConfig{}); err == nil || !strings.Contains(err.Error(), "devstack.Helper") {
		t.Errorf("got %v, want one that names devstack.Helper", err)
	}
}

func TestPortsLieBelowThoseOfClients(t *testing.T) {
	port, err := FreePort()
	if err != nil {
		t.Fatal(err)
	}
	if first := firstEphemeralPort(); first > firstPort && (port < firstPort || port >= first) {
		t.Errorf("port %d, want one from %d to %d", port, firstPort, first-1)
	}
}

// Of so many, drawn at random, some would be the same.
func TestNoPortIsGivenTwice(t *testing.T) {
	seen := make(map[int]bool)
	for range 500 {
		port, err := FreePort()
		if err != nil {
			t.Fatal(err)
		}
		if seen[port] {
			t.Fatalf("port %d was given before", port)
		}
		seen[port] = true
	}
}

func TestAnUnlockedFolderIsRemovedAndALockedOneStays(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"dead", "alive"} {
		write(t, filepath.Join(root, name, ownerFile), "1\n")
		write(t, filepath.Join(root, name, dataDir, "file"), "")
	}
	write(t, filepath.Join(root, "unowned", "file"), "")
	owner, err := lockOwner(filepath.Join(root, "alive"), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()
	removeStale(root)
	left, err := os.ReadDir(root)
	if err != nil || len(left) != 1 || left[0].Name() != "alive" {
		t.Errorf("left: %v, %v, want only alive", left, err)
	}
}
