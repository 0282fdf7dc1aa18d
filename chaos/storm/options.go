package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// options say what a run is. All that a replay needs is written into its folder.
type options struct {
	Seed       uint64        `json:"seed"`
	Orders     int           `json:"orders"`
	Kills      int           `json:"kills"`
	Clients    int           `json:"clients"`
	Duration   time.Duration `json:"duration"`
	Settle     time.Duration `json:"settle"`
	DropGuards bool          `json:"drop_guards"`

	out    string
	replay string
}

func (o *options) flags() *flag.FlagSet {
	fs := flag.NewFlagSet("storm", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // the caller prints the error, as one line
	fs.Uint64Var(&o.Seed, "seed", 0, "decides `S` the schedule of faults and what clients ask for (default: a random one, which is printed)")
	fs.IntVar(&o.Orders, "orders", 100_000, "how many requests `N` clients want answered: orders, and some charges without one")
	fs.IntVar(&o.Kills, "kills", 500, "how many SIGKILLs `K`, of all kinds of process; the other faults come with them")
	fs.IntVar(&o.Clients, "clients", 24, "how many clients `C` ask at once")
	fs.DurationVar(&o.Duration, "duration", time.Hour, "how long the faults may take, all in all; what is not done by then has failed")
	fs.DurationVar(&o.Settle, "settle", time.Minute, "how long all that was taken may take to come to its end once everything is mended")
	fs.BoolVar(&o.DropGuards, "drop-guards", false, "drop the charge table's own guards, so that the inbox alone has to hold")
	fs.StringVar(&o.out, "out", "", "the `FOLDER` for seed, schedule, history and logs (default: a new one, removed after a run that passes)")
	fs.StringVar(&o.replay, "replay", "", "the `FOLDER` of an earlier run, whose seed, schedule and load are run again")
	return fs
}

func parse(args []string) (options, error) {
	var o options
	fs := o.flags()
	if err := fs.Parse(args); err != nil {
		return options{}, err
	}
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if fs.NArg() > 0 {
		return options{}, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if o.replay != "" {
		out := o.out
		for name := range given {
			if name != "replay" && name != "out" {
				return options{}, fmt.Errorf("-replay takes all from its folder: leave -%s out", name)
			}
		}
		text, err := os.ReadFile(filepath.Join(o.replay, optionsFile))
		if err == nil {
			err = json.Unmarshal(text, &o)
		}
		if err != nil {
			return options{}, fmt.Errorf("-replay: %w", err)
		}
		o.out = out
	} else if !given["seed"] {
		o.Seed = rand.Uint64N(1_000_000)
	}
	return o, o.validate()
}

func (o options) validate() error {
	switch {
	case o.Orders < 20 || o.Orders > 10_000_000:
		return fmt.Errorf("-orders is %d, and must be from 20 to 10000000", o.Orders)
	case o.Kills < 0:
		return errors.New("-kills must not be negative")
	case o.Orders < 10*o.Kills:
		return fmt.Errorf("-orders is %d, and must be 10 times -kills, %d, at least: each fault needs work to come into", o.Orders, o.Kills)
	case o.Clients < 2 || o.Clients > 500:
		return fmt.Errorf("-clients is %d, and must be from 2 to 500", o.Clients)
	case o.Duration <= 0 || o.Settle <= 0:
		return errors.New("-duration and -settle must be above 0")
	}
	return nil
}

func usage() string {
	var b strings.Builder
	b.WriteString(`Loads the real binaries, breaks everything around and in them from a seed, and judges by databases, streams and history.

Usage: make chaos CHAOS="[flags]"

`)
	var o options
	fs := o.flags()
	fs.SetOutput(&b)
	fs.PrintDefaults()
	b.WriteString(`
The same seed and flags are the same schedule of faults and the same requests. The exit status is 0 if each accepted order was charged
once, the money adds up, each event is accounted for, all settled in time and the faults really came; 1 if not; 2 for wrong flags.
`)
	return b.String()
}
