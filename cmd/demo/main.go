// Command demo shows what Oncebox is for: it starts Postgres, NATS and the real services, loses replies, kills billing in the
// middle of its work, and counts who was charged how often. Beside them run a client and a consumer without protection.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/oncebox/oncebox/internal/devstack"
)

func main() {
	devstack.Helper()
	if len(os.Args) >= 2 {
		switch os.Args[1] {
		case naiveCommand:
			os.Exit(naiveMain(consumeNaively))
		case writerCommand:
			os.Exit(naiveMain(writeNaively))
		case attachCommand:
			os.Exit(attachMain(attach))
		case healthCommand:
			os.Exit(attachMain(health))
		}
	}
	o, err := parse(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(usage())
		os.Exit(0)
	case err != nil:
		fmt.Fprintf(os.Stderr, "demo: %v (-help tells the flags)\n", err)
		os.Exit(2)
	}
	if err := demo(o); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// stopLimit is how long the end may take: a service's graceful stop is bounded by 9 s.
const stopLimit = 15 * time.Second

// demo runs everything and takes it down again, whatever happens: an error, a panic, a signal. A second signal makes the end
// an abrupt one.
func demo(o options) (err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	end, hurry := context.WithCancel(context.Background())
	defer hurry()
	signals := make(chan os.Signal, 8)
	// SIGPIPE: when nobody reads what we print, as with "| head", the folders are still to be removed.
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	go func() {
		cancel(fmt.Errorf("%w (%s)", errSignal, asked(signals)))
		asked(signals)
		hurry()
	}()

	s := &stack{fail: cancel}
	defer func() {
		end, done := context.WithTimeout(end, stopLimit)
		defer done()
		err = errors.Join(err, s.stop(end))
	}()
	err = guarded(func() error { return run(ctx, o, s) })()
	if cause := context.Cause(ctx); cause != nil && err != nil && !errors.Is(err, errFailed) {
		return cause // what failed after it failed because of it
	}
	return err
}

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

// guarded makes a panic of f an error, so that what was started is stopped.
func guarded(f func() error) func() error {
	return func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
		}()
		return f()
	}
}

// errSignal is a run that was asked to stop.
var errSignal = errors.New("stopped by a signal")

// errFailed is the end of a demo whose checks failed; they are printed already.
var errFailed = errors.New("the checks failed")

func run(ctx context.Context, o options, s *stack) error {
	fmt.Printf("Oncebox demo: %d orders, %.0f %% of the replies lost, %d kills of billing, seed %d\n", o.orders, 100*o.loss, o.kills, o.seed)
	if err := s.start(ctx, o); err != nil {
		return err
	}
	l := newLoad(s, o)
	unsettled, err := l.run(ctx)
	if err != nil {
		return err
	}
	t, err := l.count(ctx)
	if err != nil {
		return err
	}
	t.table(os.Stdout)
	failed := t.failures(o)
	if unsettled != nil {
		failed = append(failed, unsettled.Error())
	}
	if !o.exit {
		if err := s.startPage(ctx, o); err != nil {
			return err
		}
		s.printURLs(os.Stdout)
	}
	for _, f := range failed {
		fmt.Println("FAILED:", f)
	}
	fmt.Println(t.line())
	if !o.exit {
		<-ctx.Done()
		if err := context.Cause(ctx); !errors.Is(err, errSignal) {
			return err
		}
	}
	if len(failed) > 0 {
		return errFailed
	}
	return nil
}
