package measure

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"gonum.org/v1/gonum/stat"
)

// A Summary is the median of some values, and how far they spread. With the few rounds of a run the extremes say more than a
// deviation would.
type Summary struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	N      int     `json:"n"`
}

// Summarize returns the summary of at least one value.
func Summarize(values []float64) Summary {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return Summary{Median: (sorted[(n-1)/2] + sorted[n/2]) / 2, Min: sorted[0], Max: sorted[n-1], N: n}
}

// Percentile is the p-th (0 to 1) of durations, in milliseconds.
func Percentile(durations []time.Duration, p float64) float64 {
	ms := make([]float64, len(durations))
	for i, d := range durations {
		ms[i] = float64(d) / float64(time.Millisecond)
	}
	slices.Sort(ms)
	return stat.Quantile(p, stat.Empirical, ms, nil)
}

// String lists the figures by name.
func (f Figures) String() string {
	var parts []string
	for _, metric := range slices.Sorted(maps.Keys(f)) {
		parts = append(parts, Number(f[metric])+" "+metric)
	}
	return strings.Join(parts, ", ")
}

// Number writes a value with three significant digits or all before the point, thousands apart.
func Number(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v >= 100 || v <= -100:
		digits := fmt.Sprintf("%.0f", v)
		var b strings.Builder
		for i, d := range digits {
			if i > 0 && (len(digits)-i)%3 == 0 && digits[i-1] != '-' {
				b.WriteByte(',')
			}
			b.WriteRune(d)
		}
		return b.String()
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
