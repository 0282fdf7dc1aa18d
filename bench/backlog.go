package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/bench/measure"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/migrations"
)

// ordersSubject is a type of event that orders' stream takes and billing does not know.
const ordersSubject = "orders.bench.v1"

// memoryRow is row 9.
func (b *bench) memoryRow() measure.Row {
	n := size(b, 1_000_000, 50_000)
	c := backlog(n)
	return measure.Row{Number: 9, Work: "Memory of a service whose relay finds a backlog", Notes: []string{
		"The binary orders, by the kernel's count of its resident memory at its highest: once it has relayed 1,000 events and once it has relayed the backlog. Nothing to compare with: a relay that holds what it reads fails this row.",
	}, Cases: []measure.Case{{Name: c, Rounds: 1, Contenders: []measure.Contender{
		{Name: oursName, Role: measure.Ours, Run: func(ctx context.Context) (measure.Figures, error) { return b.growth(ctx, n) }},
	}}}, Aims: []measure.Aim{{What: "growth in MiB", Over: measure.Ref{Case: c, Contender: oursName, Metric: "growth MiB"}, Want: 64, AtMost: true}}}
}

func (b *bench) growth(ctx context.Context, n int) (_ measure.Figures, err error) {
	const few = 1000
	r, err := b.startRelays(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.end(ctx)) }()
	peak := func(rows int) (float64, error) {
		p, err := r.service(ctx)
		if err != nil {
			return 0, err
		}
		if _, err := r.stream.holds(ctx, rows); err != nil {
			return 0, errors.Join(err, p.end(ctx))
		}
		mib, err := peakMiB(p.Pid())
		return mib, errors.Join(err, p.end(ctx))
	}
	if err := r.add(ctx, few); err != nil {
		return nil, err
	}
	idle, err := peak(few)
	if err != nil {
		return nil, err
	}
	if err := r.add(ctx, n); err != nil {
		return nil, err
	}
	full, err := peak(few + n)
	return measure.Figures{"at 1,000 rows MiB": idle, "at the backlog MiB": full, "growth MiB": full - idle}, err
}

// peakMiB is the most that a process had resident at a time.
func peakMiB(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			return float64(kib) / 1024, err
		}
	}
	return 0, errors.New("the kernel does not say how much memory a process had")
}

// relays are orders' binaries, as many as are started, on one database and stream.
type relays struct {
	system
	b      *bench
	stream *stream
	env    []string
}

// startRelays migrates the database by a first process, which also makes the stream, and stops it.
func (b *bench) startRelays(ctx context.Context, env ...string) (*relays, error) {
	r := &relays{b: b, env: env}
	err := b.give(ctx, &r.system, &r.orders, "orders", prepareService(migrations.Orders))
	if err != nil {
		return nil, err
	}
	p, err := r.service(ctx)
	if err != nil {
		return nil, errors.Join(err, r.end(ctx))
	}
	r.stream, err = b.existing(ctx, events.OrdersStream)
	if err != nil {
		return nil, errors.Join(err, p.end(ctx), r.end(ctx))
	}
	r.onEnd(r.stream.drop)
	if err := p.end(ctx); err != nil {
		return nil, errors.Join(err, r.end(ctx))
	}
	return r, nil
}

// service starts one more process.
func (r *relays) service(ctx context.Context) (*process, error) {
	return r.b.service(ctx, "orders", r.orders.url, r.b.interval.URL(), r.env...)
}

// add adds n events to the outbox, and leaves the writes of doing so to a checkpoint.
func (r *relays) add(ctx context.Context, n int) error {
	add := addToOutbox("orders")
	if err := fill(ctx, r.orders.Pool, n, fillBatch, func(tx pgx.Tx, es []oncebox.Event) error { return add(ctx, tx, ofOrders(es)) }); err != nil {
		return err
	}
	return r.b.admin(ctx, "CHECKPOINT")
}

// ofOrders makes the events ones of orders'.
func ofOrders(es []oncebox.Event) []oncebox.Event {
	for i := range es {
		es[i].Source, es[i].Type = "orders", ordersSubject
	}
	return es
}
