package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/trial"
)

// A program is one of two processes of a service. It may be killed and started again; one that ends by itself is started again too,
// as a supervisor does.
type program struct {
	name, service string // orders-1, orders
	path          string
	env           []string
	admin         string // the admin listener's URL
	log           string // a file
	way           *link  // of its clients
	fail          func(error)

	turn  turn         // one fault of it at a time
	asked atomic.Int64 // requests of clients that are on their way to it

	mu   sync.Mutex
	proc *devstack.Process
	ours *atomic.Bool // whether the end of proc is our doing
	// served says whether proc was ready once.
	served *atomic.Bool
	exits  []exit // of processes that ended by themselves
	over   bool   // not to be started again

	counters counters
}

// An exit is the end of a process that nobody asked for. One that has served outlasts what comes; a start may fail while its database
// is away.
type exit struct {
	last   string // line of its log
	served bool
}

// restartPause is how long a supervisor waits.
const restartPause = 200 * time.Millisecond

func (p *program) start() error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over || p.proc != nil && !ended(p.proc) { // a supervisor and a fault may both want to start it
		return nil
	}
	proc, err := devstack.StartProcess(devstack.ProcessConfig{Path: p.path, Args: []string{"serve"}, Env: p.env, Output: log})
	if err != nil {
		return err
	}
	ours, served := new(atomic.Bool), new(atomic.Bool)
	p.proc, p.ours, p.served = proc, ours, served
	p.counters.next()
	go func() {
		<-proc.Done()
		if ours.Load() {
			return
		}
		p.mu.Lock()
		p.exits = append(p.exits, exit{lastLines(p.log, 1), served.Load()})
		p.mu.Unlock()
		<-time.After(restartPause)
		if err := p.start(); err != nil {
			p.fail(err)
		}
	}()
	return nil
}

func ended(proc *devstack.Process) bool {
	select {
	case <-proc.Done():
		return true
	default:
		return false
	}
}

// now is the process of this moment.
func (p *program) now() *devstack.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proc
}

// claim is now, whose end is our doing from here on.
func (p *program) claim() *devstack.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ours.Store(true)
	return p.proc
}

// kill ends the process by SIGKILL.
func (p *program) kill() error { return p.claim().Kill() }

// hold stops the process where it is. It says no if there is none at the moment.
func (p *program) hold() (bool, error) {
	err := p.now().Pause()
	if errors.Is(err, os.ErrProcessDone) || errors.Is(err, syscall.ESRCH) {
		return false, nil
	}
	return err == nil, err
}

// release lets it go on.
func (p *program) release() error {
	if err := p.now().Continue(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// terminate sends SIGTERM and waits for the end. An error is one that it did not come in time, or with another exit status than 0;
// that all were killed meanwhile is none.
func (p *program) terminate(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, termLimit)
	defer cancel()
	proc := p.claim()
	err := proc.Stop(ctx)
	if exit := (*exec.ExitError)(nil); err == nil && errors.As(proc.Err(), &exit) && exit.Exited() {
		err = exit
	}
	if err != nil {
		return fmt.Errorf("%s after SIGTERM: %w", p.name, err)
	}
	return nil
}

// termLimit is more than a service's stop may take.
const termLimit = 12 * time.Second

// end is the last one.
func (p *program) end(ctx context.Context) error {
	p.mu.Lock()
	p.over = true
	proc := p.proc
	if p.ours != nil {
		p.ours.Store(true)
	}
	p.mu.Unlock()
	if proc == nil {
		return nil
	}
	return proc.Stop(ctx)
}

// ready asks the process whether it serves.
func (p *program) ready(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	p.mu.Lock()
	served := p.served
	p.mu.Unlock()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.admin+"/readyz", nil)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return false
	}
	served.Store(true)
	return true
}

func (p *program) awaitReady(ctx context.Context) error {
	return trial.Until(ctx, pollPause, readyLimit, p.name+" is ready", func() (bool, error) { return p.ready(ctx), nil })
}

// A turn is one's at a time.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t turn) give() { <-t }
