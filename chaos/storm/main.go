// Command storm starts all of Oncebox on this machine, loads it, breaks everything around and in it from a seed, and then judges by
// the databases, the streams and what the clients were told. It ends with 0 only if nothing was lost, nothing was done twice, all of
// it settled in time, and the faults really came.
//
//	go run ./storm [-seed S] [-kills 500] [-orders 100000]
//
// Faults are on in the first part, with pauses in which there are none. Then everything is mended, and all that was taken has to come
// to its end within a stated time. The seed decides what is broken, when in the load and in which state, and what the clients ask for;
// how processes interleave it cannot decide.
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

	"github.com/oncebox/oncebox/internal/devstack"
)

func main() {
	devstack.Helper()
	o, err := parse(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(usage())
		os.Exit(0)
	case err != nil:
		fmt.Fprintf(os.Stderr, "storm: %v (-help tells the flags)\n", err)
		os.Exit(2)
	}
	if err := storm(o); err != nil {
		fmt.Fprintln(os.Stderr, "storm:", err)
		os.Exit(1)
	}
}

// errFailed is the end of a storm whose checks failed; they are printed already.
var errFailed = errors.New("the checks failed")

// errSignal is a run that was asked to stop.
var errSignal = errors.New("stopped by a signal")

// stopLimit is how long the end may take.
const stopLimit = 20 * time.Second

// storm runs everything and takes it down again, whatever happens: an error, a panic, a signal. A second signal makes the end an
// abrupt one.
func storm(o options) (err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	end, hurry := context.WithCancel(context.Background())
	defer hurry()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		cancel(fmt.Errorf("%w (%s)", errSignal, <-signals))
		<-signals
		hurry()
	}()
	w := &world{fail: cancel}
	defer func() {
		end, done := context.WithTimeout(end, stopLimit)
		defer done()
		err = errors.Join(err, w.stop(end))
	}()
	err = guarded(func() error { return whole(ctx, o, w) })()
	if cause := context.Cause(ctx); cause != nil && err != nil && !errors.Is(err, errFailed) {
		return cause // what failed after it failed because of it
	}
	return err
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

func whole(ctx context.Context, o options, w *world) error {
	plan := newSchedule(o)
	f, err := newFolder(o, plan)
	if err != nil {
		return err
	}
	fmt.Printf("Oncebox storm: seed %d, %d orders by %d clients, %d SIGKILLs among %d faults; schedule and history in %s\n",
		o.Seed, o.Orders, o.Clients, plan.kills(), len(plan), f.path)
	v, err := judged(ctx, o, w, f, plan)
	if errors.Is(context.Cause(ctx), errSignal) {
		return errors.Join(err, f.done())
	}
	if err != nil {
		return fmt.Errorf("%w; kept: %s", err, f.path)
	}
	v.table(os.Stdout)
	for i, p := range v.problems {
		if i == 40 {
			fmt.Printf("FAILED: and %d more\n", len(v.problems)-i)
			break
		}
		fmt.Println("FAILED:", p)
	}
	fmt.Println(v.line())
	if len(v.problems) > 0 {
		fmt.Println("kept:", f.path)
		return errFailed
	}
	return f.done()
}

// judged starts everything and runs the storm.
func judged(ctx context.Context, o options, w *world, f *folder, plan schedule) (*verdict, error) {
	began := time.Now()
	if err := w.start(ctx, o, f.path); err != nil {
		return nil, err
	}
	fmt.Printf("started in %.1f s\n", time.Since(began).Seconds())
	return newRun(o, w, f, plan).all(ctx)
}
