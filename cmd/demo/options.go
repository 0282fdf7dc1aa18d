package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
)

type options struct {
	orders int
	loss   float64
	kills  int
	seed   uint64
	store  string
	exit   bool
}

func (o *options) flags() *flag.FlagSet {
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // the caller prints the error, as one line
	fs.IntVar(&o.orders, "orders", 1000, "how many orders `N` each of the two clients wants, of $100.00 each")
	fs.Float64Var(&o.loss, "loss", 0.4, "the share `P` of replies that the link loses after the service has answered, 0 to 0.9")
	fs.IntVar(&o.kills, "kills", 5, "how often `K` billing is killed (SIGKILL) with messages in hand and started again; below N")
	fs.Uint64Var(&o.seed, "seed", 0, "decides `S` which replies are lost (default: a random one, which is printed)")
	fs.StringVar(&o.store, "store", "postgres", "where `STORE` Idempotency-Keys are kept: postgres, or redis, for which a server is started")
	fs.BoolVar(&o.exit, "exit", false, "end after the result (default: stay up until Ctrl-C, for a look around)")
	return fs
}

func parse(args []string) (options, error) {
	var o options
	fs := o.flags()
	if err := fs.Parse(args); err != nil {
		return options{}, err
	}
	seeded := false
	fs.Visit(func(f *flag.Flag) { seeded = seeded || f.Name == "seed" })
	if !seeded {
		o.seed = rand.Uint64N(1_000_000)
	}
	switch {
	case fs.NArg() > 0:
		return options{}, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case o.orders < 1 || o.orders > 1_000_000:
		return options{}, fmt.Errorf("-orders is %d, and must be from 1 to 1000000", o.orders)
	case !(o.loss >= 0 && o.loss <= 0.9): // this way round NaN is refused too
		return options{}, fmt.Errorf("-loss is %g, and must be from 0 to 0.9", o.loss)
	case o.store != "postgres" && o.store != "redis":
		return options{}, fmt.Errorf("-store is %q, and must be postgres or redis", o.store)
	case o.kills < 0:
		return options{}, errors.New("-kills must not be negative")
	case o.kills >= o.orders:
		return options{}, fmt.Errorf("-kills is %d, and must be below -orders, %d: each kill needs an order in flight", o.kills, o.orders)
	}
	return o, nil
}

func usage() string {
	var b strings.Builder
	b.WriteString(`Shows orders being charged once while replies are lost and billing is killed, beside a client and a consumer without protection.

Usage: demo [flags]
       demo attach --help    the page beside services that run already, as in docker-compose.yml

`)
	var o options
	fs := o.flags()
	fs.SetOutput(&b)
	fs.PrintDefaults()
	b.WriteString(`
Environment:
  DATABASE_URL  a Postgres superuser's URL: its server is used, in databases of this run's own that are dropped at the end.
                Default: a server is started, and installed before where that can be done.
  NATS_URL      a nats-server with JetStream and without Oncebox's streams, which are deleted at the end.
                Default: one is started.
  REDIS_URL     a Redis that keeps what it is given, for -store redis. Default: one is started.

The exit status is 0 if every accepted order was charged once, the money adds up and the faults really came; 1 if not; 2 for
wrong flags.
`)
	return b.String()
}
