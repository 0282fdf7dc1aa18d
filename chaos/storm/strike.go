package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/oncebox/oncebox/internal/trial"
)

// strike brings a fault. It returns the state that was seen before it came, "" if none was, and then it did not come.
func (r *run) strike(ctx context.Context, f fault) (state string, err error) {
	switch f.Kind {
	case killProcess, pauseProcess, termProcess:
		return r.strikeProcess(ctx, f)
	case disturb:
		return r.strikeLink(ctx, f)
	}
	if state, err = r.system(ctx, f.State); err != nil || state == "" {
		return state, err
	}
	switch f.Kind {
	case killAll:
		err = r.killAll(ctx)
	case stopPostgres:
		err = r.stopPostgres(ctx, f)
	case killBackend, endBackend:
		return r.strikeBackend(ctx, f)
	case killRedis:
		err = r.killRedis(ctx, f)
	case flushRedis:
		return r.flushRedis(ctx)
	case deleteStream, deleteDurable:
		return r.strikeBroker(ctx, f, state)
	case killNATS:
		err = r.natsDown(ctx, f, func(string) error { return nil })
	case wipeNATS:
		err = r.wipe(ctx, f)
	case copyNATS:
		err = r.copyStore(ctx)
	case rollbackNATS:
		return r.rollBack(ctx, f, state)
	default:
		err = fmt.Errorf("no fault of the kind %q", f.Kind)
	}
	return state, err
}

func (r *run) strikeProcess(ctx context.Context, f fault) (state string, err error) {
	p := r.w.named(f.Target)
	if f.State == "unsent" {
		if p, err = r.w.relaying(ctx, p); err != nil {
			return "", err
		}
	}
	if err := p.turn.take(ctx); err != nil {
		return "", err
	}
	if state, err = r.halt(ctx, p, f.State); err != nil || state == "" {
		p.turn.give()
		return state, err
	}
	ms, then := f.Millis, p.start
	switch f.Kind {
	case killProcess:
		err = p.kill()
	case pauseProcess:
		then = p.release
	case termProcess:
		err = p.release()
		ms, then = 0, func() error {
			if err := p.terminate(context.WithoutCancel(ctx)); err != nil {
				r.problem("%v", err)
			}
			return p.start()
		}
	}
	r.after(ctx, ms, func() error {
		defer p.turn.give()
		return then()
	})
	return state, err
}

// strikeLink disturbs a link that is in use. It begins when the one before is over.
func (r *run) strikeLink(ctx context.Context, f fault) (state string, err error) {
	l := r.w.link(f.Target)
	p := r.w.named(f.Target[strings.Index(f.Target, "/")+1:])
	if err := p.awaitReady(ctx); err != nil {
		return "", err
	}
	if strings.HasPrefix(f.Target, "http/") {
		r.release()
		state = "request"
		ok, err := r.place(ctx, placeLimit, func() (bool, error) { return p.asked.Load() > 0, nil })
		if !ok || err != nil {
			return "", err
		}
	} else if state, err = r.system(ctx, f.State); err != nil || state == "" { // a connection of its own is there as long as it is
		return state, err
	}
	if err := l.turn.take(ctx); err != nil {
		return "", err
	}
	end, err := l.begin(weatherNamed(f.Weather))
	if err != nil {
		return "", err
	}
	r.after(ctx, f.Millis, func() error {
		defer l.turn.give()
		return end()
	})
	return state, nil
}

// killAll sends all of them SIGKILL at once, and Postgres what an immediate stop is, and starts all of it again.
func (r *run) killAll(ctx context.Context) error {
	w := r.w
	w.pgGate.Lock()
	defer w.pgGate.Unlock()
	w.natsGate.Lock()
	defer w.natsGate.Unlock()
	w.redisGate.Lock()
	defer w.redisGate.Unlock()
	var pids []int
	for _, p := range w.programs {
		pids = append(pids, p.claim().Pid())
	}
	pids = append(pids, w.nats.Pid(), w.redis.Pid())
	spread, err := signalAll(pids, w.pg.Pid())
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.spreads = append(r.spreads, spread)
	r.mu.Unlock()
	for _, p := range w.programs {
		err = errors.Join(err, p.kill()) // it is only waited for
	}
	err = errors.Join(err, w.nats.Kill(), w.redis.Kill(), w.pg.StopImmediate(ctx))
	if err != nil {
		return err
	}
	// As on a machine that starts: all at once, whatever is there yet.
	for _, p := range w.programs {
		if err := p.start(); err != nil {
			return err
		}
	}
	return errors.Join(w.pg.Restart(ctx), w.nats.Restart(ctx), w.redis.Restart(ctx))
}

