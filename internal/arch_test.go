// Package internal_test holds the rules that keep the tree what doc.go says it is: who may import whom, which calls are
// made only at the door, how large a file may grow. It parses the source and nothing else, so it runs in short mode.
package internal_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "holdfast/"

// Ceilings in lines.
const (
	maxFile     = 800
	maxTestFile = 1200
	maxFunc     = 100
)

// allowed lists, for every package, which of our own packages its non-test files may import. A package that is missing
// here fails the test: add it to doc.go, then here. Arrows go down only; the picture is in doc.go.
var allowed = map[string][]string{
	"cmd/holdfast": {"internal/cli"},
	"internal/cli": {
		"internal/web", "internal/action", "internal/eventbus", "internal/engine", "internal/repo", "internal/catalog",
		"internal/storage", "internal/storage/s3", "internal/storage/gcs", "internal/storage/azure", "internal/storage/sftp", "internal/pg", "internal/tarball", "internal/instance", "internal/schedule", "internal/conf",
		"internal/notify", "internal/durable", "internal/backrest", "internal/kit", "internal/runlog", "internal/scrub", "internal/rds", "internal/probackup",
	},
	"internal/probackup": {"internal/said"},
	"internal/said":      {},
	"internal/kit":       {},
	"internal/runlog":    {},
	"internal/scrub":     {},
	"internal/rds":       {},
	"internal/backrest":  {},
	"internal/web":       {"internal/action", "internal/catalog", "internal/conf"},
	"internal/action": {
		"internal/engine", "internal/eventbus", "internal/catalog", "internal/repo", "internal/storage", "internal/pg",
		"internal/tarball", "internal/durable", "internal/rds", "internal/probackup", "internal/said",
	},
	"internal/engine":              {"internal/repo", "internal/storage", "internal/pg", "internal/durable"},
	"internal/repo":                {"internal/storage", "internal/zstdfast"},
	"internal/zstdfast":            {},
	"internal/catalog":             {"internal/storage"},
	"internal/storage":             {"internal/durable"},
	"internal/storage/s3":          {"internal/storage", "internal/storage/transport"},
	"internal/tarball":             {"internal/durable"},
	"internal/instance":            {"internal/durable"},
	"internal/conf":                {"internal/durable", "internal/schedule"},
	"internal/eventbus":            {},
	"internal/pg":                  {},
	"internal/schedule":            {},
	"internal/notify":              {},
	"internal/durable":             {},
	"internal/pg/pgtest":           {"internal/pg"},
	"internal/eventbus/kafkatest":  {"internal/eventbus"},
	"internal/storage/storagetest": {"internal/storage"},
	"internal/storage/transport":   {"internal/storage"},
	"internal/storage/bucket":      {"internal/storage", "internal/storage/transport"},
	"internal/storage/gcs":         {"internal/storage", "internal/storage/transport", "internal/storage/bucket"},
	"internal/storage/azure":       {"internal/storage", "internal/storage/transport", "internal/storage/bucket"},
	"internal/storage/sftp":        {"internal/storage", "internal/durable"},
}

// testHelpers are imported by tests, by other helpers and by programs under test/ only. They may read the environment.
var testHelpers = []string{"internal/pg/pgtest", "internal/eventbus/kafkatest", "internal/storage/storagetest"}

// quarantine says where a dependency may be seen outside tests; the reasons are in docs/dependencies.md.
var quarantine = []struct {
	prefix   string
	packages []string
}{
	{"github.com/jackc/pgx/", []string{"internal/pg", "internal/pg/pgtest"}},
	{"github.com/twmb/franz-go/pkg/kfake", []string{"internal/eventbus/kafkatest"}},
	{"github.com/twmb/franz-go", []string{"internal/eventbus", "internal/eventbus/kafkatest"}},
	{"github.com/spf13/", []string{"internal/cli"}},
	{"github.com/netresearch/go-cron", []string{"internal/schedule"}},
	{"github.com/prometheus/", []string{"internal/web"}},
	{"github.com/klauspost/pgzip", []string{"internal/tarball", "internal/repo"}},
	{"github.com/klauspost/compress", []string{"internal/repo", "internal/zstdfast", "internal/tarball"}},
	{"github.com/pierrec/lz4", []string{"internal/repo"}},
	{"github.com/zeebo/xxh3", []string{"internal/repo"}},
	{"golang.org/x/oauth2", []string{"internal/storage/gcs"}},
	{"github.com/Azure/", []string{"internal/storage/azure"}},
	{"github.com/pkg/sftp", []string{"internal/storage/sftp"}},
	{"golang.org/x/crypto/ssh", []string{"internal/storage/sftp"}},
	{"github.com/hanwen/go-fuse", nil},
	{"filippo.io/age", []string{"internal/kit"}},
	{"github.com/aws/aws-sdk-go-v2/service/rds", nil}, // it costs every start 1.4 MB: see internal/rds/query.go
	{"github.com/aws/", []string{"internal/storage/s3", "internal/rds"}},
	{"github.com/rogpeppe/", nil},
}

