package devstack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// A server is what Postgres and NATS have in common: a folder, a port, and the process of the moment.
type server struct {
	folder *folder
	port   int
	// launch starts the process and returns when it serves. On error nothing runs.
	launch func(ctx context.Context, port int) (*Process, error)

	mu   sync.Mutex // held during a restart: other calls wait for it
	proc *Process
}

// errBusy is what a launch returns when waiting helps: the port is taken, or a killed predecessor is not all gone.
var errBusy = errors.New("busy")

// errEnded is a process that ended with status 0 where it should have served.
var errEnded = errors.New("it ended by itself")

const (
	// portTries is how often a start picks another port.
	portTries = 5
	// busyWait is how long a start on a port that must be this one waits for it to become free, and busyPause the time
	// between its tries.
	busyWait  = 5 * time.Second
	busyPause = 20 * time.Millisecond
)

// start launches on s.port, or on a free one when that is 0.
func (s *server) start(ctx context.Context) error {
	if s.port != 0 {
		return s.startHere(ctx)
	}
	var err error
	for range portTries {
		s.port, err = FreePort()
		if err != nil {
			return err
		}
		s.proc, err = s.launch(ctx, s.port)
		if !errors.Is(err, errBusy) {
			return err
		}
	}
	return err
}

func (s *server) startHere(ctx context.Context) error {
	giveUp := time.Now().Add(busyWait)
	var busy error
	for {
		proc, err := s.launch(ctx, s.port)
		switch {
		case err == nil:
			s.proc = proc
			return nil
		case !errors.Is(err, errBusy):
			return errors.Join(busy, err) // what it waited for, when ctx ended the wait
		case time.Now().After(giveUp):
			return err
		}
		busy = err
		select {
		case <-ctx.Done():
			return errors.Join(busy, context.Cause(ctx))
		case <-time.After(busyPause):
		}
	}
}

// restart ends the process by stop and starts it on the same port and files.
func (s *server) restart(ctx context.Context, stop func(*Process) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := stop(s.proc); err != nil {
		return err
	}
	return s.startHere(ctx)
}

func (s *server) process() *Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc
}

// logged opens the server's log for a new process. The function it returns reads what was written since.
func (s *server) logged() (*os.File, func() string, error) {
	f, err := os.OpenFile(s.folder.log(), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o644)
	if err != nil {
		return nil, nil, err
	}
	from, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, func() string {
		b, err := io.ReadAll(io.NewSectionReader(f, from, 1<<20))
		if err != nil {
			return err.Error()
		}
		return string(b)
	}, nil
}

// died makes the error of a process that ended, or was ended, before it served.
func died(ctx context.Context, name string, proc *Process, log string) error {
	cause := cmp.Or(context.Cause(ctx), proc.Err(), errEnded)
	err := fmt.Errorf("%s did not start: %w: %s", name, cause, lastLines(log, 5))
	for _, sign := range []string{"address already in use", "pre-existing shared memory block"} {
		if strings.Contains(strings.ToLower(log), sign) {
			return fmt.Errorf("%w: %w", errBusy, err)
		}
	}
	return err
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
