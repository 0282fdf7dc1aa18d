package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// A program whose kill is noticed late, when the next one runs already, is not taken for one that ended by itself.
func TestKilledProgramDidNotEndByItself(t *testing.T) {
	t.Parallel()
	failed := make(chan error, 1000)
	p := &program{name: "sleeper", path: "sleep", args: []string{"60"}, log: filepath.Join(t.TempDir(), "log"),
		fail: func(err error) { failed <- err }}
	for range 200 {
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
		if err := p.kill(); err != nil {
			t.Fatal(err)
		}
	}
	if len(failed) > 0 {
		t.Errorf("%d kills were noticed as: %v", len(failed), <-failed)
	}
}

func TestProgramThatEndsByItselfFailsTheRun(t *testing.T) {
	t.Parallel()
	failed := make(chan error, 1)
	p := &program{name: "quitter", path: "sh", args: []string{"-c", "echo no money; exit 3"}, log: filepath.Join(t.TempDir(), "log"),
		fail: func(err error) { failed <- err }}
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; !strings.Contains(err.Error(), "quitter ended by itself, exit status 3; the end of its log:\nno money") {
		t.Errorf("failed with %v", err)
	}
}
