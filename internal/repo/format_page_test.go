package repo

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestFormatPage: docs/format/repository.md names every section and key that the info files and manifests are written with.
func TestFormatPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/format/repository.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	name := regexp.MustCompile(`^[a-z]+([-:][a-z]+)*$`)
	seen := 0
	for _, file := range []string{"info.go", "backup_line.go", "manifest_encode.go", "manifest_parse.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		look := func(e ast.Expr, before, after string) {
			lit, ok := e.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return
			}
			text, err := strconv.Unquote(lit.Value)
			if err != nil || !name.MatchString(text) {
				return
			}
			seen++
			if !strings.Contains(page, before+text+after) {
				t.Errorf("%s: %s is not on the page", file, before+text+after)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				for i, v := range n.Values {
					if strings.HasPrefix(n.Names[i].Name, "section") {
						look(v, "[", "]")
					}
				}
			case *ast.CallExpr: // o.str("path", …), w.str(section, "db-version", …)
				sel, ok := n.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); !ok || x.Name != "o" && x.Name != "w" {
					return true
				}
				for _, a := range n.Args[:min(2, len(n.Args))] {
					look(a, "`", "`")
				}
			}
			return true
		})
	}
	if seen < 80 {
		t.Errorf("%d names found in the source: the test does not see them any more", seen)
	}
}