// forbidden lists calls (and other uses) by package and name, and the directories they are forbidden in. "*" at the end
// of a name matches any rest. Test files and programs under test/ are exempt unless tests is set.
var forbidden = []struct {
	pkg    string
	names  []string
	in     func(dir string) bool
	tests  bool
	reason string
}{
	{"os", []string{"Exit"}, notIn("cmd/holdfast"), false, "only cmd exits; return an error"},
	{"os", []string{"Stdin", "Stdout", "Stderr", "Args"}, notIn("cmd/holdfast", "internal/cli"), false, "streams and arguments are handed in by cli"},
	{"os", []string{"Getenv", "LookupEnv", "Environ", "ExpandEnv", "Setenv", "Unsetenv", "Clearenv"}, notIn("cmd/holdfast", "internal/cli"), false, "configuration stops at the door: take an Options field"},
	{"log", []string{"*"}, anywhere, false, "no global logger; report through events or slog from Options"},
	{"log/slog", []string{"Default", "SetDefault", "Debug*", "Info*", "Warn*", "Error*"}, anywhere, false, "no global logger; take a *slog.Logger in Options"},
	{"log", []string{"Fatal*", "Panic*"}, anywhere, true, "nothing ends the process behind its owner's back"},
	{"time", []string{"Now", "Since", "Until"}, in("internal/engine", "internal/repo"), false, "time comes through Options"},
	{"math/rand", []string{"*"}, in("internal/engine", "internal/repo"), false, "randomness comes through Options"},
	{"math/rand/v2", []string{"*"}, in("internal/engine", "internal/repo"), false, "randomness comes through Options"},
	{"fmt", []string{"Print", "Printf", "Println"}, notIn("internal/cli"), false, "only cli prints; use Fprint on a writer you were given"},
	{"flag", []string{"*"}, anywhere, false, "the command line is cli's, through cobra"},
}

// exception excuses one finding: rule and what as the finding prints them, in one file. It is an error for an exception
// to match nothing: it has outlived its reason.
type exception struct{ rule, file, what, reason string }

var exceptions = []exception{
	{"call", "internal/engine/options.go", "time.Now", "the default of Options.Now, for callers that do not set a clock"},
	{"import", "internal/schedule/spec.go", "blank import of time/tzdata", "the rules of zones, for hosts and chroots that have none; package time looks for it by itself"},
}

// finding is one broken rule.
type finding struct {
	rule, file string
	line       int
	what, hint string
}

func (f finding) String() string {
	return fmt.Sprintf("%s:%d: %s: %s (%s)", f.file, f.line, f.rule, f.what, f.hint)
}

func anywhere(string) bool { return true }
func in(dirs ...string) func(string) bool {
	return func(d string) bool { return slices.Contains(dirs, d) }
}
func notIn(dirs ...string) func(string) bool {
	return func(d string) bool { return !slices.Contains(dirs, d) }
}

// source is one parsed file.
type source struct {
	name string // slash-separated, from the module's root
	dir  string
	test bool // may do what tests may: a _test.go file, a helper package, a program under test/
	ast  *ast.File
	set  *token.FileSet
	text []byte
}

func parse(name string, text []byte) (*source, error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	dir := path.Dir(name)
	return &source{
		name: name, dir: dir, ast: file, set: set, text: text,
		test: isTest(name) || slices.Contains(testHelpers, dir) || strings.HasPrefix(name, "test/"),
	}, nil
}

func isTest(name string) bool { return strings.HasSuffix(name, "_test.go") }

func (s *source) at(pos token.Pos) int { return s.set.Position(pos).Line }

// check applies every rule that looks at one file alone.
func (s *source) check() []finding {
	var found []finding
	report := func(pos token.Pos, rule, what, hint string) {
		found = append(found, finding{rule, s.name, s.at(pos), what, hint})
	}
	s.checkImports(report)
	s.checkUses(report)
	s.checkSizes(report)
	s.checkComments(report)
	if isTest(s.name) {
		s.checkSkips(report)
	}
	return found
}

