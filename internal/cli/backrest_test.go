package cli

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/backrest"
	"holdfast/internal/engine"
)

// backrestSays runs one command line under the name pgbackrest, with a lock path and no log file of its own.
func backrestSays(t *testing.T, environ []string, words ...string) said {
	t.Helper()
	env, out, errs := bareEnv(strings.NewReader(""), append([]string{"/opt/bin/pgbackrest"}, words...)...)
	env.Environ = func() []string {
		return append(slices.Clone(environ), "PGBACKREST_LOCK_PATH="+t.TempDir(), "PGBACKREST_LOG_LEVEL_FILE=off") // the first of two counts
	}
	code := Main(t.Context(), env)
	return said{out.String(), errs.String(), code}
}

// TestEveryOptionHasItsPlace: an option of pgBackRest's table is used, or cannot change anything, or is refused by name.
// Used is what a file of this package asks the configuration for.
func TestEveryOptionHasItsPlace(t *testing.T) {
	used := map[string]bool{"config": true, "config-path": true, "config-include-path": true} // package backrest's own
	files, err := filepath.Glob("backrest*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(files, "open_repo.go") {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 2 {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if lit, isText := call.Args[0].(*ast.BasicLit); ok && isText && slices.Contains([]string{"String", "Bool", "Int", "Duration", "List", "Hash"}, sel.Sel.Name) {
				used[strings.Trim(lit.Value, `"`)] = true
			}
			return true
		})
	}
	neutral := strings.Fields(neutralOptions)
	for _, o := range backrest.Options() {
		var places []string
		if used[o.Name] {
			places = append(places, "used")
		}
		if slices.Contains(neutral, o.Name) {
			places = append(places, "neutral")
		}
		for _, r := range refusedOptions {
			prefix, family := strings.CutSuffix(r.name, "*")
			if r.name == o.Name || family && strings.HasPrefix(o.Name, prefix) {
				places = append(places, "refused")
			}
		}
		if len(places) != 1 {
			t.Errorf("%s is %v: it must be exactly one of used, neutral and refused", o.Name, places)
		}
		delete(used, o.Name)
	}
	page, err := os.ReadFile("../../docs/coming-from-pgbackrest.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range neutral {
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("docs/coming-from-pgbackrest.md does not say that %s changes nothing", name)
		}
	}
	for _, r := range refusedOptions {
		if !strings.Contains(string(page), "| `"+r.name+"`") && !strings.Contains(r.instead, "internal to pgbackrest") || !strings.Contains(string(page)+"it is internal to pgbackrest; remove the option", r.instead) {
			t.Errorf("docs/coming-from-pgbackrest.md does not say that %s is refused: %s", r.name, r.instead)
		}
	}
	for name := range used {
		t.Errorf("%s is asked for and not in the table", name)
	}
}

// TestBackrestRefuses: what we do not do is named, whoever set it, and comes before what is missing.
func TestBackrestRefuses(t *testing.T) {
	for _, c := range []struct {
		line, env string
		want      []string
	}{
		{"--stanza=s --pg1-path=/p --pg1-host=db backup", "", []string{"pg1-host=db", "run it there"}},
		{"--stanza=s --pg1-path=/p backup", "PGBACKREST_REPO1_HOST=store", []string{"repo1-host=store", "mount the repository"}},
		{"--stanza=s --pg1-path=/p backup", "PGBACKREST_REPO1_TYPE=azure PGBACKREST_REPO1_AZURE_KEY=hidden PGBACKREST_REPO1_AZURE_CONTAINER=b", []string{"repo1-azure-container=b"}},
		{"--stanza=s --pg1-path=/p backup", "PGBACKREST_REPO1_TYPE=azure PGBACKREST_REPO1_AZURE_KEY=hidden", []string{"option 'repo1-azure-key' is"}},
		{"--stanza=s --repo1-type=sftp info", "", []string{"repo1-type=sftp", "repo1-type=posix"}},
		{"--stanza=s --repo1-type=cifs info", "", []string{"repo1-type=cifs"}},
		{"--stanza=s --pg1-path=/p check --no-archive-check", "", []string{"archive-check=n"}},
		{"--stanza=s --pg1-path=/p backup --pg-version-force=14", "", []string{"pg-version-force=14"}},
		{"--stanza=s --pg1-path=/p backup --repo1-bundle --repo1-block --repo1-block-size-map=16KiB=1", "", []string{"repo1-block-size-map"}},
		{"--tls-server-auth=a=b server", "", []string{"tls-server-auth=a=b"}},
		{"server-ping", "", []string{"command 'server-ping' is not done"}},
	} {
		got := backrestSays(t, strings.Fields(c.env), append([]string{"--no-config"}, strings.Fields(c.line)...)...)
		got.has(t, codeOption, append(c.want, "ERROR: [031]: ", "HINT: ")...)
		if strings.Contains(got.out+got.errs, "hidden") {
			t.Errorf("%s %s: shows a secret\n%s", c.line, c.env, got.errs)
		}
	}
	// A repository that the command leaves alone is nobody's business.
	if got := backrestSays(t, []string{"PGBACKREST_REPO2_HOST=store"}, "--no-config", "--stanza=s", "--repo=1", "--repo1-path="+t.TempDir(), "info"); got.code != 0 {
		t.Errorf("%+v", got)
	}
}

