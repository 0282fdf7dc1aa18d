package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/oncebox/oncebox/internal/trial"
)

// A sight is a state of the work in which a fault is worth something. Each is looked at from outside, in the database, in JetStream or
// at the clients, and of a process that stands still, so that it is still so when it is killed.
//
//	request      a client waits for this process
//	transaction  a session of this process is in a transaction
//	unsent       this process relays, and its outbox has rows that are not known to be stored: it is the one of the two that does
//	in-hand      the broker waits for acknowledgements of its service, and they do not come

// before looks while the process still runs, so that it is not stopped in vain too often.
func (w *world) before(ctx context.Context, p *program, state string) (bool, error) {
	switch state {
	case "unsent":
		return p.counters.gauge("oncebox_relay_leading") > 0, nil // as of its last word
	case "in-hand":
		return w.unacknowledged(ctx, p.service)
	}
	return true, nil
}

// relaying is the process of p's service whose relay leads, and p if none says so for as long as a state is waited for.
func (w *world) relaying(ctx context.Context, p *program) (*program, error) {
	for late := time.Now().Add(wantLimit); time.Now().Before(late); {
		for _, one := range w.of(p.service) {
			if one.counters.gauge("oncebox_relay_leading") > 0 {
				return one, nil
			}
		}
		if err := trial.Pause(ctx, pollPause); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// seen looks at the process that stands still.
func (w *world) seen(ctx context.Context, p *program, state string) (bool, error) {
	switch state {
	case "request":
		return p.asked.Load() > 0, nil
	case "transaction":
		return w.inTransaction(ctx, p.name)
	case "unsent":
		return w.unsent(ctx, p.service)
	}
	return w.holdsMessages(ctx, p.service)
}

// holdsMessages says whether acknowledgements are missing that do not come while one of the service's processes stands still. The
// other one's come within that time.
func (w *world) holdsMessages(ctx context.Context, service string) (bool, error) {
	d := reads(service)
	first, err := w.consumer(ctx, d)
	if err != nil || first.NumAckPending == 0 {
		return false, away(ctx, err)
	}
	if err := trial.Pause(ctx, 12*time.Millisecond); err != nil {
		return false, err
	}
	then, err := w.consumer(ctx, d)
	return err == nil && then.NumAckPending > 0 && then.AckFloor.Stream == first.AckFloor.Stream, away(ctx, err)
}

// inTransaction says whether a session of these processes, by the beginnings of their names, is in a transaction. A database that is
// away shows none.
func (w *world) inTransaction(ctx context.Context, name string) (bool, error) {
	pid, err := w.busyBackend(ctx, name)
	return pid != 0, err
}

// busyBackend is one of those sessions' processes, 0 if there is none.
func (w *world) busyBackend(ctx context.Context, name string) (pid int, err error) {
	ask, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	err = w.super.QueryRow(ask, `SELECT COALESCE(max(pid), 0) FROM pg_stat_activity
		WHERE starts_with(application_name, $1) AND state <> 'idle' AND xact_start IS NOT NULL`, name).Scan(&pid)
	return pid, away(ctx, err)
}

// unsent says whether the service's outbox has rows behind what its relay has saved.
func (w *world) unsent(ctx context.Context, service string) (is bool, err error) {
	ask, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	err = w.database(service).QueryRow(ask, `SELECT EXISTS (SELECT FROM oncebox.outbox WHERE seq > (SELECT seq FROM oncebox.outbox_cursor WHERE name = $1))`,
		service).Scan(&is)
	return is, away(ctx, err)
}

// unacknowledged says whether the broker waits for acknowledgements of this service.
func (w *world) unacknowledged(ctx context.Context, service string) (bool, error) {
	c, err := w.consumer(ctx, reads(service))
	return err == nil && c.NumAckPending > 0, away(ctx, err)
}

// waiting is how many messages the streams have that are not acknowledged, as far as they can be asked.
func (w *world) waiting(ctx context.Context) (n int) {
	for _, d := range directions {
		if c, err := w.consumer(ctx, d); err == nil {
			n += int(c.NumPending) + c.NumAckPending
		}
	}
	return n
}

// reads is what a service consumes.
func reads(service string) direction {
	return directions[slices.IndexFunc(directions, func(d direction) bool { return d.consumer == service })]
}

// away makes an outage nothing that was seen: what is looked at may be broken just now.
func away(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

const (
	// wantLimit is how long the wanted state is waited for, before any other will do, which is counted, and placeLimit how long
	// that is.
	wantLimit  = 5 * time.Second
	placeLimit = 5 * time.Second
	// drawPause is after how long in vain some more of the load is let through.
	drawPause = 250 * time.Millisecond
)

// place waits until cond holds, and lets more of the load through while it does not.
func (r *run) place(ctx context.Context, limit time.Duration, cond func() (bool, error)) (bool, error) {
	late, draw := time.Now().Add(limit), time.Now().Add(drawPause)
	for {
		ok, err := cond()
		if ok || err != nil {
			return ok, err
		}
		if time.Now().After(draw) {
			r.draw()
			draw = time.Now().Add(drawPause)
		}
		if time.Now().After(late) {
			return false, nil
		}
		if err := trial.Pause(ctx, 3*time.Millisecond); err != nil {
			return false, err
		}
	}
}

// halt stops a process in a state that is seen, best in the one that is wanted, and leaves it stopped. It returns the state, "" for
// none.
func (r *run) halt(ctx context.Context, p *program, want string) (state string, err error) {
	if err := p.awaitReady(ctx); err != nil {
		return "", fmt.Errorf("%w; the end of its log:\n%s", err, lastLines(p.log, 5))
	}
	r.release()
	for _, choice := range choices(want, strings.Fields(states)) {
		ok, err := r.place(ctx, choice.limit, func() (bool, error) {
			for _, state = range choice.states {
				ok, err := r.haltIn(ctx, p, state)
				if ok || err != nil {
					return ok, err
				}
			}
			return false, nil
		})
		if ok || err != nil {
			return state, err
		}
	}
	return "", nil
}

// choices are the state that is wanted, if any is, and then every one, by how long each is waited for.
func choices(want string, every []string) []choice {
	if want == "" {
		return []choice{{every, placeLimit}}
	}
	return []choice{{[]string{want}, wantLimit}, {every, placeLimit}}
}

type choice struct {
	states []string
	limit  time.Duration
}

func (r *run) haltIn(ctx context.Context, p *program, state string) (bool, error) {
	if ok, err := r.w.before(ctx, p, state); !ok || err != nil {
		return false, err
	}
	held, err := p.hold()
	if !held || err != nil {
		return false, err
	}
	ok, err := r.w.seen(ctx, p, state)
	if ok && err == nil {
		return true, nil
	}
	if err2 := p.release(); err == nil {
		err = err2
	}
	return false, err
}

// system waits for a state of all processes together: the load flows.
func (r *run) system(ctx context.Context, want string) (state string, err error) {
	r.release()
	for _, choice := range choices(want, []string{"in-hand", "unsent", "transaction", "request"}) {
		ok, err := r.place(ctx, choice.limit, func() (bool, error) {
			for _, state = range choice.states {
				ok, err := r.w.anywhere(ctx, state)
				if ok || err != nil {
					return ok, err
				}
			}
			return false, nil
		})
		if ok || err != nil {
			return state, err
		}
	}
	return "", nil
}

// anywhere says whether some process is in that state.
func (w *world) anywhere(ctx context.Context, state string) (bool, error) {
	switch state {
	case "request":
		return slices.ContainsFunc(w.programs, func(p *program) bool { return p.asked.Load() > 0 }), nil
	case "transaction":
		is, err := w.inTransaction(ctx, "orders-")
		if is || err != nil {
			return is, err
		}
		return w.inTransaction(ctx, "billing-")
	}
	look := w.unacknowledged
	if state == "unsent" {
		look = w.unsent
	}
	for _, d := range directions {
		if is, err := look(ctx, d.producer); is || err != nil {
			return is, err
		}
	}
	return false, nil
}