type reporter func(pos token.Pos, rule, what, hint string)

func (s *source) checkImports(report reporter) {
	edges, known := allowed[s.dir]
	if !known && strings.HasPrefix(s.dir, "internal/") && !isTest(s.name) {
		report(s.ast.Package, "package", s.dir+" is not in the table", "add it to doc.go and to the table in internal/arch_test.go")
		return
	}
	for _, spec := range s.ast.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			report(spec.Pos(), "import", spec.Path.Value, err.Error())
			continue
		}
		if own, ok := strings.CutPrefix(imported, module); ok {
			s.checkEdge(report, spec.Pos(), own, edges)
			continue
		}
		if spec.Name != nil && spec.Name.Name == "_" && imported != "embed" && !s.test {
			report(spec.Pos(), "import", "blank import of "+imported, "no registration by side effect; wire it in cli")
		}
		if s.test {
			continue
		}
		for _, q := range quarantine {
			if strings.HasPrefix(imported, q.prefix) {
				if !slices.Contains(q.packages, s.dir) {
					report(spec.Pos(), "dependency", imported, fmt.Sprintf("only %v may see it", q.packages))
				}
				break
			}
		}
	}
}

func (s *source) checkEdge(report reporter, pos token.Pos, own string, edges []string) {
	switch {
	case own == "internal/cli" && s.dir != "cmd/holdfast" && !isTest(s.name):
		report(pos, "import", own, "cli is the composition root; only cmd imports it")
	case s.test: // a test may join any packages: the compiler already refuses cycles
	case slices.Contains(testHelpers, own):
		report(pos, "import", own, "a helper for tests; only tests import it")
	case !slices.Contains(edges, own):
		report(pos, "import", own, fmt.Sprintf("%s may import %v", s.dir, edges))
	}
}

// checkUses looks at selectors of imported packages, at init functions, at bare print, and at goroutines in repo.
func (s *source) checkUses(report reporter) {
	imported := map[string]string{} // local name: path
	for _, spec := range s.ast.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // reported by checkImports
		}
		local := path.Base(p)
		if p == "math/rand/v2" {
			local = "rand"
		}
		if spec.Name != nil {
			local = spec.Name.Name
		}
		imported[local] = p
	}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && imported[x.Name] != "" {
				s.checkUse(report, n.Pos(), imported[x.Name], n.Sel.Name)
			}
		case *ast.FuncDecl:
			if n.Recv == nil && n.Name.Name == "init" {
				report(n.Pos(), "init", "func init", "no work before main: start-up is part of archive-push")
			}
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.Ident); ok && (f.Name == "print" || f.Name == "println") {
				report(n.Pos(), "call", f.Name, "a left-over of debugging")
			}
		case *ast.GoStmt:
			if s.dir == "internal/repo" && !s.test {
				report(n.Pos(), "goroutine", "go statement", "repo is bytes only; the engine owns goroutines")
			}
		}
		return true
	})
}

func (s *source) checkUse(report reporter, pos token.Pos, pkg, name string) {
	for _, rule := range forbidden {
		if rule.pkg != pkg || !rule.in(s.dir) || s.test && !rule.tests {
			continue
		}
		for _, pattern := range rule.names {
			prefix, open := strings.CutSuffix(pattern, "*")
			if name == pattern || open && strings.HasPrefix(name, prefix) {
				report(pos, "call", path.Base(pkg)+"."+name, rule.reason)
				return
			}
		}
	}
}

func (s *source) checkSizes(report reporter) {
	limit := maxFile
	if isTest(s.name) {
		limit = maxTestFile
	}
	if lines := strings.Count(string(s.text), "\n"); lines > limit {
		report(s.ast.Package, "size", fmt.Sprintf("file of %d lines", lines), fmt.Sprintf("at most %d", limit))
	}
	if isTest(s.name) {
		return
	}
	for _, decl := range s.ast.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		if lines := s.at(f.End()) - s.at(f.Pos()) + 1; lines > maxFunc {
			report(f.Pos(), "size", fmt.Sprintf("function %s of %d lines", f.Name.Name, lines), fmt.Sprintf("at most %d", maxFunc))
		}
	}
}

var (
	nolint     = regexp.MustCompile(`^//\s*nolint`)
	nolintGood = regexp.MustCompile(`^//nolint:[a-z0-9,-]+ // \S.{9,}`)
	lintIgnore = regexp.MustCompile(`^//lint:(file-)?ignore\b`)
	lintGood   = regexp.MustCompile(`^//lint:(file-)?ignore \S+ \S.{9,}`)
)

