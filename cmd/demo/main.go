// Command demo shows what Oncebox is for: it starts Postgres, NATS and the real services, loses replies, kills billing in the
// middle of its work, and counts who was charged how often. Beside them run a client and a consumer without protection.
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

// demo runs everything and takes it down again, whatever happens.
func demo(o options) error {
	s := &stack{}
	return trial.Run(stopLimit, func(ctx context.Context, fail context.CancelCauseFunc) error {
		s.fail = fail
		return run(ctx, o, s)
	}, s.stop)
}

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
		if err := context.Cause(ctx); !errors.Is(err, trial.ErrSignal) {
			return err
		}
	}
	if len(failed) > 0 {
		return trial.ErrFailed
	}
	return nil
}
