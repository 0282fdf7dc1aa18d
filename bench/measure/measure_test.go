package measure

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

// contender gives one value after the other and notes when it ran.
func contender(name string, role Role, ran *[]string, values ...float64) Contender {
	return Contender{Name: name, Role: role, Run: func(context.Context) (Figures, error) {
		*ran = append(*ran, name)
		v := values[0]
		values = values[1:]
		return Figures{"rows/s": v}, nil
	}}
}

func TestContendersTakeTurnsAndRatiosAreTakenWithinARound(t *testing.T) {
	var ran []string
	row := Row{Number: 1, Work: "work", Cases: []Case{{Name: "all", Contenders: []Contender{
		contender("a", Ours, &ran, 100, 1000, 30), contender("b", Peer, &ran, 10, 500, 3), contender("c", Limit, &ran, 200, 2000, 60),
	}}}, Aims: []Aim{Of("× b", "all", "rows/s", "a", "b", 5), Of("of c", "all", "rows/s", "a", "c", 0.9)}}
	r, err := Run(t.Context(), row, 3, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(ran, ""), "abc"+"bca"+"cab"; got != want {
		t.Errorf("they ran as %s, want %s", got, want)
	}
	// The medians of a and b are 100 and 10 and might say 10 as well; those of a round are 10, 2 and 10.
	want := []Verdict{{What: "× b", Ratio: Summary{10, 2, 10, 3}, Want: 5}, {What: "of c", Ratio: Summary{0.5, 0.5, 0.5, 3}, Want: 0.9}}
	if !slices.Equal(r.Verdicts, want) {
		t.Errorf("verdicts are %+v, want %+v", r.Verdicts, want)
	}
	for i, reached := range []bool{true, false} {
		if r.Verdicts[i].Reached() != reached {
			t.Errorf("%s reached: %t", r.Verdicts[i].What, !reached)
		}
	}
}

func TestHalfOfAnAimIsFarOff(t *testing.T) {
	for _, c := range []struct {
		is, want float64
		atMost   bool
		farOff   bool
	}{
		{0.51, 1, false, false}, {0.49, 1, false, true}, {1.9, 1, true, false}, {2.1, 1, true, true}, {0, 0, true, false}, {0.1, 0, true, true},
	} {
		v := Verdict{Ratio: Summary{Median: c.is}, Want: c.want, AtMost: c.atMost}
		if v.FarOff() != c.farOff {
			t.Errorf("%+v is far off: %t", v, v.FarOff())
		}
	}
}

// What cannot be had on a machine is said, and does not count as far off; it is not called reached.
func TestAnAimAboveTheLimitIsJudgedByTheLimit(t *testing.T) {
	for _, c := range []struct {
		ours   float64
		farOff bool
		mark   string
	}{{60, false, "**short**; the limit is 10.0"}, {40, true, "**short**; the limit is 10.0"}, {210, false, "reached"}} {
		var ran []string
		row := Row{Cases: []Case{{Name: "all", Contenders: []Contender{contender("a", Ours, &ran, c.ours), contender("b", Peer, &ran, 10),
			contender("limit", Limit, &ran, 100)}}}, Aims: []Aim{Of("× b", "all", "rows/s", "a", "b", 20).Below("limit")}}
		r, err := Run(t.Context(), row, 1, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if v := r.Verdicts[0]; v.FarOff() != c.farOff || v.mark() != c.mark {
			t.Errorf("%g of 100, a peer has 10: far off %t, %s", c.ours, v.FarOff(), v.mark())
		}
	}
}

func TestAnAimWithoutFiguresIsAnError(t *testing.T) {
	var ran []string
	row := Row{Cases: []Case{{Name: "all", Contenders: []Contender{contender("a", Ours, &ran, 1, 0), contender("b", Peer, &ran, 0, 1)}}},
		Aims: []Aim{Of("nobody", "all", "rows/s", "a", "x", 1), Of("by nothing", "all", "rows/s", "a", "b", 1)}}
	_, err := Run(t.Context(), row, 1, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "nobody") || !strings.Contains(err.Error(), "by nothing") {
		t.Errorf("the error is %v", err)
	}
}

func TestWhatRanBeforeAnErrorIsKept(t *testing.T) {
	var ran []string
	broken := errors.New("broken")
	row := Row{Cases: []Case{{Name: "all", Contenders: []Contender{contender("a", Ours, &ran, 1),
		{Name: "b", Run: func(context.Context) (Figures, error) { return nil, broken }}}}}}
	r, err := Run(t.Context(), row, 1, io.Discard)
	if !errors.Is(err, broken) || len(r.Samples) != 1 {
		t.Errorf("%v, %d samples", err, len(r.Samples))
	}
}

func TestATableHasEachFigureBesideThatOfItsPeerAndLimit(t *testing.T) {
	var ran []string
	row := Row{Number: 7, Work: "work", Notes: []string{"how"}, Cases: []Case{{Name: "all", Contenders: []Contender{
		contender("peer", Peer, &ran, 2500, 2600), contender("limit", Limit, &ran, 150000, 150002), contender("ours", Ours, &ran, 98766, 100000)}},
		{Name: "once", Rounds: 1, Contenders: []Contender{contender("ours", Ours, &ran, 0.123)}},
	}, Aims: []Aim{Of("× peer", "all", "rows/s", "ours", "peer", 40)}}
	r, err := Run(t.Context(), row, 2, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	r.Markdown(&b)
	const want = `### 7. work

|  | unit | ours | peer | limit |
| --- | --- | --- | --- | --- |
| all | rows/s | 99,383 (98,766 – 100,000) | 2,550 (2,500 – 2,600) | 150,001 (150,000 – 150,002) |
| once | rows/s | 0.12 | – | – |

| ratio | median | min – max | aim |  |
| --- | --- | --- | --- | --- |
| × peer | 39.0 | 38.5 – 39.5 | ≥ 40.0 | **short** |

- how

`
	if got := b.String(); got != want {
		t.Errorf("the table is\n%s\nwant\n%s", got, want)
	}
}

func TestPercentile(t *testing.T) {
	var ds []time.Duration
	for i := 100; i > 0; i-- {
		ds = append(ds, time.Duration(i)*time.Millisecond)
	}
	for p, want := range map[float64]float64{0.5: 50, 0.99: 99, 1: 100} {
		if got := Percentile(ds, p); got != want {
			t.Errorf("percentile %g is %g, want %g", p, got, want)
		}
	}
}
