package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

const (
	aptPackage  = "postgresql"
	installLine = "sudo apt-get install -y --no-install-recommends " + aptPackage
)

// InstallPostgres installs Postgres's binaries on a Debian or Ubuntu where we are root, without a system server that would
// run beside ours. What apt-get says goes to out. It does nothing when there are binaries already. Where it cannot install,
// the error says what to type.
func InstallPostgres(ctx context.Context, out io.Writer) error {
	if _, err := postgresBinaries(debianBinaries); !errors.Is(err, ErrNoPostgres) {
		return err
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return errors.New("cannot install Postgres: there is no apt-get here; install it with the system's package manager, " +
			"such as: brew install postgresql")
	}
	if os.Geteuid() != 0 {
		return errors.New("cannot install Postgres without being root; type: " + installLine)
	}
	a := apt{out: out, etc: "/etc", lists: "/var/lib/apt/lists"}
	if err := a.install(ctx); err != nil {
		return fmt.Errorf("install Postgres: %w", err)
	}
	_, err := postgresBinaries(debianBinaries)
	return err
}

// apt is apt-get and the folders that matter to it.
type apt struct {
	out        io.Writer
	etc, lists string
}

func (a apt) install(ctx context.Context) error {
	if err := a.forbidMainCluster(); err != nil {
		return err
	}
	updated := false
	if lists, _ := filepath.Glob(filepath.Join(a.lists, "*Packages*")); len(lists) == 0 { // as in a container's image
		if err := a.get(ctx, "update"); err != nil {
			return err
		}
		updated = true
	}
	install := func() error { return a.get(ctx, "install", "-y", "--no-install-recommends", aptPackage) }
	err := install()
	if err != nil && !updated { // the lists may name versions that the mirror no longer has
		if err := a.get(ctx, "update"); err != nil {
			return err
		}
		return install()
	}
	return err
}

// forbidMainCluster keeps Debian's package from making and starting a server of its own. An administrator's file stays.
func (a apt) forbidMainCluster() error {
	dir := filepath.Join(a.etc, "postgresql-common")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "createcluster.conf"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString("create_main_cluster = false\n")
	return errors.Join(err, f.Close())
}

func (a apt) get(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	// The package would ask what to do with the file that we wrote before it: keep ours.
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "UCF_FORCE_CONFFOLD=1")
	cmd.Stdout, cmd.Stderr = a.out, a.out
	// Killed in the middle, it would leave packages half installed, and refuse to go on before somebody mends that by hand.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is ours to hand on
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("apt-get %s: %w", args[0], err)
	}
	return nil
}
