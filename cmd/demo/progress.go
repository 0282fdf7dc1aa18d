package main

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/oncebox/oncebox/internal/trial"
)

// The stages of a run: while there is load, and while what is left of it is worked off.
const (
	running  = "running"
	settling = "settling"
)

// A progress tells how far a run is: as a bar on a terminal, else as a line each second.
type progress struct {
	l     *load
	bar   *progressbar.ProgressBar // nil: lines
	stage atomic.Pointer[string]
}

func newProgress(l *load) *progress {
	p := &progress{l: l}
	p.phase(running)
	if term.IsTerminal(int(os.Stdout.Fd())) {
		p.bar = progressbar.NewOptions(l.o.orders,
			progressbar.OptionSetWriter(os.Stdout), progressbar.OptionShowCount(), progressbar.OptionSetElapsedTime(false),
			progressbar.OptionSetPredictTime(false), progressbar.OptionShowDescriptionAtLineEnd(),
			progressbar.OptionSetWidth(20), // the whole line fits in 80 columns
			progressbar.OptionSetTheme(progressbar.Theme{Saucer: "█", SaucerPadding: "░"}))
	}
	return p
}

// phase names what is going on.
func (p *progress) phase(name string) { p.stage.Store(&name) }

// start shows the progress until the function that it returns is called, which shows it a last time.
func (p *progress) start(ctx context.Context) (stop func()) {
	every := time.Second
	if p.bar != nil {
		every = 200 * time.Millisecond
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := trial.Guarded(func() error { return p.showEach(ctx, every) })(); err != nil {
			p.l.s.fail(err)
		}
	}()
	return func() {
		cancel()
		<-done
		p.show(context.WithoutCancel(ctx))
		if p.bar != nil {
			_ = p.bar.Exit()
			fmt.Println()
		}
	}
}

func (p *progress) showEach(ctx context.Context, every time.Duration) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			p.show(ctx)
		}
	}
}

// show leaves out what it cannot find out: it is not the judge.
func (p *progress) show(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	charged, err := p.l.s.charged(ctx, p.l.keyed.customers())
	if err != nil {
		return
	}
	lost, kills, stage := p.l.s.link.cut.Load(), fmt.Sprintf("%d/%d kills", p.l.killer.done.Load(), p.l.o.kills), *p.stage.Load()
	if p.bar == nil {
		fmt.Printf("%s: charged %d/%d, %d replies lost, %s\n", stage, charged, p.l.o.orders, lost, kills)
		return
	}
	if stage == settling {
		kills = stage
	}
	p.bar.Describe(fmt.Sprintf("charged, %d replies lost, %s", lost, kills))
	_ = p.bar.Set(charged)
}
