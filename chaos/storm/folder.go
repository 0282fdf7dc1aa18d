package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// A folder keeps what a run was: its options, its schedule, what its clients saw, and the logs.
type folder struct {
	path   string
	ours   bool // made by us, and removed after a run that passes
	faults *lines
}

const (
	optionsFile  = "options.json"
	scheduleFile = "schedule.jsonl"
	faultsFile   = "faults.jsonl"
	historyFile  = "history.jsonl"
)

// newFolder writes the options and the schedule.
func newFolder(o options, plan schedule) (*folder, error) {
	f := &folder{path: o.out, ours: o.out == ""}
	var err error
	if f.ours {
		f.path, err = os.MkdirTemp("", fmt.Sprintf("oncebox-storm-%d-", o.Seed))
	} else {
		err = os.MkdirAll(f.path, 0o755)
	}
	if err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(f.path, optionsFile), append(text, '\n'), 0o644); err != nil {
		return nil, err
	}
	planned, err := newLines(filepath.Join(f.path, scheduleFile))
	if err != nil {
		return nil, err
	}
	if f.faults, err = newLines(filepath.Join(f.path, faultsFile)); err != nil {
		return nil, errors.Join(err, planned.close())
	}
	for _, p := range plan {
		planned.add(p)
	}
	return f, planned.close()
}

// done is the end of a run that passed, or that nobody wants any more.
func (f *folder) done() error {
	if !f.ours {
		return nil
	}
	return os.RemoveAll(f.path)
}
