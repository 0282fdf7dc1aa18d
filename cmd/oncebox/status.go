package main

import (
	"fmt"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/oncebox/oncebox/heal"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/outbox"
)

type statusCmd struct{}

// A standing is how one service stands.
type standing struct {
	Service string        `json:"service"`
	Relay   outbox.Status `json:"relay"`
	Dead    int           `json:"dead"` // 1,000 at most
	Heal    []heal.Report `json:"heal"`
	Error   string        `json:"error,omitempty"`
}

func (a *app) standings(ctx ctxArg) (all []standing, unreachable int) {
	for _, s := range a.services {
		st := standing{Service: s.name}
		var dead struct{ Letters []inbox.Letter }
		err := s.Get(ctx, "/relay", nil, &st.Relay)
		if err == nil {
			err = s.Get(ctx, "/dead-letters", map[string][]string{"limit": {"1000"}}, &dead)
		}
		if err == nil {
			err = s.Get(ctx, "/heal", nil, &st.Heal)
		}
		if err != nil {
			st.Error = err.Error()
			unreachable++
		}
		st.Dead = len(dead.Letters)
		all = append(all, st)
	}
	return all, unreachable
}

func (statusCmd) Run(a *app, ctx ctxArg) error {
	all, unreachable := a.standings(ctx)
	var rows []table.Row
	wrong := false
	for _, s := range all {
		if s.Error != "" {
			rows = append(rows, table.Row{s.Service, "cannot be asked: " + s.Error})
			continue
		}
		holder, alike := s.Relay.Holder, "not compared yet"
		if holder == "" {
			holder, wrong = "nobody", true
		}
		for _, r := range s.Heal {
			if alike = "alike, " + ago(r.At); !r.Alike() {
				alike, wrong = fmt.Sprintf("%d missing, %d unknown, %d conflicts %s", r.Missing, r.Unknown, r.Conflicts, r.Error), true
			}
		}
		wrong = wrong || s.Dead > 0 || s.Relay.Parked > 0
		rows = append(rows, table.Row{s.Service, holder, s.Relay.Backlog, s.Relay.Parked, s.Dead, s.Relay.Durable, alike})
	}
	err := a.show(all, table.Row{"service", "relay", "unsent", "parked", "dead", "durable", "consumers"}, rows)
	switch {
	case err != nil:
		return err
	case unreachable > 0:
		return fmt.Errorf("%d of %d services could not be asked", unreachable, len(all))
	case wrong:
		return errDiffers
	}
	return nil
}

type lagCmd struct{}

func (lagCmd) Run(a *app, ctx ctxArg) error {
	all, unreachable := a.standings(ctx)
	var rows []table.Row
	for _, s := range all {
		rows = append(rows, table.Row{s.Service, s.Relay.Backlog, ago(s.Relay.OldestUnsent), s.Relay.Seq, s.Relay.StreamSeq, ago(s.Relay.SavedAt)})
	}
	if err := a.show(all, table.Row{"service", "unsent", "oldest", "row", "stream", "saved"}, rows); err != nil {
		return err
	}
	if unreachable > 0 {
		return fmt.Errorf("%d of %d services could not be asked", unreachable, len(all))
	}
	return nil
}
