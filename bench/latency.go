package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox/bench/measure"
	"github.com/oncebox/oncebox/internal/trial"
)

// latency is row 6.
func (b *bench) latency() measure.Row {
	row := measure.Row{Number: 6, Work: "Latency from POST to the charge's commit", Notes: append(systemNotes,
		"Orders come at a steady rate, whether or not those before are answered. The end is the commit's time as Postgres keeps it.")}
	loads := []int{200}
	if !b.quick {
		loads = []int{50, 100, 200, 400, 800}
	}
	for _, load := range loads {
		c := loadName(load)
		at := func(start func(context.Context) (*system, error)) func(context.Context) (measure.Figures, error) {
			return func(ctx context.Context) (measure.Figures, error) { return b.latencyAt(ctx, start, load) }
		}
		rounds := 1
		if load == 200 {
			rounds = 0
			row.Aims = []measure.Aim{
				{What: "p50, of the Watermill services'", Over: measure.Ref{Case: c, Contender: oursName, Metric: "p50 ms"},
					Under: measure.Ref{Case: c, Contender: watermillAll, Metric: "p50 ms"}, Want: 0.2, AtMost: true},
				{What: "p99, of the Watermill services'", Over: measure.Ref{Case: c, Contender: oursName, Metric: "p99 ms"},
					Under: measure.Ref{Case: c, Contender: watermillAll, Metric: "p99 ms"}, Want: 1.0 / 3, AtMost: true},
			}
		}
		row.Cases = append(row.Cases, measure.Case{Name: c, Rounds: rounds, Contenders: []measure.Contender{
			{Name: oursName, Role: measure.Ours, Run: at(b.startOurs)},
			{Name: watermillAll, Role: measure.Peer, Run: at(b.startWatermill)},
		}})
	}
	return row
}

func loadName(perSecond int) string { return fmt.Sprintf("%d orders/s", perSecond) }

func (b *bench) latencyAt(ctx context.Context, start func(context.Context) (*system, error), perSecond int) (_ measure.Figures, err error) {
	s, err := start(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end(ctx)) }()
	n := int(size(b, 10*time.Second, 2*time.Second).Seconds()) * perSecond
	var (
		mu    sync.Mutex
		asked = map[uuid.UUID]time.Time{}
	)
	g, posting := errgroup.WithContext(ctx)
	began := time.Now()
	for i := range n {
		due := began.Add(time.Duration(i) * time.Second / time.Duration(perSecond))
		if err := trial.Pause(ctx, time.Until(due)); err != nil {
			return nil, err
		}
		g.Go(func() error {
			// From when it was due: a client that waits for this program to get to it waits all the same.
			id, err := post(posting, s.url+"/v1/orders", uuid.NewString())
			if err != nil {
				return err
			}
			order, err := uuid.Parse(id)
			mu.Lock()
			defer mu.Unlock()
			asked[order] = due
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	at, err := s.charged(ctx, n+warmUp)
	if err != nil {
		return nil, err
	}
	took := make([]time.Duration, 0, n)
	for order, due := range asked {
		committed, ok := at[order]
		if !ok {
			return nil, fmt.Errorf("order %s has no charge", order)
		}
		took = append(took, committed.Sub(due))
	}
	return measure.Figures{"p50 ms": measure.Percentile(took, 0.5), "p99 ms": measure.Percentile(took, 0.99)}, nil
}
