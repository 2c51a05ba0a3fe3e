package conf

import (
	"bytes"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite generated files")

// projectRoot walks up to the directory of go.mod.
func projectRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
		dir = filepath.Dir(dir)
	}
}

// constants returns the Key constants of keys.go: Go name → type and parameter name.
func constants(t *testing.T) map[string][2]string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "keys.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][2]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		name, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		found[spec.Names[0].Name] = [2]string{spec.Type.(*ast.Ident).Name, name}
		return true
	})
	return found
}

func TestTableIsSortedAndConsistent(t *testing.T) {
	if !slices.IsSortedFunc(table, func(a, b Key) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("not sorted by name")
	}
	name := regexp.MustCompile(`^[a-z0-9_]+(\.[a-z0-9_]+)+$`)
	for i := range table {
		k := &table[i]
		if i > 0 && table[i-1].Name == k.Name {
			t.Errorf("%s stands there twice", k.Name)
		}
		if !name.MatchString(k.Name) || Lookup(k.Name) != k {
			t.Errorf("%s: not a name, or not found by Lookup", k.Name)
		}
		if k.Help == "" || !strings.HasSuffix(k.Help, ".") || k.Since == "" {
			t.Errorf("%s: needs a sentence of help and a version", k.Name)
		}
		if got, err := k.Parse(k.Default); k.Default != "" && (err != nil || got != k.Default) {
			t.Errorf("%s: default %q parses to %q, %v", k.Name, k.Default, got, err)
		} else if k.Default == "" && err != nil {
			t.Errorf("%s: the empty default is not allowed: %v", k.Name, err)
		}
		if (k.Type == Int || k.Type == Seconds) != (k.Unit != "") || (k.Type == Int || k.Type == Seconds) && k.Min >= k.Max {
			t.Errorf("%s: numbers, and only they, have a unit and a range", k.Name)
		}
		if k.Type == Enum && len(k.Allowed) == 0 || k.Secret() && k.Default != "" {
			t.Errorf("%s: an enumeration without elements, or a secret with a default", k.Name)
		}
	}
}

func TestConstantsMatchTable(t *testing.T) {
	types := map[string][]Type{
		"BoolKey": {Bool}, "IntKey": {Int}, "SecondsKey": {Seconds}, "StringKey": {String, Enum, URL, Version, Cron, Zone, Listen},
		"PathKey": {Path}, "ListKey": {List}, "SecretKey": {SecretT}, "ClustersKey": {Clusters},
	}
	seen := map[string]bool{}
	for goName, c := range constants(t) {
		k := Lookup(c[1])
		if k == nil {
			t.Errorf("%s = %q is not in the table", goName, c[1])
			continue
		}
		if !slices.Contains(types[c[0]], k.Type) {
			t.Errorf("%s is a %s, but %s is a %s", goName, c[0], k.Name, k.Type)
		}
		seen[c[1]] = true
	}
	for i := range table {
		if !seen[table[i].Name] {
			t.Errorf("%s has no constant", table[i].Name)
		}
	}
}

// specified are the parameters that the specification names.
var specified = []string{
	"alation.feature_flags.enable_pgbackrest", "alation.backup_v2.pgbackup_compression", "pgsql.pgbackrest.repo_dir_name",
	"pgsql.pgbackrest.redundancy.enabled", "pgsql.pgbackrest.redundancy.type", "pgsql.pgbackrest.redundancy.s3.endpoint",
	"pgsql.pgbackrest.redundancy.s3.bucket", "pgsql.pgbackrest.redundancy.s3.region", "pgsql.pgbackrest.redundancy.s3.key",
	"pgsql.pgbackrest.redundancy.s3.secret", "snapshot.enabled", "alation.backup.data_dump_dir", "alation.backup.data_temp_dir",
	"alation.backup.post_script.path", "alation.backup.scheduled_minute", "alation.backup.scheduled_hour",
	"alation.backup.scheduled_day", "alation.backup.chef_timeout", "alation.backup.restore_file", "alation.backup.eb_restore_file",
	"alation.install.base_url",
}

