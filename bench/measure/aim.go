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
	Limit  Ref  // what no program could beat in Over's place, if the row measures that
}

// Below returns the aim with the contender that is the limit of what it measures.
func (a Aim) Below(limit string) Aim {
	a.Limit = Ref{a.Over.Case, limit, a.Over.Metric}
	return a
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
	// Ceiling is the median ratio of the limit itself, 0 if the row measures none. On a machine whose disk is fast a peer may come so
	// close to the limit that nothing could be as many times as fast as wanted.
	Ceiling float64 `json:"ceiling,omitempty"`
}

// Reached says whether the median of the ratio is as wanted.
func (v Verdict) Reached() bool { return v.within(1) }

// FarOff says that it is not even half as good as wanted, or as the limit: too far for a machine that is merely busy.
func (v Verdict) FarOff() bool {
	if v.Ceiling > 0 {
		v.Want = min(v.Want, v.Ceiling)
	}
	return !v.within(2)
}

func (v Verdict) within(slack float64) bool {
	if v.AtMost {
		return v.Ratio.Median <= v.Want*slack
	}
	return v.Ratio.Median >= v.Want/slack
}

func (a Aim) judge(samples []Sample) (Verdict, error) {
	ratios := a.ratios(samples, a.Over)
	if len(ratios) == 0 {
		return Verdict{}, fmt.Errorf("no round has both figures of the aim %q", a.What)
	}
	s := Summarize(ratios)
	if math.IsNaN(s.Median) || math.IsInf(s.Median, 0) {
		return Verdict{}, fmt.Errorf("the aim %q divides by 0", a.What)
	}
	v := Verdict{What: a.What, Ratio: s, Want: a.Want, AtMost: a.AtMost}
	if limits := a.ratios(samples, a.Limit); len(limits) > 0 {
		v.Ceiling = Summarize(limits).Median
	}
	return v, nil
}

// ratios are those of a figure to the aim's Under, one for each round that has both.
func (a Aim) ratios(samples []Sample, over Ref) []float64 {
	under := byRound(samples, a.Under)
	var ratios []float64
	for round, value := range byRound(samples, over) {
		if a.Under == (Ref{}) {
			ratios = append(ratios, value)
		} else if below, ok := under[round]; ok {
			ratios = append(ratios, value/below)
		}
	}
	return ratios
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