func (s *source) checkComments(report reporter) {
	for _, group := range s.ast.Comments {
		for _, c := range group.List {
			if nolint.MatchString(c.Text) && !nolintGood.MatchString(c.Text) ||
				lintIgnore.MatchString(c.Text) && !lintGood.MatchString(c.Text) {
				report(c.Pos(), "comment", "linter silenced", "name the check and give the reason in words")
			}
		}
	}
}

var skipText = regexp.MustCompile(`^needs .+; run make [a-z]+$`)

// checkSkips holds that a test is skipped only in short mode, and says what it needs.
func (s *source) checkSkips(report reporter) {
	excused := map[ast.Node]bool{}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		if cond, ok := n.(*ast.IfStmt); ok && callsShort(cond.Cond) {
			ast.Inspect(cond.Body, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok && skipMessage(call) {
					excused[call] = true
				}
				return true
			})
		}
		return true
	})
	ast.Inspect(s.ast, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok && isSkip(call) && !excused[call] {
			report(call.Pos(), "skip", "a skipped test", `only under testing.Short(), as t.Skip("needs X; run make test")`)
		}
		return true
	})
}

func callsShort(cond ast.Expr) bool {
	short := false
	ast.Inspect(cond, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == "Short" {
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == "testing" {
				short = true
			}
		}
		return true
	})
	return short
}

func isSkip(call *ast.CallExpr) bool {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && slices.Contains([]string{"t", "tb", "b", "f"}, x.Name)
}

func skipMessage(call *ast.CallExpr) bool {
	if !isSkip(call) || len(call.Args) != 1 {
		return false
	}
	lit, ok := call.Args[0].(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return false
	}
	text, err := strconv.Unquote(lit.Value)
	return err == nil && skipText.MatchString(text)
}

