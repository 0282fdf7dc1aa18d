// Command bench measures Oncebox beside its peers and its physical limits, on the same rows and in one run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/oncebox/oncebox/internal/devstack"
)

func main() {
	devstack.Helper()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(exit(serveOrBench(ctx, os.Args[1:])))
}

// serveOrBench is the benchmark, or one of the servers that it runs as processes of their own.
func serveOrBench(ctx context.Context, args []string) error {
	if len(args) > 0 {
		if serve, ok := servers[args[0]]; ok {
			return serve(ctx)
		}
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	return run(ctx, o)
}

func exit(err error) int {
	if err == nil {
		return 0
	}
	var wrong usageError
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(usage())
		return 0
	case errors.As(err, &wrong):
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 2
	}
	fmt.Fprintln(os.Stderr, "bench:", err)
	return 1
}
