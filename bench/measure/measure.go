// Package measure runs contenders side by side and says how they compare: in rounds, in turn, by medians and ratios.
//
// A machine's speed drifts while a benchmark runs, so a figure alone says little. Each round runs every contender of a case once,
// the next round begins with another one, and a ratio is taken within each round, of figures that are minutes apart at most; what
// is reported is the median of the rounds' ratios.
package measure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// A Role says what a contender is there for.
type Role string

// The roles.
const (
	Ours  Role = "ours"
	Peer  Role = "peer"
	Limit Role = "limit" // what no program could beat: the same work from memory, or without what is measured
)

// Figures are what one run of a contender gave, by metric. A metric's name ends with its unit: "rows/s", "p99 ms".
type Figures map[string]float64

// A Contender does a case's work its way. Run prepares what it needs, measures, and removes what it made.
type Contender struct {
	Name string
	Role Role
	Run  func(context.Context) (Figures, error)
}

// runLimit bounds a run: one that waits for what does not come is to fail, and the next rows to go on.
const runLimit = 5 * time.Minute

func (c Contender) run(ctx context.Context) (Figures, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, runLimit, fmt.Errorf("it did not end within %s", runLimit))
	defer cancel()
	return c.Run(ctx)
}

// A Case is work of one size, done by each of its contenders.
type Case struct {
	Name       string
	Rounds     int // at most; 0: as many as the run has
	Contenders []Contender
}

// A Row is one kind of work, with what is to be reached.
type Row struct {
	Number int
	Work   string
	Notes  []string // how the contenders are set, and why
	Cases  []Case
	Aims   []Aim
}

// A Result is what a row's runs gave: figures, and a verdict for each aim.
type Result struct {
	Number   int       `json:"row"`
	Work     string    `json:"work"`
	Notes    []string  `json:"notes"`
	Samples  []Sample  `json:"samples"`
	Verdicts []Verdict `json:"verdicts"`
	Took     string    `json:"took"`
}

// A Sample is one run of a contender.
type Sample struct {
	Case      string  `json:"case"`
	Contender string  `json:"contender"`
	Role      Role    `json:"role"`
	Round     int     `json:"round"`
	Figures   Figures `json:"figures"`
}

// Run runs a row's cases in rounds and tells progress of each run. After a run's error the result holds the samples that came before it, and no verdicts.
func Run(ctx context.Context, row Row, rounds int, progress io.Writer) (Result, error) {
	began := time.Now()
	result := Result{Number: row.Number, Work: row.Work, Notes: row.Notes}
	err := run(ctx, row, rounds, progress, &result)
	result.Took = time.Since(began).Round(time.Second).String()
	if err != nil {
		return result, err
	}
	for _, aim := range row.Aims {
		verdict, judged := aim.judge(result.Samples)
		if judged != nil {
			err = errors.Join(err, fmt.Errorf("row %d: %w", row.Number, judged))
			continue
		}
		result.Verdicts = append(result.Verdicts, verdict)
	}
	return result, err
}

func run(ctx context.Context, row Row, rounds int, progress io.Writer, result *Result) error {
	for round := range rounds {
		for _, c := range row.Cases {
			if c.Rounds > 0 && round >= c.Rounds {
				continue
			}
			for i := range c.Contenders {
				contender := c.Contenders[(i+round)%len(c.Contenders)]
				began := time.Now()
				figures, err := contender.run(ctx)
				if err != nil {
					return fmt.Errorf("row %d, %s, %s: %w", row.Number, c.Name, contender.Name, err)
				}
				result.Samples = append(result.Samples, Sample{Case: c.Name, Contender: contender.Name, Role: contender.Role,
					Round: round, Figures: figures})
				fmt.Fprintf(progress, "row %d  round %d  %s  %s  %s  (%s)\n", row.Number, round+1, c.Name, contender.Name,
					figures, time.Since(began).Round(100*time.Millisecond))
			}
		}
	}
	return nil
}
