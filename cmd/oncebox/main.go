// Command oncebox is the operator's: it asks the services' admin listeners how they stand, proves that what they hold is alike, and
// repairs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
	"github.com/willabides/kongplete"
)

type cli struct {
	Service   map[string]string `env:"ONCEBOX_SERVICES" default:"orders=http://127.0.0.1:8090;billing=http://127.0.0.1:8091" help:"The services and their admin listeners, as name=URL, separated by semicolons."`
	TokenFile string            `env:"ONCEBOX_TOKEN_FILE" help:"File with the services' admin token. Needed for whatever changes something, and to see a dead letter whole." predictor:"file"`
	Output    string            `short:"o" enum:"table,json" default:"table" help:"table for people, json for programs."`

	Status statusCmd `cmd:"" help:"How each service stands: its relay, its dead letters, what was last found different."`
	Lag    lagCmd    `cmd:"" help:"What each relay has yet to send."`
	Verify verifyCmd `cmd:"" help:"Prove that outbox, inbox and effects are alike, while the services run."`
	Heal   healCmd   `cmd:"" help:"Have events sent again that were acknowledged and that their consumer does not have."`
	Parked parkedCmd `cmd:"" help:"Events that a stream can never hold."`
	Dead   deadCmd   `cmd:"" help:"Messages that a service could not handle."`
	Replay replayCmd `cmd:"" help:"Send events of a service's outbox once more. Consumers take no notice of those which they have."`
	Trace  traceCmd  `cmd:"" help:"The way of one message, through all services."`

	InstallCompletions kongplete.InstallCompletions `cmd:"" help:"Install completion for your shell."`
}

const description = `Asks the services' admin listeners, and nothing else: it needs no database and no broker.

Exit status: 0, all is well; 1, something differs or stays to be done; 2, it could not be asked, or the command line is wrong.`

// errDiffers ends a command that could ask, and did not like the answer. What that is has been printed.
var errDiffers = errors.New("not all is alike")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, out, errs io.Writer) int {
	var c cli
	var status *int
	k, err := kong.New(&c, kong.Name("oncebox"), kong.Description(description), kong.Writers(out, errs),
		kong.Exit(func(code int) { status = &code }), kong.ConfigureHelp(kong.HelpOptions{Compact: true}))
	if err != nil {
		fmt.Fprintln(errs, "oncebox:", err)
		return 2
	}
	if os.Getenv("COMP_LINE") != "" {
		kongplete.Complete(k)
	}
	parsed, err := k.Parse(args)
	if status != nil { // --help
		return *status
	}
	if err != nil {
		fmt.Fprintln(errs, "oncebox: error:", err)
		return 2
	}
	a, err := newApp(c, out, errs)
	if err == nil {
		err = parsed.Run(a, ctxArg{ctx})
	}
	switch {
	case errors.Is(err, errDiffers):
		return 1
	case err != nil:
		fmt.Fprintln(errs, "oncebox: error:", err)
		return 2
	}
	return 0
}

// A ctxArg carries the context to the commands: kong binds concrete types.
type ctxArg struct{ context.Context }
