package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox/cmd/demo/page"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/trial"
)

// A program is one of the demo's processes, which may be killed and started again. When it ends in any other way, fail is
// called.
type program struct {
	name  string
	path  string
	args  []string
	env   []string
	log   string     // a file
	admin page.Admin // without URL if it has none
	fail  func(error)

	mu     sync.Mutex
	proc   *devstack.Process
	ending *atomic.Bool // whether proc is to end
}

func (p *program) start() error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	proc, err := devstack.StartProcess(devstack.ProcessConfig{Path: p.path, Args: p.args, Env: p.env, Output: log})
	if err != nil {
		return err
	}
	ending := new(atomic.Bool) // this process's own: when its end is noticed the next one may run already
	p.mu.Lock()
	p.proc, p.ending = proc, ending
	p.mu.Unlock()
	go func() {
		<-proc.Done()
		if !ending.Load() {
			p.fail(fmt.Errorf("%s ended by itself, %s; the end of its log:\n%s", p.name, ended(proc.Err()), p.lastLines(5)))
		}
	}()
	return nil
}

func ended(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// process returns the one of now and, if it is to be ended, remembers that this is our doing.
func (p *program) process(ending bool) *devstack.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ending && p.ending != nil {
		p.ending.Store(true)
	}
	return p.proc
}

func (p *program) kill() error { return p.process(true).Kill() }

func (p *program) stop(ctx context.Context) error {
	proc := p.process(true)
	if proc == nil { // not started yet
		return nil
	}
	return proc.Stop(ctx)
}

func stopAll(ctx context.Context, programs []*program) error {
	var g errgroup.Group
	for _, p := range programs {
		g.Go(func() error { return p.stop(ctx) })
	}
	return g.Wait()
}

func (p *program) lastLines(n int) string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

const readyLimit = 30 * time.Second

// ready waits until the program serves.
func (p *program) ready(ctx context.Context) error {
	return trial.Until(ctx, pollPause, readyLimit, p.name+" is ready", func() (bool, error) {
		return p.admin.Ready(ctx), nil // if it never will be, its end is told by fail
	})
}

// metric is the sum over the series of that name which have this label, or all of them for none.
func (p *program) metric(ctx context.Context, name, label, value string) (int, error) {
	m, err := p.admin.Metrics(ctx)
	if err != nil {
		return 0, err
	}
	return int(m.Sum(name, label, value)), nil
}

const pollPause = 50 * time.Millisecond

// service is one of the real services, to be started on free ports, and its public URL. The file holds the token of its admin
// listener.
func service(name, dir, database, nats, tokenFile string, fail func(error), env ...string) (*program, string, error) {
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return nil, "", err
	}
	public, err := devstack.FreePort()
	admin, err2 := devstack.FreePort()
	if err := errors.Join(err, err2); err != nil {
		return nil, "", err
	}
	prefix := strings.ToUpper(name) + "_"
	listen, adminListen := fmt.Sprintf("127.0.0.1:%d", public), fmt.Sprintf("127.0.0.1:%d", admin)
	p := &program{
		name: name, path: filepath.Join(dir, name), log: filepath.Join(dir, name+".log"), fail: fail,
		admin: page.Admin{Name: name, URL: "http://" + adminListen, Token: string(token)},
		env: append([]string{
			prefix + "LISTEN=" + listen, prefix + "ADMIN=" + adminListen, prefix + "DATABASE_URL=" + database, prefix + "AUTH=off", prefix + "ADMIN_TOKEN_FILE=" + tokenFile, "NATS_URL=" + nats}, env...),
	}
	return p, "http://" + listen, nil
}