// TestNeutralOptionsAreTaken gives every option that changes nothing to info or backup.
func TestNeutralOptionsAreTaken(t *testing.T) {
	for line, code := range map[string]int{
		"--buffer-size=64KiB --protocol-timeout=30m --compress-level-network=3 --log-subprocess --sck-keep-alive --tcp-keep-alive-count=3 --priority=5 --cmd-ssh=/bin/ssh --info": 0,
		"--db-timeout=9 --neutral-umask --stop-auto --job-retry=1 --allow-root --pg1-path=/nonexistent --no-online --backup":                                                      codeMissing,
	} {
		words := strings.Fields(line)
		words[len(words)-1] = strings.TrimPrefix(words[len(words)-1], "--")
		backrestSays(t, nil, append([]string{"--no-config", "--stanza=s", "--repo1-path=" + t.TempDir()}, words...)...).has(t, code)
	}
}

// TestBackrestLog: which message goes where, and what it looks like.
func TestBackrestLog(t *testing.T) {
	dir := t.TempDir()
	repo := "--repo1-path=" + filepath.Join(dir, "repo")
	base := []string{"--no-config", "--stanza=s", repo}
	info := backrestSays(t, nil, append(base, "info")...)
	if info.out != "stanza: s\n    status: error (missing stanza path)\n" || info.errs != "" {
		t.Errorf("%+v", info)
	}
	backrestSays(t, nil, append(base, "--log-level-console=debug", "info")...).has(t, 0, ".000 P00  DEBUG: info command begin "+Version+": --no-config --lock-path=", "P00  DEBUG: info command end: completed successfully (0ms)")
	log := filepath.Join(dir, "s-expire.log")
	failed := backrestSays(t, []string{"PGBACKREST_LOG_LEVEL_FILE=info", "PGBACKREST_LOG_PATH=" + dir, "PGBACKREST_LOG_LEVEL_CONSOLE=info"}, append(base, "--repo1-retention-full=1", "expire")...)
	failed.has(t, codeMissing, "P00   INFO: expire command begin", "P00   INFO: expire command end: aborted with exception [055]\n")
	if !strings.HasPrefix(failed.errs, "ERROR: [055]: stanza s: ") || strings.Contains(failed.out, "ERROR") || !strings.Contains(failed.errs, "pgbackrest stanza-create") {
		t.Errorf("%+v", failed)
	}
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if text := string(b); !strings.HasPrefix(text, "-------------------PROCESS START-------------------\n") || !strings.Contains(text, " P00  ERROR: [055]: stanza s: ") || strings.Count(text, "\n") != 4 {
		t.Errorf("log file:\n%s", text)
	}
	plain := backrestSays(t, nil, append(base, "--no-log-timestamp", "--log-level-console=warn", "--log-level-stderr=off", "expire")...)
	if !strings.HasPrefix(plain.out, "P00   WARN: option 'repo1-retention-full' is not set for 'repo1-retention-full-type=count', the repository may run out of space\n"+strings.Repeat(" ", 12)+"HINT: ") || plain.errs != "" {
		t.Errorf("%+v", plain)
	}
	backrestSays(t, []string{"PGBACKREST_LOG_LEVEL_FILE=info", "PGBACKREST_LOG_PATH=" + filepath.Join(dir, "none")}, append(base, "expire")...).has(t, codeMissing, "WARN: unable to open log file", "NOTE: process will continue without log file.")
}

