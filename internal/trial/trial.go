// Package trial is what the commands share that start a whole system, drive it, judge it and take it down again: the demo and
// the storm.
package trial

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"
)

var (
	// ErrSignal is the end of a run that was asked to stop.
	ErrSignal = errors.New("stopped by a signal")
	// ErrFailed is the end of a run whose checks failed; they are printed already.
	ErrFailed = errors.New("the checks failed")
)

// Run runs do and then undo, whatever happens: an error, a panic, a signal. A signal, or a call of fail, ends the context of do,
// and is the error that is returned then. The context of undo ends after limit; a second signal ends it at once.
func Run(limit time.Duration, do func(ctx context.Context, fail context.CancelCauseFunc) error, undo func(context.Context) error) (err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	end, hurry := context.WithCancel(context.Background())
	defer hurry()
	signals := make(chan os.Signal, 8)
	// SIGPIPE: when nobody reads what we print, as with "| head", the folders are still to be removed.
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	go func() {
		cancel(fmt.Errorf("%w (%s)", ErrSignal, asked(signals)))
		asked(signals)
		hurry()
	}()
	defer func() {
		end, done := context.WithTimeout(end, limit)
		defer done()
		err = errors.Join(err, undo(end))
	}()
	err = Guarded(func() error { return do(ctx, cancel) })()
	if cause := context.Cause(ctx); cause != nil && err != nil && !errors.Is(err, ErrFailed) {
		return cause // what failed after it failed because of it
	}
	return err
}

// Guarded makes a panic of f an error, so that what was started is stopped.
func Guarded(f func() error) func() error {
	return func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
		}()
		return f()
	}
}
