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
	"time"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/trial"
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

// stopLimit is how long the end may take.
const stopLimit = 20 * time.Second

// storm runs everything and takes it down again, whatever happens.
func storm(o options) error {
	w := &world{}
	return trial.Run(stopLimit, func(ctx context.Context, fail context.CancelCauseFunc) error {
		w.fail = fail
		return whole(ctx, o, w)
	}, w.stop)
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
	if errors.Is(context.Cause(ctx), trial.ErrSignal) {
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
		return trial.ErrFailed
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
