// Command mutants breaks one guard after the other, in a copy of the tree, and shows which check catches it and how fast. It fails
// if a mutant does not apply, does not compile, or is not caught.
//
// A mutant is a patch in this folder. Above its first "diff" stand three lines: what it breaks, the folder of the test that has to
// see it, and that test as a regular expression. No check relies on UNIQUE (order_id) or another constraint of the effect's own
// table: the tests of the rooms have none, and those of chaos drop it.
//
// A fourth line, "Storm: yes", is that of a mutant which the relay's storm has to see too. With -storm those alone are tried, by
// as many seeds of it as "make storm" runs.
//
//	go run ./mutants [-storm] [-only name,name]
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	only := flag.String("only", "", "names of the mutants to try, separated by commas")
	storm := flag.Bool("storm", false, "try those that the relay's storm has to see, by it")
	limit := flag.Duration("limit", 5*time.Minute, "how long one check may take")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, *only, *storm, *limit); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// A mutant is a patch and the check that has to see it.
type mutant struct {
	name, breaks, folder, test string
	env                        []string
	patch                      []byte
}

func run(ctx context.Context, out io.Writer, only string, storm bool, limit time.Duration) error {
	root, err := output(ctx, ".", "git", "rev-parse", "--show-toplevel")
	if err != nil {
		return err
	}
	mutants, err := read(filepath.Join(root, "chaos", "mutants"), only, storm)
	if err != nil {
		return err
	}
	tree, err := os.MkdirTemp("", "oncebox-mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	if err := copyTree(ctx, root, tree); err != nil {
		return fmt.Errorf("copy the tree: %w", err)
	}
	var survived []string
	for _, m := range mutants {
		caught, took, err := m.try(ctx, tree, limit)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", m.name, err)
		case caught == "":
			survived = append(survived, m.name)
			fmt.Fprintf(out, "SURVIVED  %-28s %s\n", m.name, m.breaks)
		default:
			fmt.Fprintf(out, "caught    %-28s in %5.1f s by %s\n", m.name, took.Seconds(), caught)
		}
	}
	if len(survived) > 0 {
		return fmt.Errorf("%d of %d mutants survived: %s", len(survived), len(mutants), strings.Join(survived, ", "))
	}
	fmt.Fprintf(out, "all %d mutants caught\n", len(mutants))
	return nil
}

func read(folder, only string, storm bool) ([]mutant, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*.patch"))
	if err != nil {
		return nil, err
	}
	var mutants []mutant
	for _, file := range files {
		m := mutant{name: strings.TrimSuffix(filepath.Base(file), ".patch")}
		if only != "" && !slices.Contains(strings.Split(only, ","), m.name) {
			continue
		}
		if m.patch, err = os.ReadFile(file); err != nil {
			return nil, err
		}
		head := bufio.NewScanner(bytes.NewReader(m.patch))
		for _, line := range []struct {
			name string
			to   *string
		}{{"Breaks: ", &m.breaks}, {"Folder: ", &m.folder}, {"Test: ", &m.test}} {
			var ok bool
			head.Scan()
			if *line.to, ok = strings.CutPrefix(head.Text(), line.name); !ok {
				return nil, fmt.Errorf("%s: %q does not begin with %q", file, head.Text(), line.name)
			}
		}
		if storm {
			head.Scan()
			if head.Text() != "Storm: yes" {
				continue
			}
			m.folder, m.test, m.env = "outbox", "^TestNothingIsLostOrReorderedInAStorm$", []string{"ONCEBOX_STORMS=200"}
		}
		mutants = append(mutants, m)
	}
	if len(mutants) == 0 {
		return nil, errors.New("there is no such mutant")
	}
	return mutants, nil
}

// try applies the mutant, runs its check and takes it back. Caught is the first test that failed, "" if none did.
func (m mutant) try(ctx context.Context, tree string, limit time.Duration) (caught string, took time.Duration, err error) {
	apply := func(reverse ...string) error {
		cmd := exec.CommandContext(context.WithoutCancel(ctx), "git", append([]string{"apply", "-C1", "--recount", "--whitespace=nowarn"}, reverse...)...)
		cmd.Dir, cmd.Stdin = tree, bytes.NewReader(m.patch)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apply: %w\n%s", err, out)
		}
		return nil
	}
	if err := apply(); err != nil {
		return "", 0, err
	}
	defer func() { err = errors.Join(err, apply("-R")) }()
	folder := filepath.Join(tree, m.folder)
	if out, err := output(ctx, folder, "go", "test", "-vet=off", "-run=^$", "."); err != nil {
		return "", 0, fmt.Errorf("compile: %w\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	cmd := exec.CommandContext(ctx, "go", "test", "-vet=off", "-count=1", "-failfast", "-timeout="+limit.String(), "-run="+m.test, ".")
	cmd.Dir, cmd.Env = folder, append(os.Environ(), m.env...)
	said, err := cmd.CombinedOutput()
	out := string(said)
	took = time.Since(began)
	if err == nil {
		return "", took, nil
	}
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "--- FAIL: "); ok {
			name, _, _ = strings.Cut(name, " ")
			return m.folder + " " + name, took, nil
		}
	}
	if strings.Contains(out, "panic: ") { // a test that hangs
		return m.folder + " " + m.test + ", which did not end", took, nil
	}
	return "", took, fmt.Errorf("the check failed, and no test of it: %w\n%s", err, out)
}

func output(ctx context.Context, folder, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = folder
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// copyTree copies the files that git knows, as they are now.
func copyTree(ctx context.Context, from, to string) error {
	list, err := output(ctx, from, "git", "ls-files", "--cached", "--others", "--exclude-standard")
	if err != nil {
		return err
	}
	for name := range strings.Lines(list) {
		name = strings.TrimSpace(name)
		b, err := os.ReadFile(filepath.Join(from, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted, and not yet committed
		}
		if err != nil {
			return err
		}
		target := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(target, b, 0o644); err != nil {
			return err
		}
	}
	return nil
}
