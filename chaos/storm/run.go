package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox/internal/trial"
)

// A run is one storm.
type run struct {
	o    options
	w    *world
	f    *folder
	plan schedule
	c    *clients

	lasting sync.WaitGroup // faults that end later, beside the next ones
	quota   int            // how far the gate is to be open for the fault of now
	step    int            // how many intents come with each fault
	drawn   int            // beyond it, as drawn by faults that saw no work
	lent    int            // what may be drawn by now
	copied  storeCopy

	kills     atomic.Int64
	failovers atomic.Int64
	stage     atomic.Pointer[string]

	mu       sync.Mutex
	fired    map[string]int
	wished   int             // faults for which the schedule names a state
	unmet    int             // those of them that came in another one
	problems []string        // of the faults themselves
	spreads  []time.Duration // between the first and the last of all processes that were killed at once
}

func newRun(o options, w *world, f *folder, plan schedule) *run {
	return &run{o: o, w: w, f: f, plan: plan, fired: map[string]int{}}
}

func (r *run) phase(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	r.stage.Store(&s)
}

func (r *run) problem(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.problems = append(r.problems, fmt.Sprintf(format, args...))
}

// all is the whole run: faults, mending, settling, judging.
func (r *run) all(ctx context.Context) (*verdict, error) {
	history, err := newLines(filepath.Join(r.f.path, historyFile))
	if err != nil {
		return nil, err
	}
	r.c = newClients(r.o, r.w, history)
	r.phase("starting")
	before, err := r.w.footprints(ctx)
	if err != nil {
		return nil, err
	}
	watch, stopWatch := context.WithCancel(ctx)
	defer stopWatch()
	var watchers sync.WaitGroup
	for _, p := range r.w.programs {
		watchers.Go(func() { r.watch(watch, p) })
	}
	for _, d := range directions {
		watchers.Go(func() { r.watchLease(watch, d.producer) })
	}
	watchers.Go(func() { r.progress(watch) })
	defer watchers.Wait()
	defer stopWatch()

	v, err := r.load(ctx)
	if err != nil {
		return nil, errors.Join(err, history.close())
	}
	settleFrom := time.Now()
	r.phase("settling")
	unsettled, err := r.settle(ctx)
	if err != nil {
		return nil, errors.Join(err, history.close())
	}
	v.settled = time.Since(settleFrom)
	if unsettled != "" {
		v.fail("not settled within %s of mending: %s", r.o.Settle, unsettled)
	}
	if err := errors.Join(history.close(), r.f.faults.close()); err != nil {
		return nil, err
	}
	r.phase("judging")
	after, err := r.w.footprints(ctx)
	if err != nil {
		return nil, err
	}
	v.judgeFootprints(before, after)
	tries, err := readLines[try](filepath.Join(r.f.path, historyFile))
	if err != nil {
		return nil, err
	}
	if err := v.judge(ctx, r.o, r.w, tries); err != nil {
		return nil, err
	}
	v.judgeRun(r)
	return v, nil
}

// load is the part with faults, until all clients are done and everything is mended.
func (r *run) load(ctx context.Context) (*verdict, error) {
	bound, cancel := context.WithTimeoutCause(ctx, r.o.Duration, fmt.Errorf("the faults were not through within -duration %s", r.o.Duration))
	defer cancel()
	r.step = max(1, r.o.Orders*4/5/max(1, len(r.plan))) // the rest is for faults that see no work
	g, gctx := errgroup.WithContext(bound)
	g.Go(trial.Guarded(func() error { return r.c.run(gctx) }))
	g.Go(trial.Guarded(func() error {
		defer r.c.gate.Raise(r.o.Orders)
		err := r.faults(gctx)
		r.lasting.Wait()
		return err
	}))
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := r.w.allReady(ctx); err != nil {
		return nil, err
	}
	return &verdict{seed: r.o.Seed}, nil
}

// release lets the load of the next fault through.
func (r *run) release() {
	r.quota += r.step
	r.open()
}

// draw lets some more through, of what no fault has as its own: faults that come late are to find some too.
func (r *run) draw() {
	r.drawn = min(r.drawn+max(4, r.step/5), r.lent)
	r.open()
}

func (r *run) open() { r.c.gate.Raise(min(r.o.Orders, r.quota+r.drawn)) }

