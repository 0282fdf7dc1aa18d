package measure

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
)

// Markdown writes a row's figures and ratios, each figure beside those of its peers and its limit.
func (r Result) Markdown(w io.Writer) {
	fmt.Fprintf(w, "### %d. %s\n\n", r.Number, r.Work)
	contenders, lines := r.layout()
	if len(lines) == 0 {
		fmt.Fprint(w, "It failed.\n\n")
		return
	}
	figures := table.NewWriter()
	header := table.Row{"", "unit"}
	for _, c := range contenders {
		header = append(header, c)
	}
	figures.AppendHeader(header)
	for _, l := range lines {
		row := table.Row{l.Case, l.Metric}
		for _, c := range contenders {
			row = append(row, r.cell(Ref{l.Case, c, l.Metric}))
		}
		figures.AppendRow(row)
	}
	fmt.Fprintf(w, "%s\n\n", figures.RenderMarkdown())
	if len(r.Verdicts) > 0 {
		ratios := table.NewWriter()
		ratios.AppendHeader(table.Row{"ratio", "median", "min – max", "aim", ""})
		for _, v := range r.Verdicts {
			ratios.AppendRow(table.Row{v.What, Number(v.Ratio.Median), Number(v.Ratio.Min) + " – " + Number(v.Ratio.Max), v.aim(), v.mark()})
		}
		fmt.Fprintf(w, "%s\n\n", ratios.RenderMarkdown())
	}
	for _, note := range r.Notes {
		fmt.Fprintf(w, "- %s\n", note)
	}
	if len(r.Notes) > 0 {
		fmt.Fprintln(w)
	}
}

func (v Verdict) aim() string {
	if v.AtMost {
		return "≤ " + Number(v.Want)
	}
	return "≥ " + Number(v.Want)
}

func (v Verdict) mark() string {
	switch {
	case v.Reached():
		return "reached"
	case v.Ceiling > 0 && v.Ceiling < v.Want:
		return "**short**; the limit is " + Number(v.Ceiling)
	}
	return "**short**"
}

// layout is which columns and lines the samples make: ours first, then the peers, then the limits; lines in the order of the cases.
func (r Result) layout() (contenders []string, lines []Ref) {
	for _, role := range []Role{Ours, Peer, Limit} {
		for _, s := range r.Samples {
			if s.Role == role && !slices.Contains(contenders, s.Contender) {
				contenders = append(contenders, s.Contender)
			}
		}
	}
	for _, s := range r.Samples {
		for metric := range s.Figures {
			if line := (Ref{Case: s.Case, Metric: metric}); !slices.Contains(lines, line) {
				lines = append(lines, line)
			}
		}
	}
	var cases []string
	for _, s := range r.Samples {
		if !slices.Contains(cases, s.Case) {
			cases = append(cases, s.Case)
		}
	}
	slices.SortFunc(lines, func(a, b Ref) int {
		if a.Case != b.Case {
			return slices.Index(cases, a.Case) - slices.Index(cases, b.Case)
		}
		return strings.Compare(a.Metric, b.Metric)
	})
	return contenders, lines
}

// cell is a median with its spread.
func (r Result) cell(ref Ref) string {
	var values []float64
	for _, value := range byRound(r.Samples, ref) {
		values = append(values, value)
	}
	if len(values) == 0 {
		return "–"
	}
	s := Summarize(values)
	if s.N == 1 {
		return Number(s.Median)
	}
	return fmt.Sprintf("%s (%s – %s)", Number(s.Median), Number(s.Min), Number(s.Max))
}

// Medians are the medians of a metric over the cases that contender ran, in their order.
func (r Result) Medians(contender, metric string) (cases []string, medians []float64) {
	for _, s := range r.Samples {
		if s.Contender != contender || slices.Contains(cases, s.Case) {
			continue
		}
		var values []float64
		for _, value := range byRound(r.Samples, Ref{s.Case, contender, metric}) {
			values = append(values, value)
		}
		if len(values) > 0 {
			cases, medians = append(cases, s.Case), append(medians, Summarize(values).Median)
		}
	}
	return cases, medians
}
