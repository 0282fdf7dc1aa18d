package main

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"

	"github.com/oncebox/oncebox/bench/measure"
)

// A chart is a metric of some contenders over the cases of a row, both axes by powers of ten.
type chart struct {
	row         int
	file, title string
	x, y        string
	metric      string
	contenders  []string
}

var charts = []chart{
	{1, "drain.svg", "Rows a relay drains a second, by its backlog", "backlog, rows", "rows/s", "rows/s", []string{oursName, theirRelay, statusRelay, fromMemory}},
	{2, "drain-always.svg", "The same, JetStream syncing before each acknowledgement", "backlog, rows", "rows/s", "rows/s", []string{oursName, theirRelay, statusRelay, fromMemory}},
	{6, "latency-p50.svg", "POST to the charge's commit, half of all", "orders/s", "ms", "p50 ms", []string{oursName, watermillAll}},
	{6, "latency-p99.svg", "POST to the charge's commit, 99 of 100", "orders/s", "ms", "p99 ms", []string{oursName, watermillAll}},
}

// plotAll writes the charts of those rows that ran.
func plotAll(folder string, rows []measure.Result) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for _, c := range charts {
		for _, row := range rows {
			if row.Number != c.row {
				continue
			}
			if err := c.write(folder, row); err != nil {
				return fmt.Errorf("plot %s: %w", c.file, err)
			}
		}
	}
	return nil
}

func (c chart) write(folder string, row measure.Result) error {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = c.title, c.x, c.y
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.LogTicks{Prec: -1}, plot.LogTicks{Prec: -1}
	p.Legend.Top = true
	p.Add(plotter.NewGrid())
	var lines []any
	for _, contender := range c.contenders {
		cases, medians := row.Medians(contender, c.metric)
		points := make(plotter.XYs, len(cases))
		for i, name := range cases {
			x, err := leading(name)
			if err != nil {
				return err
			}
			points[i] = plotter.XY{X: x, Y: medians[i]}
		}
		if len(points) > 0 {
			slices.SortFunc(points, func(a, b plotter.XY) int { return cmp.Compare(a.X, b.X) })
			lines = append(lines, contender, points)
		}
	}
	if err := plotutil.AddLinePoints(p, lines...); err != nil {
		return err
	}
	// Whole powers of ten: a flat line is to look flat.
	p.X.Min, p.X.Max = decade(p.X.Min, math.Floor), decade(p.X.Max, math.Ceil)
	p.Y.Min, p.Y.Max = decade(p.Y.Min, math.Floor), decade(p.Y.Max, math.Ceil)
	return p.Save(18*vg.Centimeter, 11*vg.Centimeter, filepath.Join(folder, c.file))
}

func decade(v float64, to func(float64) float64) float64 { return math.Pow(10, to(math.Log10(v))) }

// leading is the number with which a case's name begins.
func leading(name string) (float64, error) {
	first, _, _ := strings.Cut(name, " ")
	return strconv.ParseFloat(strings.ReplaceAll(first, ",", ""), 64)
}
