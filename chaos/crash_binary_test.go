package chaos

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// pointsInCode are the points of the calls of internal/crash in Oncebox's own module.
func pointsInCode(t *testing.T) (points []string) {
	t.Helper()
	eachFile(t, ".go", func(path, text string) {
		if strings.HasSuffix(path, "_test.go") || !strings.Contains(text, `"github.com/oncebox/oncebox/internal/crash"`) {
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, text, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if room, ok := f.X.(*ast.Ident); !ok || room.Name != "crash" {
				return true
			}
			side, ok := map[string]string{"Before": "/before", "After": "/after", "CutAfter": "/after"}[f.Sel.Name]
			name, literal := call.Args[0].(*ast.BasicLit)
			if !ok || !literal {
				t.Errorf("%s: crash.%s has no name that can be read here", path, f.Sel.Name)
				return true
			}
			operation, err := strconv.Unquote(name.Value)
			if err != nil {
				t.Fatal(err)
			}
			points = append(points, operation+side)
			return true
		})
	})
	slices.Sort(points)
	return points
}

// A point at which nothing is made to fail shows nothing.
func TestEachCrashPointOfTheCodeIsPassedByATest(t *testing.T) {
	t.Parallel()
	var passed []string
	for _, x := range allCrashes() {
		for _, f := range x.faults() {
			passed = append(passed, f.point)
		}
	}
	slices.Sort(passed)
	passed = slices.Compact(passed)
	points := pointsInCode(t)
	if len(points) == 0 {
		t.Fatal("the code has no points")
	}
	for i, p := range points {
		if i > 0 && points[i-1] == p {
			t.Errorf("%s is the name of two points", p)
		}
		if !slices.Contains(passed, p) {
			t.Errorf("no test has a process fail at %s", p)
		}
	}
	for _, p := range passed {
		if !slices.Contains(points, p) {
			t.Errorf("%s is tested, and is no point of the code", p)
		}
	}
}

// Invariant: what is shipped has nothing of the points in it, neither code nor names; what is built for these tests has each.
func TestTheShippedBinariesHaveNoCrashPoints(t *testing.T) {
	t.Parallel()
	shipped, _ := shared.get(t)
	var operations []string
	for _, p := range pointsInCode(t) {
		operation, _, _ := strings.Cut(p, "/")
		operations = append(operations, operation)
	}
	operations = slices.Compact(operations)
	found := map[string]bool{}
	for _, name := range []string{"orders", "billing"} {
		for dir, tag := range map[string]bool{shipped: false, taggedBinaries(t): true} {
			path := filepath.Join(dir, name)
			symbols, err := exec.CommandContext(t.Context(), "go", "tool", "nm", path).Output()
			if err != nil {
				t.Fatalf("nm of %s: %v", name, err)
			}
			binary, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, operation := range slices.Concat(operations, []string{armed, "oncebox/internal/crash"}) {
				has := bytes.Contains(binary, []byte(operation)) || bytes.Contains(symbols, []byte(operation))
				if has && !tag {
					t.Errorf("%s as shipped has %q in it", name, operation)
				}
				found[operation] = found[operation] || has
			}
		}
	}
	for operation, has := range found {
		if !has {
			t.Errorf("%q is in no binary that is built with the tag", operation)
		}
	}
}
