package main

import (
	"slices"
	"testing"
)

func TestTheSeedDecidesTheSchedule(t *testing.T) {
	o := options{Seed: 3, Orders: 5000, Kills: 120}
	if !slices.Equal(newSchedule(o), newSchedule(o)) {
		t.Error("one seed drew two schedules")
	}
	other := o
	other.Seed++
	if slices.Equal(newSchedule(o), newSchedule(other)) {
		t.Error("two seeds drew the same schedule")
	}
	if a, again, b := intentOf(o, 5), intentOf(o, 5), intentOf(other, 5); a != again || a == b {
		t.Error("an intent is not the seed's and its number's")
	}
}

func TestAScheduleHasAllKindsOfFaultAndTheKillsAskedFor(t *testing.T) {
	kinds := []string{killProcess, killNATS, killRedis, killAll, pauseProcess, termProcess, stopPostgres, killBackend, endBackend, wipeNATS,
		copyNATS, rollbackNATS, deleteStream, deleteDurable, flushRedis, calm}
	for _, kills := range []int{20, 150, 500} {
		for seed := range uint64(50) {
			s := newSchedule(options{Seed: seed, Orders: 100 * kills, Kills: kills})
			if s.kills() != kills {
				t.Fatalf("seed %d: %d SIGKILLs, want %d", seed, s.kills(), kills)
			}
			for _, kind := range kinds {
				if !slices.ContainsFunc(s, func(f fault) bool { return f.Kind == kind }) {
					t.Errorf("seed %d, %d kills: there is no %s", seed, kills, kind)
				}
			}
			for _, w := range weathers {
				if !slices.ContainsFunc(s, func(f fault) bool { return f.Weather == w.name }) {
					t.Errorf("seed %d, %d kills: there is no %s", seed, kills, w.name)
				}
			}
			copied := false
			for i, f := range s {
				if copied = copied || f.Kind == copyNATS; f.Kind == rollbackNATS && !copied {
					t.Errorf("seed %d: a rollback without a copy", seed)
				}
				if f.N != i+1 {
					t.Fatalf("seed %d: entry %d is numbered %d", seed, i+1, f.N)
				}
			}
		}
	}
}

func TestWrongFlagsAreRefused(t *testing.T) {
	for _, args := range [][]string{{"-orders", "5"}, {"-orders", "100", "-kills", "20"}, {"-kills", "-1"}, {"-clients", "1"}, {"-settle", "0s"}, {"more"},
		{"-replay", "/nowhere"}, {"-replay", "x", "-seed", "1"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
	if o, err := parse([]string{"-seed", "9", "-orders", "2000", "-kills", "20"}); err != nil || o.Seed != 9 || o.Kills != 20 {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestAFaultThatFoundNoWorkComesLaterAndElsewhere(t *testing.T) {
	next := schedule{{N: 2}, {N: 3}, {N: 4}, {N: 5}}
	got := fault{N: 1, Kind: killProcess, Target: "billing-2", State: "in-hand"}.later(next)
	want := schedule{{N: 2}, {N: 3}, {N: 4}, {N: 1, Kind: killProcess, Target: "billing-1", State: "in-hand"}, {N: 5}}
	if !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	last := fault{N: 9, Kind: rollbackNATS}
	if got := last.later(nil); !slices.Equal(got, schedule{last}) {
		t.Errorf("behind nothing: %+v", got)
	}
	if next[3].N != 5 || len(next) != 4 {
		t.Errorf("the rest itself is changed: %+v", next)
	}
}
