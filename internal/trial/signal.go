package trial

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// asked waits for a signal to end. A SIGPIPE is one only if it came from our output: a browser that leaves in the middle of an
// answer raises it too.
func asked(signals <-chan os.Signal) os.Signal {
	for {
		s := <-signals
		if s != syscall.SIGPIPE || unread(os.Stdout) || unread(os.Stderr) {
			return s
		}
	}
}

// unread tells whether f is a pipe that nobody reads any more.
func unread(f *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(f.Fd())}}
	_, err := unix.Poll(fds, 0)
	return err == nil && fds[0].Revents&unix.POLLERR != 0
}
