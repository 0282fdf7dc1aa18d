package measure

import (
	"fmt"
	"math"
)

// A Ref names one figure of a row: whose, in which case.
type Ref struct{ Case, Contender, Metric string }

// An Aim is a ratio of two figures, or with no Under a figure, and what it is to be.
type Aim struct {
	What   string
	Over   Ref
	Under  Ref
	Want   float64
	AtMost bool // rather than at least
}

// Of is the aim for a contender's metric over another's, in one case.
func Of(what, c, metric, over, under string, want float64) Aim {
	return Aim{What: what, Over: Ref{c, over, metric}, Under: Ref{c, under, metric}, Want: want}
}

// A Verdict is what an aim's ratio came to.
type Verdict struct {
	What   string  `json:"what"`
	Ratio  Summary `json:"ratio"`
	Want   float64 `json:"want"`
	AtMost bool    `json:"at_most"`
}

// Reached says whether the median of the ratio is as wanted.
func (v Verdict) Reached() bool { return v.within(1) }

// FarOff says that it is not even half as good as wanted: too far for a machine that is merely busy.
func (v Verdict) FarOff() bool { return !v.within(2) }

func (v Verdict) within(slack float64) bool {
	if v.AtMost {
		return v.Ratio.Median <= v.Want*slack
	}
	return v.Ratio.Median >= v.Want/slack
}

func (a Aim) judge(samples []Sample) (Verdict, error) {
	over := byRound(samples, a.Over)
	ratios := make([]float64, 0, len(over))
	under := byRound(samples, a.Under)
	for round, value := range over {
		if a.Under == (Ref{}) {
			ratios = append(ratios, value)
			continue
		}
		if below, ok := under[round]; ok {
			ratios = append(ratios, value/below)
		}
	}
	if len(ratios) == 0 {
		return Verdict{}, fmt.Errorf("no round has both figures of the aim %q", a.What)
	}
	s := Summarize(ratios)
	if math.IsNaN(s.Median) || math.IsInf(s.Median, 0) {
		return Verdict{}, fmt.Errorf("the aim %q divides by 0", a.What)
	}
	return Verdict{What: a.What, Ratio: s, Want: a.Want, AtMost: a.AtMost}, nil
}

func byRound(samples []Sample, ref Ref) map[int]float64 {
	values := map[int]float64{}
	for _, s := range samples {
		if value, ok := s.Figures[ref.Metric]; ok && s.Case == ref.Case && s.Contender == ref.Contender {
			values[s.Round] = value
		}
	}
	return values
}
