package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/oncebox/oncebox/heal"
)

type verifyCmd struct {
	Since  string        `help:"Compare what was made since then: RFC 3339, or how long ago, such as 24h." placeholder:"TIME"`
	Until  string        `help:"And before then." placeholder:"TIME"`
	Full   bool          `help:"Compare everything, also what was found alike before and may have been changed by hand since."`
	Watch  time.Duration `help:"Compare again and again, so often, until something differs." placeholder:"DURATION"`
	Settle time.Duration `default:"10s" help:"How long what differs may take to become alike: it may be on its way."`
	Shown  int           `default:"20" help:"How many ids of each kind are shown in a table. JSON has all of them."`
}

// Help explains what is compared.
func (verifyCmd) Help() string {
	return `Each book has two sides, which are read from the tables themselves, rows and payloads; no counter is trusted:

  events-…   what one service wrote into its outbox, and what the other has in its inbox
  requests   what orders asked to be charged, and its orders
  charges    orders, and billing's charges of them
  held       the money of paid orders, and the money that billing holds
  ledger     charges and refunds, and the rows of the ledger that moved their money

Both sides tell counts and digests of ranges; where those differ, the rows' ids. An id that still differs after --settle is told, and
the exit status is 1. Without --full and --since a comparison begins where the last one ended that found all alike; to note that
takes the admin token. A row that is changed by hand behind that point is found by --full.`
}

// A bookResult is what one book's comparison came to.
type bookResult struct {
	Book      string   `json:"book"`
	Left      string   `json:"left"`
	Right     string   `json:"right"`
	Rows      int64    `json:"rows"`
	From      int64    `json:"from_bucket"`
	OnlyLeft  []string `json:"only_left"`
	OnlyRight []string `json:"only_right"`
	Unequal   []string `json:"unequal"`
	Seconds   float64  `json:"seconds"`
}

func (r bookResult) alike() bool { return len(r.OnlyLeft)+len(r.OnlyRight)+len(r.Unequal) == 0 }

// A pair are the two sides of a book.
type pair struct {
	left, right heal.RemoteSide
	leftOf      string
	rightOf     string
}

func (c verifyCmd) Run(a *app, ctx ctxArg) error {
	since, err := pointInTime(c.Since)
	if err != nil {
		return fmt.Errorf("--since: %w", err)
	}
	until, err := pointInTime(c.Until)
	if err != nil {
		return fmt.Errorf("--until: %w", err)
	}
	pairs, err := a.pairs(ctx)
	if err != nil {
		return err
	}
	for {
		if err := c.once(ctx, a, pairs, since, until); err != nil || c.Watch == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.Watch):
		}
	}
}

func (c verifyCmd) once(ctx context.Context, a *app, pairs []pair, since, until time.Time) error {
	bar := progress(a.errs, len(pairs))
	var results []bookResult
	for _, p := range pairs {
		bar.Describe(p.left.Name)
		r, err := c.compare(ctx, p, since, until)
		if err != nil {
			return fmt.Errorf("%s: %w", p.left.Name, err)
		}
		results = append(results, r)
		_ = bar.Add(1) // it is only shown
	}
	_ = bar.Finish()
	rows, alike := make([]table.Row, 0, len(results)), true
	for _, r := range results {
		verdict := "alike"
		if !r.alike() {
			verdict, alike = "DIFFERENT", false
		}
		rows = append(rows, table.Row{r.Book, r.Left + " / " + r.Right, r.Rows, len(r.OnlyLeft), len(r.OnlyRight), len(r.Unequal),
			fmt.Sprintf("%.1f s", r.Seconds), verdict})
	}
	if err := a.show(results, table.Row{"book", "left / right", "rows", "only left", "only right", "unequal", "took", ""}, rows); err != nil {
		return err
	}
	if alike {
		return nil
	}
	if !a.json {
		for _, r := range results {
			for what, ids := range map[string][]string{"only " + r.Left + " has": r.OnlyLeft, "only " + r.Right + " has": r.OnlyRight, "unequal": r.Unequal} {
				for _, id := range ids[:min(len(ids), c.Shown)] {
					fmt.Fprintf(a.out, "%s: %s %s\n", r.Book, what, id)
				}
			}
		}
	}
	return errDiffers
}

// compare compares one book, and moves its marks where that found it alike.
func (c verifyCmd) compare(ctx context.Context, p pair, since, until time.Time) (bookResult, error) {
	begin := time.Now()
	r := bookResult{Book: p.left.Name, Left: p.leftOf, Right: p.rightOf}
	span, err := p.left.Span(ctx, since, until)
	if err != nil {
		return r, err
	}
	right, err := p.right.Span(ctx, time.Time{}, time.Time{})
	if err != nil {
		return r, err
	}
	goesOn := !c.Full && c.Since == "" && c.Until == ""
	if goesOn {
		span.From = max(span.From, min(span.Mark, right.Mark))
	}
	r.From = span.From
	d, err := heal.Compare(ctx, p.left, p.right, span.From, span.To)
	if err != nil {
		return r, err
	}
	d.Right = slices.DeleteFunc(d.Right, func(e heal.Entry) bool { return e.Seq > 0 && e.Seq < span.FirstSeq })
	for end := begin.Add(c.Settle); !d.Empty() && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-time.After(min(c.Settle/10+time.Millisecond, time.Until(end)+time.Millisecond)):
		}
		if d, err = d.Again(ctx, p.left, p.right); err != nil {
			return r, err
		}
	}
	r.Rows, r.OnlyLeft, r.OnlyRight, r.Unequal = d.Rows, idsOf(d.Left), idsOf(d.Right), idsOf(d.Unequal)
	r.Seconds = time.Since(begin).Seconds()
	if closed := min(span.Closed, span.To); d.Empty() && (goesOn || c.Full) && p.left.Token != "" && closed > min(span.Mark, right.Mark) {
		return r, errors.Join(p.left.Mark(ctx, closed), p.right.Mark(ctx, closed))
	}
	return r, nil
}

func idsOf(entries []heal.Entry) []string {
	ids := make([]string, len(entries))
	for i, e := range entries {
		ids[i] = e.ID
	}
	return ids
}

// pairs are the books of which both sides are offered.
func (a *app) pairs(ctx context.Context) ([]pair, error) {
	books := map[string]*pair{}
	for _, s := range a.services {
		sides, err := s.Sides(ctx)
		if err != nil {
			return nil, err
		}
		for _, side := range sides {
			p := books[side.Name]
			if p == nil {
				p = &pair{}
				books[side.Name] = p
			}
			if side.Side == heal.Left {
				p.left, p.leftOf = side, s.name
			} else {
				p.right, p.rightOf = side, s.name
			}
		}
	}
	var pairs []pair
	for name, p := range books {
		if p.leftOf == "" || p.rightOf == "" {
			return nil, fmt.Errorf("nobody offers the other side of the book %s: is a service missing in --service?", name)
		}
		pairs = append(pairs, *p)
	}
	slices.SortFunc(pairs, func(x, y pair) int { return strings.Compare(x.left.Name, y.left.Name) })
	return pairs, nil
}

// pointInTime reads a time, or how long ago it is.
func pointInTime(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return time.Now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, fmt.Errorf("%q is neither a time in RFC 3339 nor a duration", s)
	}
	return t, nil
}

// progress is a bar on a terminal, and nothing elsewhere.
func progress(w io.Writer, steps int) *progressbar.ProgressBar {
	if f, ok := w.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		w = io.Discard
	}
	return progressbar.NewOptions(steps, progressbar.OptionSetWriter(w), progressbar.OptionClearOnFinish(), progressbar.OptionSetWidth(20))
}
