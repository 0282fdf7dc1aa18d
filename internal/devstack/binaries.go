package devstack

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// debianBinaries is where Debian and Ubuntu keep each major version's binaries, out of PATH.
const debianBinaries = "/usr/lib/postgresql/*/bin"

// ErrNoPostgres says that no Postgres binaries were found, and what to type.
var ErrNoPostgres = errors.New("no Postgres in " + debianBinaries + " or PATH; install it with: " + installLine +
	" (or set DATABASE_URL to a superuser's URL)")

// postgresBinaries returns the folder with initdb and postgres: of the newest version in versioned, else the one in PATH.
func postgresBinaries(versioned string) (string, error) {
	dirs, err := filepath.Glob(versioned)
	if err != nil {
		return "", err
	}
	slices.SortFunc(dirs, func(a, b string) int { return cmp.Compare(majorVersion(b), majorVersion(a)) })
	if path, err := exec.LookPath("initdb"); err == nil {
		// A link into a versioned folder, as Homebrew makes it, is followed: postgres looks for its files beside itself.
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return "", err
		}
		dirs = append(dirs, filepath.Dir(path))
	}
	for _, dir := range dirs {
		_, errInit := exec.LookPath(filepath.Join(dir, "initdb"))
		_, errServe := exec.LookPath(filepath.Join(dir, "postgres"))
		if errInit == nil && errServe == nil {
			return dir, nil
		}
	}
	return "", ErrNoPostgres
}

// majorVersion is 15 of /usr/lib/postgresql/15/bin, and 0 of what is no version.
func majorVersion(bin string) int {
	n, err := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	if err != nil {
		return 0
	}
	return n
}

// unprivileged returns whom Postgres runs as: it refuses to run as root. Nil is ourselves.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	var lookups []error
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			lookups = append(lookups, err)
			continue
		}
		uid, errUID := strconv.ParseUint(u.Uid, 10, 32)
		gid, errGID := strconv.ParseUint(u.Gid, 10, 32)
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(errUID, errGID)
	}
	return nil, fmt.Errorf("Postgres does not run as root, and there is nobody else: %w", errors.Join(lookups...))
}
