package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/oncebox/oncebox/heal"
)

// An app is what the commands share.
type app struct {
	services  []named
	json      bool
	out, errs io.Writer
}

type named struct {
	name string
	heal.Remote
}

func newApp(c cli, out, errs io.Writer) (*app, error) {
	token := ""
	if c.TokenFile != "" {
		b, err := os.ReadFile(c.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("read the token: %w", err)
		}
		token = strings.TrimSpace(string(b))
	}
	a := &app{json: c.Output == "json", out: out, errs: errs}
	for name, url := range c.Service {
		a.services = append(a.services, named{name, heal.Remote{URL: url, Token: token}})
	}
	slices.SortFunc(a.services, func(x, y named) int { return strings.Compare(x.name, y.name) })
	return a, nil
}

// some are the services of that name, or all where it is "".
func (a *app) some(name string) ([]named, error) {
	if name == "" {
		return a.services, nil
	}
	for _, s := range a.services {
		if s.name == name {
			return []named{s}, nil
		}
	}
	return nil, fmt.Errorf("no service is named %q: see --service", name)
}

func (a *app) one(name string) (named, error) {
	s, err := a.some(name)
	if err != nil {
		return named{}, err
	}
	if len(s) != 1 {
		return named{}, errors.New("say which service")
	}
	return s[0], nil
}

// show prints v as JSON, or rows under their names.
func (a *app) show(v any, header table.Row, rows []table.Row) error {
	if a.json {
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.Style().Options.SeparateColumns, t.Style().Options.DrawBorder = false, false
	t.AppendHeader(header)
	t.AppendRows(rows)
	fmt.Fprintln(a.out, t.Render())
	return nil
}

// ago is how long t is past, for people.
func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return time.Since(t).Round(time.Second).String() + " ago"
}
