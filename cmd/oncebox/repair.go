package main

import (
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/oncebox/oncebox/heal"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/outbox"
)

type healCmd struct {
	DryRun bool `help:"Only compare."`
	Full   bool `help:"Compare from the outbox's beginning, also what was found alike before."`
}

func (c healCmd) Run(a *app, ctx ctxArg) error {
	q := url.Values{}
	if c.Full {
		q.Set("full", "")
	}
	var all []heal.Report
	var rows []table.Row
	wrong := false
	for _, s := range a.services {
		var reports []heal.Report
		ask, path := s.Post, "/heal"
		if c.DryRun {
			ask, path = s.Get, "/heal/compare"
		}
		if err := ask(ctx, path, q, &reports); err != nil {
			return err
		}
		for _, r := range reports {
			wrong = wrong || r.Error != "" || r.Unknown+r.Conflicts+r.TooOld > 0 || c.DryRun && r.Missing > 0
			rows = append(rows, table.Row{s.name + " to " + r.Consumer, r.Compared, r.Missing, r.Resent, r.OnWay, r.TooOld, r.Unknown, r.Conflicts, r.Dead, r.Error})
		}
		all = append(all, reports...)
	}
	if err := a.show(all, table.Row{"events", "compared", "missing", "sent again", "on their way", "too old", "unknown", "conflicts", "dead", ""}, rows); err != nil {
		return err
	}
	if wrong {
		return errDiffers
	}
	return nil
}

type parkedCmd struct {
	List  parkedList  `cmd:"" default:"withargs" help:"List them, the oldest first."`
	Retry parkedRetry `cmd:"" help:"Have the relay try once more."`
	Drop  parkedDrop  `cmd:"" help:"Give them up."`
}

type parkedList struct {
	Of string `arg:"" optional:"" help:"The service. Default: all."`
}

func (c parkedList) Run(a *app, ctx ctxArg) error {
	services, err := a.some(c.Of)
	if err != nil {
		return err
	}
	all := map[string][]outbox.ParkedEvent{}
	var rows []table.Row
	for _, s := range services {
		var parked []outbox.ParkedEvent
		if err := s.Get(ctx, "/relay/parked", nil, &parked); err != nil {
			return err
		}
		all[s.name] = parked
		for _, p := range parked {
			rows = append(rows, table.Row{s.name, p.Seq, p.ID, p.Type, p.Key, p.Bytes, ago(p.ParkedAt), p.Reason})
		}
	}
	return a.show(all, table.Row{"service", "row", "id", "type", "key", "bytes", "parked", "reason"}, rows)
}

type parkedRetry struct{ parkedAsk }
type parkedDrop struct{ parkedAsk }

type parkedAsk struct {
	Of   string  `arg:"" help:"The service."`
	Rows []int64 `arg:"" optional:"" help:"Their rows."`
	All  bool    `help:"All of them."`
}

func (c parkedRetry) Run(a *app, ctx ctxArg) error { return c.ask(a, ctx, "retry") }
func (c parkedDrop) Run(a *app, ctx ctxArg) error  { return c.ask(a, ctx, "drop") }

func (c parkedAsk) ask(a *app, ctx ctxArg, what string) error {
	s, err := a.one(c.Of)
	if err != nil {
		return err
	}
	rows := c.Rows
	if c.All {
		var parked []outbox.ParkedEvent
		if err := s.Get(ctx, "/relay/parked", nil, &parked); err != nil {
			return err
		}
		for _, p := range parked {
			rows = append(rows, p.Seq)
		}
	}
	asked := 0
	for _, seq := range rows {
		var n struct{ Asked int }
		if err := s.Post(ctx, fmt.Sprintf("/relay/parked/%d/%s", seq, what), nil, &n); err != nil {
			return err
		}
		asked += n.Asked
	}
	return a.show(map[string]int{"asked": asked}, table.Row{"asked"}, []table.Row{{asked}})
}

type deadCmd struct {
	List  deadList  `cmd:"" default:"withargs" help:"List them, the oldest first."`
	Show  deadShow  `cmd:"" help:"Show one whole, with its headers and payload."`
	Retry deadRetry `cmd:"" help:"Handle one again, or all that a filter selects."`
	Drop  deadDrop  `cmd:"" help:"Give one up, or all that a filter selects."`
}

// A deadFilter selects dead letters.
type deadFilter struct {
	Class, Topic, Key, Source, Tenant string
	Before                            string `help:"Those that died before then: RFC 3339, or how long ago." placeholder:"TIME"`
}

func (f deadFilter) query() (url.Values, error) {
	q := url.Values{}
	for name, value := range map[string]string{"class": f.Class, "topic": f.Topic, "key": f.Key, "source": f.Source, "tenant": f.Tenant} {
		if value != "" {
			q.Set(name, value)
		}
	}
	before, err := pointInTime(f.Before)
	if err == nil && !before.IsZero() {
		q.Set("before", before.UTC().Format(time.RFC3339Nano))
	}
	return q, err
}