// faults brings all of the schedule, one after the other. A quarter of the time there are none.
func (r *run) faults(ctx context.Context) error {
	cycle := time.Now()
	for rest := slices.Clone(r.plan); len(rest) > 0; {
		f := rest[0]
		rest = rest[1:]
		r.phase("fault %d/%d: %s %s", f.N, len(r.plan), f.name(), f.Target)
		r.lent = max(r.lent, (r.o.Orders-r.step*len(r.plan))*min(2*f.N, len(r.plan))/len(r.plan)) // half the way, all of it
		if f.Kind == calm {
			if err := r.rest(ctx, time.Since(cycle)/3); err != nil {
				return err
			}
			cycle = time.Now()
			continue
		}
		began, waiting := r.c.now(), r.w.waiting(ctx)
		state, err := r.strike(ctx, f)
		if err != nil {
			return fmt.Errorf("fault %d, %s %s: %w", f.N, f.name(), f.Target, err)
		}
		r.f.faults.add(struct {
			fault
			At      int64  `json:"at"` // µs since the storm began
			Took    int64  `json:"took"`
			Seen    string `json:"seen"`
			Tries   int    `json:"tries,omitempty"` // in vain, before
			Waiting int    `json:"waiting"`         // messages in the streams, before, that were not acknowledged
		}{f, began, r.c.now() - began, state, f.tries, waiting})
		if state == "" {
			if f.tries++; f.tries == maxTries {
				r.problem("fault %d, %s %s, found no work to come into, %d times", f.N, f.name(), f.Target, f.tries)
				continue
			}
			// What the faults before it broke may be the reason.
			if err := r.mended(ctx); err != nil {
				return err
			}
			rest = f.later(rest)
			continue
		}
		r.count(f.name())
		r.met(f, state)
		r.kills.Add(int64(f.kills()))
	}
	return nil
}

func (r *run) count(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fired[name]++
}

// maxTries is how often a fault may look for work to come into.
const maxTries = 4

// met counts whether a fault came in the state that was wanted.
func (r *run) met(f fault, state string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.State == "" {
		return
	}
	r.wished++
	if state != f.State {
		r.unmet++
	}
}

// mended waits until all that lasts is over and every process serves.
func (r *run) mended(ctx context.Context) error {
	r.lasting.Wait()
	return r.w.allReady(ctx)
}

// rest is a time without faults. It begins when all that lasts is over.
func (r *run) rest(ctx context.Context, d time.Duration) error {
	r.lasting.Wait()
	r.release()
	return trial.Pause(ctx, d)
}

// after does something when some time has passed, beside the faults that follow.
func (r *run) after(ctx context.Context, ms int, do func() error) {
	r.lasting.Go(func() {
		_ = trial.Pause(ctx, time.Duration(ms)*time.Millisecond) // what is broken is mended, also when the run ends
		if err := trial.Guarded(do)(); err != nil && ctx.Err() == nil {
			r.w.fail(err)
		}
	})
}

// watch asks a program for its counters, again and again: what a killed one had counted is gone with it.
func (r *run) watch(ctx context.Context, p *program) {
	for trial.Pause(ctx, 300*time.Millisecond) == nil {
		_ = p.look(ctx) // one that is away is asked again
	}
}

// watchLease counts how often the lease of a service's relays comes to another process than had it. One that takes its own again, after
// an error, is not counted.
func (r *run) watchLease(ctx context.Context, service string) {
	last := ""
	for trial.Pause(ctx, 100*time.Millisecond) == nil {
		var holder string
		err := r.w.database(service).QueryRow(ctx, "SELECT holder FROM oncebox.outbox_cursor WHERE name = $1", service).Scan(&holder)
		if err != nil || holder == "" || holder == last { // away, or nobody's just now
			continue
		}
		if last != "" {
			r.failovers.Add(1)
		}
		last = holder
	}
}

// progress says each two seconds how far the run is: on a line that is written over where there is a terminal, else on one of its own.
func (r *run) progress(ctx context.Context) {
	begin, end := "", "\n"
	if out, err := os.Stdout.Stat(); err == nil && out.Mode()&os.ModeCharDevice != 0 {
		begin, end = "\r\x1b[K", ""
		defer fmt.Println()
	}
	for trial.Pause(ctx, 2*time.Second) == nil {
		fmt.Printf("%s%4.0f s: %d/%d answered, %d tries, %d/%d kills, %.80s%s", begin, time.Since(r.c.begun).Seconds(), r.c.answered.Load(), r.o.Orders,
			r.c.tries.Load(), r.kills.Load(), r.plan.kills(), *r.stage.Load(), end)
	}
}

// sorted are the names of counts.
func sorted(counts map[string]int) []string { return slices.Sorted(maps.Keys(counts)) }
