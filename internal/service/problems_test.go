package service

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/oncebox/oncebox/idempotency"
)

const root = "../.."

// statusNames are the statuses by the names of their constants.
func statusNames() map[string]int {
	names := make(map[string]int)
	for code := 100; code < 600; code++ {
		if text := http.StatusText(code); text != "" {
			names["Status"+regexp.MustCompile(`[^A-Za-z]`).ReplaceAllString(text, "")] = code
		}
	}
	return names
}

// used are the slugs that the code calls Problem with, each with the statuses that come with it there.
func used(t *testing.T) map[string][]int {
	t.Helper()
	names, slugs := statusNames(), make(map[string][]int)
	visit := func(call *ast.CallExpr) {
		if len(call.Args) < 2 {
			return
		}
		name := ""
		switch f := call.Fun.(type) {
		case *ast.Ident:
			name = f.Name
		case *ast.SelectorExpr:
			name = f.Sel.Name
		}
		literal, ok := call.Args[1].(*ast.BasicLit)
		if name != "Problem" && name != "newProblem" || !ok {
			return
		}
		slug, err := strconv.Unquote(literal.Value)
		must(t, err)
		slugs[slug] = slices.Clip(slugs[slug]) // known, even with a status that is none of the constants
		if status, ok := call.Args[0].(*ast.SelectorExpr); ok && names[status.Sel.Name] != 0 {
			slugs[slug] = append(slugs[slug], names[status.Sel.Name])
		}
	}
	must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err == nil {
			ast.Inspect(file, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					visit(call)
				}
				return true
			})
		}
		return err
	}))
	return slugs
}

func TestEachProblemIsDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, "docs", "problems.md"))
	must(t, err)
	documented := make(map[string]int)
	for _, m := range regexp.MustCompile(`(?m)^## (\S+)\n\n(\d{3})\. \S`).FindAllStringSubmatch(string(text), -1) {
		documented[m[1]], err = strconv.Atoi(m[2])
		must(t, err)
	}
	have := make(map[string]int)
	for _, p := range ProblemTypes {
		have[p.Slug] = p.Status
		if p.Title == "" || http.StatusText(p.Status) == "" {
			t.Errorf("%+v", p)
		}
	}
	if !maps.Equal(documented, have) || len(have) != len(ProblemTypes) {
		t.Errorf("documented are %v, there are %v", documented, have)
	}
	calls := used(t)
	for _, p := range idempotency.ProblemTypes() { // the keys' own: those that our operations say they answer with
		if slices.Contains(append(KeyProblems, "key-missing", "store-unavailable"), p.Code) {
			calls[p.Code] = append(calls[p.Code], p.Status)
		}
		if ours, ok := problemType(p.Code); ok && (ours.Status != p.Status || ours.Title != p.Title) {
			t.Errorf("the keys answer with %+v, and the service with %+v", p, ours)
		}
	}
	for status, slug := range slugs {
		calls[slug] = append(calls[slug], status)
	}
	for slug, statuses := range calls {
		for _, status := range statuses {
			if have[slug] != status {
				t.Errorf("the code answers with %d %s, which is %d", status, slug, have[slug])
			}
		}
		if have[slug] == 0 {
			t.Errorf("the code answers with %s, which is none of ProblemTypes", slug)
		}
	}
	for slug := range have {
		if _, ok := calls[slug]; !ok {
			t.Errorf("nothing answers with %s", slug)
		}
	}
	for _, slug := range slices.Concat(anywhere, withBody) {
		if have[slug] == 0 {
			t.Errorf("%s is none of ProblemTypes", slug)
		}
	}
	for _, anchor := range regexp.MustCompile(`\]\(#([^)]+)\)`).FindAllStringSubmatch(string(text), -1) {
		if documented[anchor[1]] == 0 {
			t.Errorf("a link to #%s leads nowhere", anchor[1])
		}
	}
}

func TestATitleIsItsTypes(t *testing.T) {
	t.Parallel()
	for _, p := range ProblemTypes {
		if err, ok := Problem(p.Status, p.Slug, "detail").(*problem); !ok || err.Title != p.Title || //nolint:errorlint // it is the error itself
			err.Type != "urn:oncebox:problem:"+p.Slug || fmt.Sprint(err) != "detail" {
			t.Errorf("%+v", err)
		}
	}
}
