package service

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	drainPoll = 5 * time.Millisecond
	// maxDrained bounds the connections that a stop takes beyond the limit on them: a moment's. Those behind are reset.
	maxDrained = 256
)

// stop takes no new connections, answers each request that came by a new one, and returns when all are gone; when ctx is done before,
// it cuts the rest off. Shutdown alone would drop without an answer what it has just read, and whoever the kernel has connected
// already. A connection that is kept for a next request is closed while it is idle, as HTTP has it: who sends on it in that moment
// has no answer, and asks again.
func (l listener) stop(ctx context.Context) error {
	err := l.socket.Close()
	select {
	case served := <-l.done: // all that there is has been accepted
		err = errors.Join(err, served)
	case <-ctx.Done():
	}
	poll := time.NewTicker(drainPoll)
	defer poll.Stop()
	for ctx.Err() == nil && l.open.Load() > 0 {
		l.server.SetKeepAlivesEnabled(false) // closes those that have become idle, too
		select {
		case <-poll.C:
		case <-ctx.Done():
		}
	}
	if err = errors.Join(err, l.server.Shutdown(ctx)); err != nil {
		return errors.Join(err, l.server.Close())
	}
	return nil
}

// A draining listener hands out, when it is closed, the connections that the kernel has taken for it and nobody has accepted yet: their
// clients have sent their requests. Those that come later are refused, and know it, but for the microseconds of the close, in which
// they are reset.
type draining struct {
	net.Listener
	tcp  *net.TCPListener // at the bottom of it
	most int              // connections that are taken then

	mu   sync.Mutex
	left []net.Conn
}

func (l *draining) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		return conn, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.left) == 0 {
		return nil, err
	}
	conn, l.left = l.left[0], l.left[1:]
	return conn, nil
}

func (l *draining) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var last error
	raw, err := l.tcp.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			for len(l.left) < l.most {
				conn, err := accept(int(fd))
				if err != nil {
					last = err
					return
				}
				l.left = append(l.left, conn)
			}
		})
	}
	if errors.Is(last, syscall.EAGAIN) { // there are no more
		last = nil
	}
	return errors.Join(err, last, l.Listener.Close())
}

// accept takes a connection from a socket that does not block.
func accept(fd int) (net.Conn, error) {
	taken, _, err := syscall.Accept(fd)
	for errors.Is(err, syscall.EINTR) || errors.Is(err, syscall.ECONNABORTED) {
		taken, _, err = syscall.Accept(fd)
	}
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(taken), "")
	defer file.Close()
	return net.FileConn(file) // of a copy
}
