package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
)

// judgeLogs looks for secrets and for what should never be written, in the logs of the services.
func (v *verdict) judgeLogs(w *world) error {
	never := append([]string{keyPrefix, "panic:", "panicked", `"panic"`, "panic serving", "runtime error:", "fatal error:", "DATA RACE"}, w.secrets...)
	for _, p := range w.programs {
		log, err := os.ReadFile(p.log)
		if err != nil {
			return err
		}
		v.check(len(log) > 0, "the log of %s is empty", p.name)
		for _, text := range never {
			if i := bytes.Index(log, []byte(text)); i >= 0 {
				v.fail("the log of %s has %q: %s", p.name, text, log[max(0, i-200):min(len(log), i+200)])
			}
		}
	}
	return nil
}

// A footprint is what a process takes of the machine.
type footprint struct{ goroutines, files, bytes float64 }

// What a process may take more after the storm than when it had started: its pools are full then, and its heap has been in use.
const (
	moreGoroutines = 100
	moreFiles      = 80
	moreBytes      = 200 << 20
)

// footprints are those of all processes of now.
func (w *world) footprints(ctx context.Context) (map[string]footprint, error) {
	all := map[string]footprint{}
	for _, p := range w.programs {
		if err := p.look(ctx); err != nil {
			return nil, fmt.Errorf("the footprint of %s: %w", p.name, err)
		}
		all[p.name] = footprint{p.counters.gauge("go_goroutines"), p.counters.gauge("process_open_fds"), p.counters.gauge("process_resident_memory_bytes")}
	}
	return all, nil
}

func (v *verdict) judgeFootprints(before, after map[string]footprint) {
	for name, was := range before {
		is := after[name]
		v.check(is.goroutines > 0 && is.files > 0 && is.bytes > 0, "%s tells nothing of its footprint", name)
		v.check(is.goroutines <= was.goroutines+moreGoroutines, "%s has %.0f goroutines, and had %.0f before", name, is.goroutines, was.goroutines)
		v.check(is.files <= was.files+moreFiles, "%s has %.0f open files, and had %.0f before", name, is.files, was.files)
		v.check(is.bytes <= was.bytes+moreBytes, "%s has %.0f MiB, and had %.0f before", name, is.bytes/(1<<20), was.bytes/(1<<20))
		v.rows = append(v.rows, [2]string{name + ": goroutines, open files, MiB", fmt.Sprintf("%.0f, %.0f, %.0f (%.0f, %.0f, %.0f before)", is.goroutines, is.files,
			is.bytes/(1<<20), was.goroutines, was.files, was.bytes/(1<<20))})
	}
}
