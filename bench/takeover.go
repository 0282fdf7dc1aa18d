package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/bench/measure"
	"github.com/oncebox/oncebox/internal/trial"
)

const theLease = "the lease"

// takeover is row 10.
func (b *bench) takeover() measure.Row {
	lease := size(b, 5*time.Second, time.Second)
	killed, stopped := "killed, lease "+lease.String(), "SIGTERM"
	run := func(end func(context.Context, *process) error) func(context.Context) (measure.Figures, error) {
		return func(ctx context.Context) (measure.Figures, error) { return b.gap(ctx, lease, end) }
	}
	return measure.Row{Number: 10, Work: "The relay ends: until the standby publishes", Notes: []string{
		"Two processes of orders on one database, 200 events/s. The longest pause between two messages of the stream after the signal, and the time from the signal to its end.",
		"A process that is told to stop goes on relaying while it answers what it has begun, so that on SIGTERM the pause is what counts.",
	}, Cases: []measure.Case{
		{Name: killed, Contenders: []measure.Contender{
			{Name: oursName, Role: measure.Ours, Run: run(func(_ context.Context, p *process) error { return p.Kill() })},
			{Name: theLease, Role: measure.Limit, Run: func(context.Context) (measure.Figures, error) {
				return measure.Figures{"ms": float64(lease.Milliseconds())}, nil
			}},
		}},
		{Name: stopped, Contenders: []measure.Contender{{Name: oursName, Role: measure.Ours, Run: run(func(ctx context.Context, p *process) error { return p.Stop(ctx) })}}},
	}, Aims: []measure.Aim{
		{What: "killed, of lease + 1 s", Over: measure.Ref{Case: killed, Contender: oursName, Metric: "of lease + 1 s"}, Want: 1, AtMost: true},
		{What: "SIGTERM, pause in ms", Over: measure.Ref{Case: stopped, Contender: oursName, Metric: "pause ms"}, Want: 200, AtMost: true},
	}}
}

// gap is how long nothing is published when the leading process of two ends.
func (b *bench) gap(ctx context.Context, lease time.Duration, end func(context.Context, *process) error) (_ measure.Figures, err error) {
	r, err := b.startRelays(ctx, "ORDERS_LEASE="+lease.String())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.end(ctx)) }()
	leader, err := r.service(ctx)
	if err != nil {
		return nil, err
	}
	r.onEnd(leader.end)
	if err := leads(ctx, leader); err != nil {
		return nil, err
	}
	standby, err := r.service(ctx)
	if err != nil {
		return nil, err
	}
	r.onEnd(standby.end)

	const before = 200 // messages that the leader publishes first, and the standby afterwards
	var at time.Time
	err = beside(ctx, r.feed, func(ctx context.Context) error {
		if err := r.reaches(ctx, before); err != nil {
			return err
		}
		at = time.Now()
		if err := end(ctx, leader); err != nil {
			return err
		}
		if err := leads(ctx, standby); err != nil {
			return err
		}
		info, err := r.stream.Info(ctx)
		if err != nil {
			return err
		}
		return r.reaches(ctx, info.State.LastSeq+before)
	})
	if err != nil {
		return nil, err
	}
	stored, err := r.stream.times(ctx)
	if err != nil {
		return nil, err
	}
	var longest, took time.Duration
	for i := 1; i < len(stored); i++ {
		if pause := stored[i].at.Sub(stored[i-1].at); stored[i].at.After(at) && pause > longest {
			longest, took = pause, stored[i].at.Sub(at)
		}
	}
	return measure.Figures{"ms": float64(took.Milliseconds()), "pause ms": float64(longest.Milliseconds()), "of lease + 1 s": took.Seconds() / (lease + time.Second).Seconds()}, nil
}

// feed adds an event each 5 ms until ctx is done.
func (r *relays) feed(ctx context.Context) error {
	add := addToOutbox("orders")
	for i := 0; ; i++ {
		err := pgx.BeginFunc(ctx, r.orders.Pool, func(tx pgx.Tx) error { return add(ctx, tx, ofOrders(sold(i, 1))) })
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it is to end
		}
		if err != nil {
			return err
		}
		if trial.Pause(ctx, 5*time.Millisecond) != nil {
			return nil //nolint:nilerr // it is to end
		}
	}
}

// reaches waits until the stream's last sequence is n or above.
func (r *relays) reaches(ctx context.Context, n uint64) error {
	for {
		info, err := r.stream.Info(ctx)
		if err != nil || info.State.LastSeq >= n {
			return err
		}
		if err := trial.Pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// leads waits until the process's relay does.
func leads(ctx context.Context, p *process) error {
	const limit = time.Minute
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the relay does not lead within %s", limit))
	defer cancel()
	for {
		var status struct{ Leading bool }
		if err := p.get(ctx, "/relay", &status); err != nil {
			return err
		}
		if status.Leading {
			return nil
		}
		if err := trial.Pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

func (p *process) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.admin+path, nil)
	if err != nil {
		return err
	}
	res, err := httpClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return json.NewDecoder(res.Body).Decode(into)
}

// A stored is a message of a stream.
type stored struct {
	at   time.Time
	data []byte
}

// times reads the stream: when each message was stored, and its data.
func (s *stream) times(ctx context.Context) ([]stored, error) {
	info, err := s.Info(ctx)
	if err != nil {
		return nil, err
	}
	c, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", s.name, err)
	}
	all := make([]stored, 0, info.State.Msgs)
	for len(all) < cap(all) {
		batch, err := c.Fetch(min(5000, cap(all)-len(all)))
		if err != nil {
			return nil, fmt.Errorf("read stream %s: %w", s.name, err)
		}
		for m := range batch.Messages() {
			meta, err := m.Metadata()
			if err != nil {
				return nil, err
			}
			all = append(all, stored{at: meta.Timestamp, data: m.Data()})
		}
		if err := batch.Error(); err != nil {
			return nil, fmt.Errorf("read stream %s: %w", s.name, err)
		}
	}
	return all, nil
}
