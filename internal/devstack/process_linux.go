package devstack

import (
	"cmp"
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func dieWithParent(attr *syscall.SysProcAttr, sig syscall.Signal) {
	attr.Pdeathsig = cmp.Or(sig, syscall.SIGKILL)
}

// waitStopped returns when SIGSTOP has taken effect. WNOWAIT leaves the process's exit to [os/exec.Cmd.Wait].
func waitStopped(pid int) error {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ECHILD):
			return os.ErrProcessDone
		default:
			return err
		}
	}
}
