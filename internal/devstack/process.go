package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// ProcessConfig says what to start. Path is required.
type ProcessConfig struct {
	// Path is the executable. It is looked up in PATH when it holds no slash.
	Path string
	Args []string
	// Env is added to this process's environment and wins over it.
	Env []string
	// Dir is the working directory; empty is this process's own.
	Dir string
	// Output receives stdout and stderr; nil discards them. A file is handed to the process as it is and may be closed
	// after the start; any other writer is written to by one goroutine until the process has ended.
	Output io.Writer
	// DeathSignal is what the process is sent when this one dies, however it dies (Linux only); 0 is SIGKILL.
	DeathSignal syscall.Signal

	credential *syscall.Credential // nil: runs as ourselves
	extraFiles []*os.File          // from file descriptor 3 on
}

// A Process is a child process, alone in its process group, so that a Ctrl-C in the terminal does not reach it before its
// parent has decided what to stop first. Its methods may be called from any goroutine.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait; read only after done is closed
}

// outputGrace is how long output is still read after the process has ended, when something it left behind keeps the pipe open.
const outputGrace = time.Second

// StartProcess starts a process and returns when it runs. The caller ends it with Stop or Kill.
func StartProcess(cfg ProcessConfig) (*Process, error) {
	cmd := exec.Command(cfg.Path, cfg.Args...)
	cmd.Env = append(os.Environ(), cfg.Env...)
	cmd.Dir = cfg.Dir
	cmd.Stdout, cmd.Stderr = cfg.Output, cfg.Output
	cmd.ExtraFiles = cfg.extraFiles
	cmd.WaitDelay = outputGrace
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: cfg.credential}
	dieWithParent(cmd.SysProcAttr, cfg.DeathSignal)

	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The kernel sends the death signal when the *thread* that started the process ends: keep the thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(cfg.Path), err)
	}
	return p, nil
}

// Pid returns the process id, also after the process has ended.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended and was waited for.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err tells how the process ended: nil while it runs and after exit status 0, else an [*exec.ExitError].
func (p *Process) Err() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	if errors.Is(p.err, exec.ErrWaitDelay) { // exit status 0, but a grandchild held the output open
		return nil
	}
	return p.err
}

// Signal sends a signal. It returns [os.ErrProcessDone] when the process has ended.
func (p *Process) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// Kill sends SIGKILL and returns when the process is gone; processes that it started itself are left. It does nothing when the
// process has ended.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return nil
}

// Stop sends SIGTERM and returns nil when the process is gone, whatever its exit status: that is in Err. When ctx ends
// first the process is killed, and an error that wraps ctx's is returned. A paused process is continued, so that it sees
// the signal. Stop does nothing when the process has ended.
func (p *Process) Stop(ctx context.Context) error { return p.end(ctx, syscall.SIGTERM) }

// end is Stop with another signal.
func (p *Process) end(ctx context.Context, sig syscall.Signal) error {
	for _, s := range []syscall.Signal{sig, syscall.SIGCONT} {
		if err := p.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("%s had to be killed: %w", filepath.Base(p.cmd.Path), context.Cause(ctx)), p.Kill())
	}
}

// Pause stops the process where it is (SIGSTOP) and returns when it stands still. It returns [os.ErrProcessDone] when the
// process has ended.
func (p *Process) Pause() error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return waitStopped(p.Pid())
}

// Continue lets a paused process go on.
func (p *Process) Continue() error { return p.Signal(syscall.SIGCONT) }
