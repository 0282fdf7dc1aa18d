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

const drainPoll = 5 * time.Millisecond

// stop takes no new connections, answers each request of those who are connected, and returns when they are gone; when ctx is done
// before, it cuts the rest off. Shutdown alone would drop without an answer what it has just read, and whoever the kernel has
// connected already.
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
// clients have sent their requests. Those that come later are refused, and know it.
type draining struct {
	net.Listener
	tcp *net.TCPListener // at the bottom of it

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
	raw, err := l.tcp.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			for {
				conn, err := accept(int(fd))
				if err != nil { // there is none
					return
				}
				l.left = append(l.left, conn)
			}
		})
	}
	return errors.Join(err, l.Listener.Close())
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
