package devstack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A folder holds one server's files. Its owner file is locked for as long as this process lives, however it ends; the kernel
// lets go of the lock, so a folder whose lock can be had is stale. (A process id alone would not do: ids are reused, and
// containers that share /var/tmp have the same ones.)
type folder struct {
	path  string
	owner *os.File
	fresh bool // made by us under the root, else named by the caller
}

const (
	ownerFile = "owner"
	dataDir   = "data"
	logFile   = "log"
)

// errInUse is a folder whose owner lives.
var errInUse = errors.New("in use by another process")

// openFolder takes the folder at path, which is made when it is missing and then outlives this process. An empty path means a
// new folder named after kind, which a later start removes if we do not.
func openFolder(path, kind string) (*folder, error) {
	if path == "" {
		return newFolder(kind)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, err
	}
	owner, err := lockOwner(path, os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("folder %s: %w", path, err)
	}
	return &folder{path: path, owner: owner}, nil
}

func newFolder(kind string) (*folder, error) {
	root, err := makeRoot()
	if err != nil {
		return nil, err
	}
	// One process at a time, so that nobody sees a folder between its making and its locking.
	gate, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer gate.Close()
	if err := flock(gate, syscall.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", root, err)
	}
	removeStale(root)

	path, err := os.MkdirTemp(root, kind+"-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o711); err != nil { // Postgres passes through as another user
		return nil, err
	}
	owner, err := lockOwner(path, os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("folder %s: %w", path, err)
	}
	return &folder{path: path, owner: owner, fresh: true}, nil
}

// makeRoot returns /var/tmp/oncebox-<uid>: a user whom we drop to can pass through it, which a home directory forbids, and
// unlike /tmp it is on disk.
func makeRoot() (string, error) {
	root := fmt.Sprintf("/var/tmp/oncebox-%d", os.Getuid())
	if err := os.Mkdir(root, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	info, err := os.Lstat(root)
	if err != nil {
		return "", err
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || !ok || int(stat.Uid) != os.Getuid() {
		return "", fmt.Errorf("%s is not a directory of ours: remove it", root) // anybody may write to /var/tmp
	}
	return root, nil
}

// removeStale removes what dead processes left under root. What cannot be removed now, because the dead one's Postgres is
// still writing its last, is left for the next start.
func removeStale(root string) {
	entries, _ := os.ReadDir(root)
	for _, e := range entries {
		path := filepath.Join(root, e.Name())
		owner, err := lockOwner(path, 0)
		switch {
		case err == nil:
			os.RemoveAll(path)
			owner.Close()
		case errors.Is(err, os.ErrNotExist): // its maker died before it wrote the owner file
			os.RemoveAll(path)
		}
	}
}

// lockOwner locks path's owner file for as long as the returned file is open, and writes our process id into it for people
// to read. flag is os.O_CREATE or 0.
func lockOwner(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(path, ownerFile), os.O_RDWR|flag, 0o644)
	if err != nil {
		return nil, err
	}
	if err := flock(f, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		pid, _ := os.ReadFile(f.Name())
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w (%s)", errInUse, strings.TrimSpace(string(pid)))
		}
		return nil, err
	}
	if flag == os.O_CREATE {
		err = errors.Join(f.Truncate(0), writePid(f))
		if err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

func writePid(f *os.File) error {
	_, err := fmt.Fprintf(f, "%d\n", os.Getpid())
	return err
}

func flock(f *os.File, how int) error {
	for {
		if err := syscall.Flock(int(f.Fd()), how); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

func (f *folder) data() string { return filepath.Join(f.path, dataDir) }

// newData is where the data is before it is whole.
func (f *folder) newData() string { return f.data() + ".new" }

func (f *folder) log() string { return filepath.Join(f.path, logFile) }

// close gives the folder back and leaves its files.
func (f *folder) close() error { return f.owner.Close() }

// remove deletes the server's files, and the folder itself when nothing else is in it.
func (f *folder) remove() error {
	defer f.close()
	if f.fresh {
		return os.RemoveAll(f.path)
	}
	err := errors.Join(os.RemoveAll(f.data()), os.RemoveAll(f.log()), os.RemoveAll(f.owner.Name()))
	os.Remove(f.path) // fails when the caller keeps something else there
	return err
}

// abandon is for a start that failed: it removes a folder that we made, and leaves a caller's with its log.
func (f *folder) abandon() error {
	if f.fresh {
		return f.remove()
	}
	return f.close()
}
