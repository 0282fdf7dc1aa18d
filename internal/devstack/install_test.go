package devstack

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// fakeApt puts an apt-get in PATH that records its arguments, and that fails to install as often as told.
func fakeApt(t *testing.T, failures int) (a apt, calls func() string) {
	t.Helper()
	dir := t.TempDir()
	for i := range failures {
		write(t, filepath.Join(dir, "fail", string(rune('a'+i))), "")
	}
	script := `#!/bin/sh
echo "$DEBIAN_FRONTEND $*" >> ` + dir + `/calls
[ "$1" = install ] || exit 0
for f in ` + dir + `/fail/*; do [ -e "$f" ] && /bin/rm "$f" && exit 100; done
echo installed
`
	write(t, filepath.Join(dir, "bin", "apt-get"), script)
	t.Setenv("PATH", filepath.Join(dir, "bin"))
	calls = func() string {
		b, err := os.ReadFile(filepath.Join(dir, "calls"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	return apt{etc: filepath.Join(dir, "etc"), lists: filepath.Join(dir, "lists"), out: &bytes.Buffer{}}, calls
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

const (
	updateCall  = "noninteractive update\n"
	installCall = "noninteractive install -y --no-install-recommends postgresql\n"
)

func TestInstallUpdatesTheListsWhenItMust(t *testing.T) {
	for _, c := range []struct {
		name     string
		lists    bool
		failures int
		want     string
		err      bool
	}{
		{"no lists", false, 0, updateCall + installCall, false},
		{"lists", true, 0, installCall, false},
		{"lists that are too old", true, 1, installCall + updateCall + installCall, false},
		{"no such package", true, 2, installCall + updateCall + installCall, true},
		{"no such package, new lists", false, 1, updateCall + installCall, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, calls := fakeApt(t, c.failures)
			if c.lists {
				write(t, filepath.Join(a.lists, "deb.debian.org_dists_bookworm_main_binary-amd64_Packages.lz4"), "")
			}
			if err := a.install(t.Context()); (err != nil) != c.err {
				t.Errorf("err is %v, want one: %t", err, c.err)
			}
			if got := calls(); got != c.want {
				t.Errorf("calls:\n%swant:\n%s", got, c.want)
			}
		})
	}
}

func TestInstallForbidsASystemServerAndKeepsAnAdministratorsFile(t *testing.T) {
	a, _ := fakeApt(t, 0)
	conf := filepath.Join(a.etc, "postgresql-common", "createcluster.conf")
	for _, want := range []string{"create_main_cluster = false\n", "# mine\n"} {
		if err := a.install(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(conf)
		if err != nil || string(got) != want {
			t.Errorf("createcluster.conf is %q (%v), want %q", got, err, want)
		}
		write(t, conf, "# mine\n")
	}
}