func TestTableHasWhatIsSpecified(t *testing.T) {
	for _, name := range specified {
		if Lookup(name) == nil {
			t.Errorf("%s is missing", name)
		}
	}
	// Beside the project lies, where it is developed, the specification itself; hold the list above to it.
	spec, err := os.ReadFile(filepath.Join(projectRoot(t), "../shared/mission/system.md"))
	if os.IsNotExist(err) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(spec), "## 2. Parameters")
	section, _, _ = strings.Cut(section, "\n## 3.")
	rows := 0
	for line := range strings.Lines(section) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		rows++
		cell := strings.Split(line, "|")[1]
		for i, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cell, -1) {
			ok := slices.ContainsFunc(specified, func(name string) bool { return name == m[1] || i > 0 && strings.HasSuffix(name, m[1]) })
			if !ok {
				t.Errorf("the specification names %s", m[1])
			}
		}
	}
	if rows < 15 {
		t.Errorf("found only %d rows in the specification's table", rows)
	}
	_, ours, _ := strings.Cut(section, "Ours, same store")
	for _, m := range regexp.MustCompile("`([a-z0-9_.]*\\.[a-z0-9_]+)`").FindAllStringSubmatch(ours, -1) {
		if !slices.ContainsFunc(table, func(k Key) bool { return strings.HasSuffix(k.Name, m[1]) }) {
			t.Errorf("the specification names %s", m[1])
		}
	}
}

func TestDocs(t *testing.T) {
	path := filepath.Join(projectRoot(t), "docs/parameters.md")
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, Docs(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, Docs()) {
		t.Error("docs/parameters.md is stale: run: go test ./internal/conf -run TestDocs -update")
	}
	for i := range table {
		if !bytes.Contains(have, []byte("\n## "+table[i].Name+"\n")) {
			t.Errorf("%s is not documented", table[i].Name)
		}
	}
}

// usedLater are parameters whose use is still to be built, with the reason. An entry whose parameter is used must go.
var usedLater = map[string]string{
	"KeyBlock":   "block incremental backups: the next issue",
	"KeyBaseURL": "stored and reset by the operator; the restore of a later issue reports it",
}

// TestKeysAreUsed holds the table free of parameters that do nothing. It begins to bind when internal/cli/wire.go, which
// turns parameters into options, exists.
func TestKeysAreUsed(t *testing.T) {
	root := projectRoot(t)
	known := constants(t)
	for goName := range usedLater {
		if _, ok := known[goName]; !ok {
			t.Errorf("usedLater has %s, which is not a constant", goName)
		}
	}
	used := map[string]bool{}
	word := regexp.MustCompile(`\bconf\.(Key[A-Za-z0-9]+)`)
	err := filepath.WalkDir(filepath.Join(root, "internal"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range word.FindAllSubmatch(text, -1) {
			used[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_, wired := os.Stat(filepath.Join(root, "internal/cli/wire.go"))
	for goName, c := range known {
		reason := usedLater[goName]
		if used[goName] && reason != "" {
			t.Errorf("%s (%s) is used now: take it out of usedLater", goName, c[1])
		}
		if !used[goName] && reason == "" && wired == nil {
			t.Errorf("%s (%s) is used nowhere: use it, or say in usedLater why not yet", goName, c[1])
		}
	}
}

func TestNearest(t *testing.T) {
	for typed, want := range map[string]string{
		"snapshot.enable":                        "snapshot.enabled",
		"alation.backup.shceduled_hour":          "alation.backup.scheduled_hour",
		"chef_timeout":                           "alation.backup.chef_timeout",
		"pgsql.pgbackrest.redundancy.s3.buckett": "pgsql.pgbackrest.redundancy.s3.bucket",
		"Alation.Feature_Flags.Enable_Pgbackrst": "alation.feature_flags.enable_pgbackrest",
		"zzz":                                    "",
		"":                                       "",
		strings.Repeat("x", 100000):              "",
	} {
		if got := Nearest(typed); got != want {
			t.Errorf("Nearest(%.40q) = %q, want %q", typed, got, want)
		}
	}
}