// TestBackrestCodes: errors of the engine as the codes of the original, also when they are wrapped and joined.
func TestBackrestCodes(t *testing.T) {
	for _, c := range backrestCodes {
		if got := backrestCode(fmt.Errorf("stanza s: %w", errors.Join(errors.New("other"), c.err))); got != c.code {
			t.Errorf("%v: %d, want %d", c.err, got, c.code)
		}
	}
	for want, err := range map[int]error{0: nil, codeUnknown: errors.New("x"), codeValue: &usageError{"x"}, codeRepo: &findingsError{2}, codeConnect: &codeError{codeConnect, engine.ErrNoBackup}, 31: &backrest.Error{Code: 31}} {
		if got := backrestCode(err); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
}

// TestEverySentinelHasACode: what engine, repo and pg offer to errors.Is leads to a code of the original that says what it is.
func TestEverySentinelHasACode(t *testing.T) {
	for name, c := range sentinels {
		pkg, _, _ := strings.Cut(name, ".")
		left := name == "engine.SpoolError" // carries a code of its own
		if slices.Contains([]string{"engine", "repo", "pg"}, pkg) && !left && backrestCode(c.err) == codeUnknown {
			t.Errorf("%s has no code in backrest_exit.go", name)
		}
	}
}

// TestBackrestHelp: what a person sees who knows the original.
func TestBackrestHelp(t *testing.T) {
	backrestSays(t, nil, "version").has(t, 0, "Holdfast "+Version)
	backrestSays(t, nil).has(t, 0, "usage: pgbackrest", "archive-push", "stanza-upgrade")
	backrestSays(t, nil, "help", "backup").has(t, 0, "--repo-bundle ", "--type  ", "one of full, diff, incr; default incr", "--buffer-size  ", "changes nothing here", "--pg-host ", "not done by Holdfast")
	backrestSays(t, nil, "help", "backup", "process-max").has(t, 0, "from 1 to 999; default 1")
	backrestSays(t, nil, "help", "nonsense").has(t, backrest.CodeCommandInvalid, "ERROR: [048]: invalid command 'nonsense'")
}

// TestArchiveUsage: what PostgreSQL gets when its settings are wrong.
func TestArchiveUsage(t *testing.T) {
	dir := t.TempDir()
	base := []string{"--no-config", "--stanza=s", "--repo1-path=" + dir, "--pg1-path=" + dir}
	for _, c := range []struct {
		line string
		code int
		want string
	}{
		{"archive-push", codeParam, "WAL segment to push required"},
		{"archive-get", codeParam, "WAL segment to get required"},
		{"archive-get a", codeParam, "path to copy WAL segment required"},
		{"archive-get a b c", codeParam, "extra parameters found"},
		{"archive-get 000000010000000000000001 /x", codeMissing, "pgbackrest stanza-create"},
		{"archive-push pg_wal/000000010000000000000001", codeMissing, "pgbackrest stanza-create"},
		{"repo-get", codeParam, "source file required"},
		{"repo-get a b", backrest.CodeParamInvalid, "only one file"},
		{"repo-ls /elsewhere", codeValue, "not in base path"},
	} {
		words := base
		if strings.HasPrefix(c.line, "repo-") {
			words = base[:3]
		}
		backrestSays(t, nil, append(slices.Clone(words), strings.Fields(c.line)...)...).has(t, c.code, c.want)
	}
	backrestSays(t, nil, "--no-config", "--stanza=s", "--repo1-path="+dir, "archive-push", "pg_wal/x").has(t, codeRequired, "'pg1-path' must be specified when relative wal paths are used")
}
