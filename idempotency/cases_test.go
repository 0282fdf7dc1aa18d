package idempotency_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/oncebox/oncebox/idempotency/storetest"
)

// TestEveryCaseHasATest fails on a case of testdata/cases.txt that no test where it says is named after, and on a test of the
// suite that is no case.
func TestEveryCaseHasATest(t *testing.T) {
	list, err := os.ReadFile("testdata/cases.txt")
	must(t, err)
	suite := map[string]bool{}
	names := map[string]map[string]bool{} // by folder
	for line := range strings.Lines(string(list)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.SplitN(line, " | ", 3)
		if len(f) != 3 {
			t.Fatalf("not name | where | what: %s", line)
		}
		slug, where := f[0], f[1]
		if names[where] == nil {
			names[where] = testNames(t, filepath.Join("..", where))
		}
		if !names[where][slug] {
			t.Errorf("%s has no test named %s", where, slug)
		}
		suite[slug] = suite[slug] || where == "idempotency/storetest"
	}
	for _, c := range storetest.Cases() {
		if !suite[c.Slug] {
			t.Errorf("the suite's %s is no case of cases.txt", c.Slug)
		}
	}
}

// testNames are the names that the folder's tests run under: the first strings of t.Run(…) and of composite literals.
func testNames(t *testing.T, folder string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	files, err := filepath.Glob(filepath.Join(folder, "*.go"))
	must(t, err)
	for _, path := range files {
		if !strings.HasSuffix(path, "_test.go") && filepath.Base(folder) != "storetest" {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		must(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			var first []ast.Expr
			switch n := n.(type) {
			case *ast.CallExpr:
				if s, ok := n.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Run" {
					first = n.Args
				}
			case *ast.CompositeLit:
				first = n.Elts
			}
			if lit, ok := firstString(first); ok {
				names[lit] = true
			}
			return true
		})
	}
	return names
}

func firstString(list []ast.Expr) (string, bool) {
	if len(list) == 0 {
		return "", false
	}
	lit, ok := list[0].(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(lit.Value)
	return s, err == nil && !slices.Contains([]string{"", " "}, s)
}