type deadList struct {
	Of    string `arg:"" optional:"" help:"The service. Default: all."`
	State string `enum:"dead,retried,dropped,all" default:"dead" help:"${enum}."`
	Limit int    `default:"100" help:"How many of each service at most, up to 1000."`
	deadFilter
}

func (c deadList) Run(a *app, ctx ctxArg) error {
	services, err := a.some(c.Of)
	if err != nil {
		return err
	}
	q, err := c.query()
	if err != nil {
		return err
	}
	q.Set("state", c.State)
	q.Set("limit", strconv.Itoa(c.Limit))
	all := map[string][]inbox.Letter{}
	var rows []table.Row
	for _, s := range services {
		var page struct{ Letters []inbox.Letter }
		if err := s.Get(ctx, "/dead-letters", q, &page); err != nil {
			return err
		}
		all[s.name] = page.Letters
		for _, l := range page.Letters {
			rows = append(rows, table.Row{s.name, l.N, l.Class, l.Topic, l.Key, l.Attempts, l.State, ago(l.FirstSeen), l.Reason})
		}
	}
	return a.show(all, table.Row{"service", "n", "class", "topic", "key", "attempts", "state", "died", "reason"}, rows)
}

type deadShow struct {
	Of string `arg:"" help:"The service."`
	N  int64  `arg:"" help:"The letter's number."`
}

func (c deadShow) Run(a *app, ctx ctxArg) error {
	s, err := a.one(c.Of)
	if err != nil {
		return err
	}
	var l inbox.Letter
	if err := s.Get(ctx, fmt.Sprintf("/dead-letters/%d", c.N), nil, &l); err != nil {
		return err
	}
	rows := []table.Row{{"id", l.ID}, {"topic", l.Topic}, {"key", l.Key}, {"version", l.Version}, {"class", l.Class}, {"reason", l.Reason},
		{"state", l.State}, {"attempts", l.Attempts}, {"died", l.FirstSeen}, {"payload", string(l.Payload)}}
	for name, value := range l.Headers {
		rows = append(rows, table.Row{name, value})
	}
	return a.show(l, table.Row{"", ""}, rows)
}

type deadAsk struct {
	Of  string `arg:"" help:"The service."`
	N   int64  `arg:"" optional:"" help:"The letter's number. Without it: those which the filter selects."`
	All bool   `help:"All dead letters."`
	deadFilter
}

type deadRetry struct{ deadAsk }
type deadDrop struct{ deadAsk }

func (c deadRetry) Run(a *app, ctx ctxArg) error { return c.ask(a, ctx, "retry") }
func (c deadDrop) Run(a *app, ctx ctxArg) error  { return c.ask(a, ctx, "drop") }

func (c deadAsk) ask(a *app, ctx ctxArg, what string) error {
	s, err := a.one(c.Of)
	if err != nil {
		return err
	}
	q, err := c.query()
	if err != nil {
		return err
	}
	path := "/dead-letters/" + what
	if c.N > 0 {
		path, q = fmt.Sprintf("/dead-letters/%d/%s", c.N, what), nil
	} else if c.All {
		q.Set("all", "true")
	}
	var report map[string]any
	if err := s.Post(ctx, path, q, &report); err != nil {
		return err
	}
	var rows []table.Row
	for name, value := range report {
		rows = append(rows, table.Row{name, value})
	}
	if err := a.show(report, table.Row{"", ""}, rows); err != nil {
		return err
	}
	if failed, ok := report["failed"].(float64); ok && failed > 0 {
		return errDiffers
	}
	return nil
}

type replayCmd struct {
	Of     string `arg:"" help:"The service whose events they are."`
	From   string `help:"Events written since then: RFC 3339, or how long ago." placeholder:"TIME"`
	To     string `help:"And before then." placeholder:"TIME"`
	Topic  string `help:"Events of this type."`
	Key    string `help:"Events of this key."`
	Rate   int    `default:"1000" help:"Events a second at most."`
	DryRun bool   `help:"Only count them."`
}

func (c replayCmd) Run(a *app, ctx ctxArg) error {
	s, err := a.one(c.Of)
	if err != nil {
		return err
	}
	q := url.Values{"rate": {strconv.Itoa(c.Rate)}}
	for name, value := range map[string]string{"topic": c.Topic, "key": c.Key} {
		if value != "" {
			q.Set(name, value)
		}
	}
	for name, value := range map[string]string{"from": c.From, "to": c.To} {
		t, err := pointInTime(value)
		if err != nil {
			return fmt.Errorf("--%s: %w", name, err)
		}
		if !t.IsZero() {
			q.Set(name, t.UTC().Format(time.RFC3339Nano))
		}
	}
	ask := s.Post
	if c.DryRun {
		ask = s.Get
	}
	var r outbox.Report
	if err := ask(ctx, "/relay/replay", q, &r); err != nil {
		return err
	}
	return a.show(r, table.Row{"events", "first row", "last row"}, []table.Row{{r.Events, r.FirstSeq, r.LastSeq}})
}
