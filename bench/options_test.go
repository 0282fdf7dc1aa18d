package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/oncebox/oncebox/bench/measure"
)

func TestFlags(t *testing.T) {
	o, err := parse([]string{"-quick", "-rows", "3,1", "-rows", "3"})
	if err != nil || o.rounds != 1 || !slices.Equal(o.rows, []int{1, 3}) {
		t.Errorf("%+v, %v", o, err)
	}
	for _, wrong := range [][]string{{"-rows", "0"}, {"-rows", "12"}, {"-rows", "a"}, {"-rounds", "-1"}, {"quick"}} {
		var usage usageError
		if _, err := parse(wrong); !errors.As(err, &usage) {
			t.Errorf("%v: %v", wrong, err)
		}
	}
}

func TestEachRowHasItsNumberAndAimsAtFiguresThatItTakes(t *testing.T) {
	for _, quick := range []bool{false, true} {
		for i, row := range (&bench{quick: quick}).rows() {
			if row.Number != i+1 {
				t.Errorf("row %d is at place %d", row.Number, i+1)
			}
			takes := func(ref measure.Ref) bool {
				return slices.ContainsFunc(row.Cases, func(c measure.Case) bool {
					return c.Name == ref.Case && slices.ContainsFunc(c.Contenders, func(c measure.Contender) bool { return c.Name == ref.Contender })
				})
			}
			for _, a := range row.Aims {
				if !takes(a.Over) || a.Under != (measure.Ref{}) && !takes(a.Under) {
					t.Errorf("row %d aims at %+v over %+v, which nobody runs", row.Number, a.Over, a.Under)
				}
			}
		}
	}
	if n := len((&bench{}).rows()); n != rowCount {
		t.Errorf("%d rows, and rowCount is %d", n, rowCount)
	}
}

func TestTablesAreReplacedInTheirPlaceOnly(t *testing.T) {
	file := filepath.Join(t.TempDir(), "page.md")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("before\n" + tablesBegin + "\nold\n" + tablesEnd + "\nafter\n")
	if err := replaceTables(file, "new\n"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if want := "before\n" + tablesBegin + "\n\nnew\n\n" + tablesEnd + "\nafter\n"; err != nil || string(b) != want {
		t.Errorf("the page is %q, %v", b, err)
	}
	write("no place")
	if err := replaceTables(file, "new\n"); err == nil {
		t.Error("tables were put into a page without a place for them")
	}
}

func TestPlotsAreWritten(t *testing.T) {
	dir := t.TempDir()
	row := measure.Result{Number: 1}
	for _, c := range []string{"20,000 rows", "1,000,000 rows", "100,000 rows"} {
		for _, name := range []string{oursName, theirRelay} {
			row.Samples = append(row.Samples, measure.Sample{Case: c, Contender: name, Figures: measure.Figures{"rows/s": 1000}})
		}
	}
	if err := plotAll(dir, []measure.Result{row}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "drain.svg"))
	if err != nil || !strings.Contains(string(b), "<svg") {
		t.Errorf("drain.svg: %v, %.80q", err, b)
	}
}