// signalAll kills processes by SIGKILL and Postgres by SIGQUIT, and returns the time between the first and the last. It does so on a
// thread of its own, which is put before all others as far as we may: each process that is killed has work for the processor, and would
// have it before our next signal.
func signalAll(pids []int, postgres int) (spread time.Duration, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with its priority
		const ourselves, most = 0, -20
		_ = syscall.Setpriority(syscall.PRIO_PROCESS, ourselves, most) // who may not is later at times
		errs := make([]error, 0, len(pids)+1)
		began := time.Now()
		for _, pid := range pids {
			errs = append(errs, syscall.Kill(pid, syscall.SIGKILL))
		}
		errs = append(errs, syscall.Kill(postgres, syscall.SIGQUIT))
		spread = time.Since(began)
		for _, e := range errs {
			if e != nil && !errors.Is(e, syscall.ESRCH) { // one that ended by itself
				err = errors.Join(err, e)
			}
		}
	}()
	<-done
	return spread, err
}

func (r *run) stopPostgres(ctx context.Context, f fault) error {
	r.w.pgGate.Lock()
	defer r.w.pgGate.Unlock()
	if err := r.w.pg.StopImmediate(ctx); err != nil {
		return err
	}
	if err := trial.Pause(ctx, time.Duration(f.Millis)*time.Millisecond); err != nil {
		return err
	}
	return r.w.pg.Restart(ctx)
}

// strikeBackend hits a session that is in a transaction.
func (r *run) strikeBackend(ctx context.Context, f fault) (state string, err error) {
	r.w.pgGate.Lock()
	defer r.w.pgGate.Unlock()
	ok, err := r.place(ctx, placeLimit, func() (bool, error) {
		pid, err := r.w.busyBackend(ctx, f.Target)
		if err != nil || pid == 0 {
			return false, err
		}
		if f.Kind == killBackend {
			err := syscall.Kill(pid, syscall.SIGKILL)
			return err == nil, nil // it may be over by now: then another one
		}
		var over bool
		err = r.w.super.QueryRow(ctx, "SELECT pg_terminate_backend($1)", pid).Scan(&over)
		return over, away(ctx, err)
	})
	if !ok || err != nil {
		return "", err
	}
	return "transaction", trial.Until(ctx, pollPause, readyLimit, "Postgres is back", func() (bool, error) {
		ask, cancel := context.WithTimeout(ctx, askLimit)
		defer cancel()
		return r.w.super.Ping(ask) == nil, nil
	})
}

func (r *run) killRedis(ctx context.Context, f fault) error {
	r.w.redisGate.Lock()
	defer r.w.redisGate.Unlock()
	if err := r.w.redis.Kill(); err != nil {
		return err
	}
	if err := trial.Pause(ctx, time.Duration(f.Millis)*time.Millisecond); err != nil {
		return err
	}
	return r.w.redis.Restart(ctx)
}

// flushRedis has Redis forget all keys that it has.
func (r *run) flushRedis(ctx context.Context) (state string, err error) {
	r.w.redisGate.Lock()
	defer r.w.redisGate.Unlock()
	ok, err := r.place(ctx, placeLimit, func() (bool, error) {
		n, err := r.w.cache.DBSize(ctx).Result()
		if err != nil || n == 0 {
			return false, away(ctx, err)
		}
		return r.w.cache.FlushAll(ctx).Err() == nil, nil
	})
	if !ok || err != nil {
		return "", err
	}
	return "keys", nil
}
