package main

import (
	"errors"
	"flag"
	"strings"
	"testing"
)

func TestFlagsTakeOneDashOrTwo(t *testing.T) {
	want := options{orders: 20, loss: 0.25, kills: 3, seed: 7, store: "redis", exit: true}
	for _, args := range []string{"-orders 20 -loss 0.25 -kills 3 -seed 7 -store redis -exit", "--orders=20 --loss=.25 --kills=3 --seed=7 --store=redis --exit"} {
		if got, err := parse(strings.Fields(args)); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", args, got, err, want)
		}
	}
}

func TestDefaultsAreTheIssues(t *testing.T) {
	got, err := parse(nil)
	got.seed = 0
	if want := (options{orders: 1000, loss: 0.4, kills: 5, store: "postgres"}); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if o, err := parse([]string{"-seed", "0"}); err != nil || o.seed != 0 {
		t.Errorf("-seed 0: seed %d, %v", o.seed, err)
	}
}

func TestBadFlagsAreOneClearLine(t *testing.T) {
	for args, want := range map[string]string{
		"-orders 0":          "-orders is 0",
		"-orders -5":         "-orders is -5",
		"-orders many":       `"many"`,
		"-loss 1":            "-loss is 1",
		"-loss -0.1":         "-loss is -0.1",
		"-loss NaN":          "-loss is NaN",
		"-kills -1":          "-kills must not be negative",
		"-orders 5 -kills 5": "each kill needs an order in flight",
		"-seed -1":           "-seed",
		"-store memory":      `-store is "memory"`,
		"-exit now":          `unexpected argument "now"`,
		"-order 5":           "-order",
	} {
		_, err := parse(strings.Fields(args))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want one line with %q", args, err, want)
		}
	}
}

func TestHelpNamesFlagsDefaultsAndEnvironment(t *testing.T) {
	if _, err := parse([]string{"--help"}); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("--help: %v", err)
	}
	for _, want := range []string{"-orders N", "-loss P", "-kills K", "-seed S", "-store STORE", "-exit", "(default 1000)", "DATABASE_URL", "NATS_URL", "REDIS_URL"} {
		if !strings.Contains(usage(), want) {
			t.Errorf("the help lacks %q:\n%s", want, usage())
		}
	}
}
