package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/oncebox/oncebox/bench/measure"
	"github.com/oncebox/oncebox/internal/devstack"
)

// A bench is what the rows are measured on, and at what sizes.
type bench struct {
	*stack
	quick bool
}

// rowCount is how many rows there are.
const rowCount = 11

// rows are all of them, by number.
func (b *bench) rows() []measure.Row {
	return []measure.Row{b.drain(), b.drainAlways(), b.consume(), b.write(), b.whole(), b.latency(),
		b.pinned(), b.footprint(), b.memoryRow(), b.takeover(), b.keys()}
}

// size is one of the two, by the kind of run.
func size[T any](b *bench, full, quick T) T {
	if b.quick {
		return quick
	}
	return full
}

// A report is what -json keeps.
type report struct {
	At      time.Time        `json:"at"`
	Machine string           `json:"machine"`
	Quick   bool             `json:"quick"`
	Rounds  int              `json:"rounds"`
	Took    string           `json:"took"`
	Rows    []measure.Result `json:"rows"`
}

func run(ctx context.Context, o options) error {
	began := time.Now()
	if err := devstack.InstallPostgres(ctx, os.Stderr); err != nil {
		return err
	}
	s, err := startStack(ctx)
	if err != nil {
		return err
	}
	b := &bench{stack: s, quick: o.quick}
	r := report{At: began.UTC().Truncate(time.Second), Machine: machine(ctx), Quick: o.quick, Rounds: o.rounds}
	for _, row := range b.rows() {
		if len(o.rows) > 0 && !slices.Contains(o.rows, row.Number) || ctx.Err() != nil {
			continue
		}
		result, failed := measure.Run(ctx, row, o.rounds, os.Stderr)
		if o.check && failed == nil && farOff(result) != nil {
			fmt.Fprintf(os.Stderr, "row %d is far off, which a busy moment may do: again, in %d rounds\n", row.Number, againRounds)
			result, failed = measure.Run(ctx, row, againRounds, os.Stderr)
		}
		if failed != nil {
			fmt.Fprintf(os.Stderr, "row %d FAILED, the others go on: %v\n", row.Number, failed)
			err = errors.Join(err, failed)
		}
		r.Rows = append(r.Rows, result)
	}
	r.Took = time.Since(began).Round(time.Second).String()
	err = errors.Join(err, s.remove(), r.write(o))
	if o.check {
		for _, row := range r.Rows {
			err = errors.Join(err, farOff(row))
		}
	}
	return err
}

// againRounds is in how many rounds a row that is far off is measured once more.
const againRounds = 3

func (r report) write(o options) error {
	var tables strings.Builder
	r.markdown(&tables)
	fmt.Print(tables.String())
	var err error
	if o.json != "" {
		b, failed := json.MarshalIndent(r, "", "  ")
		err = errors.Join(failed, os.WriteFile(o.json, append(b, '\n'), 0o644))
	}
	if o.into != "" {
		err = errors.Join(err, replaceTables(o.into, tables.String()))
	}
	if o.plots != "" {
		err = errors.Join(err, plotAll(o.plots, r.Rows))
	}
	return err
}

func (r report) markdown(w io.Writer) {
	kind := "full"
	if r.Quick {
		kind = "quick: it says whether the rows run, not how fast they are"
	}
	fmt.Fprintf(w, "%s, %s; %s, %d rounds, %s. Median (least – greatest).\n\n", r.At.Format(time.RFC3339), r.Machine, kind, r.Rounds, r.Took)
	for _, row := range r.Rows {
		row.Markdown(w)
	}
}

// farOff names the row's ratios that are not even half of their aim.
func farOff(row measure.Result) error {
	var errs []error
	for _, v := range row.Verdicts {
		if v.FarOff() {
			errs = append(errs, fmt.Errorf("row %d: %s is %.3g, and the aim is %.3g (that of the limit itself: %.3g)", row.Number, v.What, v.Ratio.Median, v.Want, v.Ceiling))
		}
	}
	return errors.Join(errs...)
}

// machine says on what the figures came to be.
func machine(ctx context.Context) string {
	parts := []string{fmt.Sprintf("%d cores, %s, %s/%s", runtime.NumCPU(), runtime.Version(), runtime.GOOS, runtime.GOARCH)}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		parts = append(parts, "load "+strings.Fields(string(load))[0]+" before it began")
	}
	if version, err := exec.CommandContext(ctx, "uname", "-r").Output(); err == nil {
		parts = append(parts, "kernel "+strings.TrimSpace(string(version)))
	}
	return strings.Join(parts, ", ")
}

// The lines of a document between which the tables stand.
const tablesBegin, tablesEnd = "<!-- bench: tables -->", "<!-- bench: end -->"

func replaceTables(file, tables string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, begins := strings.Cut(string(b), tablesBegin)
	_, after, ends := strings.Cut(rest, tablesEnd)
	if !begins || !ends {
		return fmt.Errorf("%s has no lines %s and %s", file, tablesBegin, tablesEnd)
	}
	return os.WriteFile(file, []byte(before+tablesBegin+"\n\n"+strings.TrimSpace(tables)+"\n\n"+tablesEnd+after), 0o644)
}