// load parses every Go file of the module.
func load(t *testing.T, root string) []*source {
	t.Helper()
	var all []*source
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); name != root && (base == "testdata" || base == "bin" || base == "tmp" || strings.HasPrefix(base, ".")) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		s, err := parse(filepath.ToSlash(rel), text)
		if err != nil {
			return err
		}
		all = append(all, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// packageComments finds packages none of whose files says what the package is.
func packageComments(all []*source) []finding {
	type state struct {
		first string
		ok    bool
	}
	packages := map[string]state{}
	for _, s := range all {
		if isTest(s.name) && s.dir != "internal" {
			continue
		}
		p := packages[s.dir]
		if p.first == "" {
			p.first = s.name
		}
		if s.ast.Doc != nil && len(strings.TrimSpace(s.ast.Doc.Text())) > 20 {
			p.ok = true
		}
		packages[s.dir] = p
	}
	var found []finding
	for dir, p := range packages {
		if !p.ok {
			found = append(found, finding{"comment", p.first, 1, "no package comment in " + dir, "say what the package is for"})
		}
	}
	slices.SortFunc(found, func(a, b finding) int { return strings.Compare(a.file, b.file) })
	return found
}

// TestArchitecture holds the tree to the rules above.
func TestArchitecture(t *testing.T) {
	all := load(t, "..")
	if len(all) == 0 {
		t.Fatal("no Go files found")
	}
	found := packageComments(all)
	for _, s := range all {
		found = append(found, s.check()...)
	}
	used := make([]bool, len(exceptions))
findings:
	for _, f := range found {
		for i, e := range exceptions {
			if e.rule == f.rule && e.file == f.file && e.what == f.what {
				used[i] = true
				continue findings
			}
		}
		t.Error(f)
	}
	for i, e := range exceptions {
		if !used[i] {
			t.Errorf("exception %q in %s excuses nothing any more; remove it", e.what, e.file)
		}
		if len(e.reason) < 10 {
			t.Errorf("exception %q in %s has no reason", e.what, e.file)
		}
	}
}

// TestAllowedEdgesHaveNoCycle keeps the table itself honest: a cycle in it would mean that direction is lost.
func TestAllowedEdgesHaveNoCycle(t *testing.T) {
	const visiting, done = 1, 2
	state := map[string]int{}
	var visit func(p string, trail []string)
	visit = func(p string, trail []string) {
		trail = append(trail, p)
		if state[p] == visiting {
			t.Errorf("cycle: %s", strings.Join(trail, " -> "))
		}
		if state[p] != 0 {
			return
		}
		state[p] = visiting
		for _, next := range allowed[p] {
			if _, ok := allowed[next]; !ok {
				t.Errorf("%s may import %s, which is not in the table", p, next)
			}
			visit(next, trail)
		}
		state[p] = done
	}
	for p := range allowed {
		visit(p, nil)
	}
}

// TestRulesFire shows each rule a file that breaks it, and one that does not.
func TestRulesFire(t *testing.T) {
	long := strings.Repeat("\n", maxFunc)
	cases := []struct{ name, file, text, want string }{
		{"upward import", "internal/repo/x.go", `package repo; import _ "holdfast/internal/engine"`, "import"},
		{"allowed import", "internal/engine/x.go", `package engine; import _ "holdfast/internal/repo"`, ""},
		{"helper outside tests", "internal/engine/x.go", `package engine; import _ "holdfast/internal/pg/pgtest"`, "import"},
		{"helper in a test", "internal/engine/x_test.go", `package engine; import _ "holdfast/internal/pg/pgtest"`, ""},
		{"cli from below", "internal/web/x.go", `package web; import _ "holdfast/internal/cli"`, "import"},
		{"unknown package", "internal/util/x.go", `package util`, "package"},
		{"foreign dependency", "internal/conf/x.go", `package conf; import "github.com/jackc/pgx/v5"; var _ pgx.Tx`, "dependency"},
		{"blank import", "internal/pg/x.go", `package pg; import _ "net/http/pprof"`, "import"},
		{"exit", "internal/pg/x.go", `package pg; import "os"; func f() { os.Exit(1) }`, "call"},
		{"exit in cmd", "cmd/holdfast/x.go", `package main; import "os"; func f() { os.Exit(1) }`, ""},
		{"exit by another name", "internal/pg/x.go", `package pg; import o "os"; var f = o.Exit`, "call"},
		{"environment", "internal/conf/x.go", `package conf; import "os"; var _ = os.Getenv("X")`, "call"},
		{"environment in cli", "internal/cli/x.go", `package cli; import "os"; var _ = os.Getenv("X")`, ""},
		{"environment in a helper", "internal/pg/pgtest/x.go", `package pgtest; import "os"; var _ = os.Getenv("X")`, ""},
		{"clock", "internal/engine/x.go", `package engine; import "time"; var now = time.Now`, "call"},
		{"clock elsewhere", "internal/pg/x.go", `package pg; import "time"; var now = time.Now`, ""},
		{"fatal in a test", "internal/pg/x_test.go", `package pg; import "log"; func f() { log.Fatalf("x") }`, "call"},
		{"print", "internal/action/x.go", `package action; import "fmt"; func f() { fmt.Println() }`, "call"},
		{"goroutine in repo", "internal/repo/x.go", `package repo; func f() { go f() }`, "goroutine"},
		{"init", "internal/pg/x.go", `package pg; func init() {}`, "init"},
		{"long function", "internal/pg/x.go", "package pg\nfunc f() {" + long + "}\n", "size"},
		{"long function in a test", "internal/pg/x_test.go", "package pg\nfunc f() {" + long + "}\n", ""},
		{"long file", "internal/pg/x.go", "package pg\n" + strings.Repeat("\n", maxFile), "size"},
		{"silenced linter", "internal/pg/x.go", "package pg\n//nolint:errcheck\n", "comment"},
		{"silenced with reason", "internal/pg/x.go", "package pg\n//nolint:errcheck // close of a file only read\n", ""},
		{"skip", "internal/pg/x_test.go", `package pg; func f() { t.Skip("later") }`, "skip"},
		{"skip in short mode", "internal/pg/x_test.go", `package pg; func f() { if testing.Short() { t.Skip("needs PostgreSQL; run make test") } }`, ""},
		{"skip in short mode without a word", "internal/pg/x_test.go", `package pg; func f() { if testing.Short() { t.SkipNow() } }`, "skip"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s, err := parse(c.file, []byte(c.text))
			if err != nil {
				t.Fatal(err)
			}
			found := s.check()
			switch {
			case c.want == "" && len(found) > 0:
				t.Errorf("unexpected: %v", found)
			case c.want != "" && (len(found) != 1 || found[0].rule != c.want):
				t.Errorf("want one finding of rule %q, got %v", c.want, found)
			}
		})
	}
	s, err := parse("internal/pg/x.go", []byte("package pg\n"))
	if err != nil {
		t.Fatal(err)
	}
	if found := packageComments([]*source{s}); len(found) != 1 {
		t.Errorf("missing package comment not found: %v", found)
	}
}
