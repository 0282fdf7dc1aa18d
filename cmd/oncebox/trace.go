package main

import (
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/oncebox/oncebox/heal"
)

type traceCmd struct {
	Name string `arg:"" help:"An order's id, an event's id, or the idempotency key that an order was made with."`
}

// A placed step is one of a service.
type placed struct {
	Service string `json:"service"`
	heal.Step
}

func (c traceCmd) Run(a *app, ctx ctxArg) error {
	names, asked := []string{c.Name}, map[string]bool{}
	steps := map[placed]string{} // their states
	for len(names) > 0 {         // what is found has ids and keys, under which others know more of it
		for _, n := range names {
			asked[n] = true
		}
		var more []string
		for _, s := range a.services {
			var found []heal.Step
			if err := s.Get(ctx, "/trace", url.Values{"name": names}, &found); err != nil {
				return err
			}
			for _, step := range found {
				known := placed{s.name, step}
				known.State = "" // which may change between two answers
				steps[known] = step.State
				for _, n := range []string{step.ID, step.Key} {
					if n != "" && !asked[n] && !slices.Contains(more, n) {
						more = append(more, n)
					}
				}
			}
		}
		names = more
	}
	way := make([]placed, 0, len(steps))
	for s, state := range steps {
		s.State = state
		way = append(way, s)
	}
	slices.SortFunc(way, func(x, y placed) int { return x.At.Compare(y.At) })
	rows := make([]table.Row, len(way))
	for i, s := range way {
		detail := s.Detail
		if s.State != "" {
			detail += ", " + s.State
		}
		rows[i] = table.Row{s.At.UTC().Format(time.RFC3339Nano), s.Service, s.Where, s.What, detail, s.ID}
	}
	if err := a.show(way, table.Row{"at", "service", "where", "what", "", "event"}, rows); err != nil {
		return err
	}
	if len(way) == 0 {
		return fmt.Errorf("nobody knows %q", c.Name)
	}
	return nil
}
