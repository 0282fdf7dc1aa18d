package main

import (
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

type options struct {
	quick  bool
	check  bool
	rounds int
	rows   []int
	json   string
	plots  string
	into   string
}

// usageError is one about the command line.
type usageError struct{ error }

func (o *options) flags() *flag.FlagSet {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // main prints the error, as one line
	fs.BoolVar(&o.quick, "quick", false, "small sizes, one round, below two minutes: says whether it runs, not how fast it is")
	fs.BoolVar(&o.check, "check", false, "fail where a ratio is not even half of its aim, also when its row is measured again in three rounds")
	fs.IntVar(&o.rounds, "rounds", 0, "how many rounds `N` (default 3, with -quick 1)")
	fs.Func("rows", "which rows, as `1,3` (default: all)", func(list string) error {
		for part := range strings.SplitSeq(list, ",") {
			n, err := strconv.Atoi(part)
			if err != nil || n < 1 || n > rowCount {
				return fmt.Errorf("%q is no row from 1 to %d", part, rowCount)
			}
			o.rows = append(o.rows, n)
		}
		return nil
	})
	fs.StringVar(&o.json, "json", "", "write the figures of each run to `FILE`")
	fs.StringVar(&o.plots, "plots", "", "write the plots, as SVG, to `FOLDER`")
	fs.StringVar(&o.into, "into", "", "write the tables into `FILE`, between the lines that mark their place there, and not only to standard output")
	return fs
}

func parse(args []string) (options, error) {
	var o options
	fs := o.flags()
	if err := fs.Parse(args); err != nil {
		return o, usageError{err}
	}
	switch {
	case fs.NArg() > 0:
		return o, usageError{fmt.Errorf("unexpected argument %q", fs.Arg(0))}
	case o.rounds < 0:
		return o, usageError{fmt.Errorf("-rounds is %d, and must be at least 1", o.rounds)}
	}
	if o.rounds == 0 {
		o.rounds = 3
		if o.quick {
			o.rounds = 1
		}
	}
	slices.Sort(o.rows)
	o.rows = slices.Compact(o.rows)
	return o, nil
}

func usage() string {
	var b strings.Builder
	b.WriteString(`Measures Oncebox beside its peers and its physical limits, in turn, on a Postgres and NATS that it starts itself (fsync on), and
prints the medians, their spread and the ratios as Markdown.

Usage: bench [flags]

`)
	var o options
	fs := o.flags()
	fs.SetOutput(&b)
	fs.PrintDefaults()
	b.WriteString(`
The exit status is 0 if every row ran (with -check: and no ratio is below half of its aim), 1 if not, 2 for wrong flags.
`)
	return b.String()
}
