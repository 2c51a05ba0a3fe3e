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
	"time"

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
	for _, name := range append(files, "open_repo.go", "open_store.go") {
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
		{"--stanza=s --pg1-path=/p --pg1-host=db backup", "", []string{"pg1-host=db", "needs the files of a data directory", "without pg1-host"}},
		{"--stanza=s --pg1-path=/p --pg1-host=db --pg2-path=/q --pg2-host=other archive-push x", "", []string{"pg1-host=db", "archive-push needs the files"}},
		{"--stanza=s --pg1-path=/p --pg1-host=db --pg1-host-user=u --pg2-path=/q backup", "", []string{"pg1-host-user=u", "at pg1-port as pg1-user"}},
		{"--stanza=s --pg1-path=/p backup", "PGBACKREST_REPO1_HOST=store", []string{"repo1-host=store", "mount the repository"}},
		{"--stanza=s --pg1-path=/p backup", "PGBACKREST_REPO1_HOST_USER=u PGBACKREST_REPO1_HOST=store PGBACKREST_REPO1_CIPHER_PASS=hidden", []string{"repo1-host=store"}},
		{"--tls-server-auth=a=b server", "", []string{"command 'server' is not done"}},
		{"server-ping", "", []string{"command 'server-ping' is not done"}},
		{"repo-rm --recurse backup", "", []string{"command 'repo-rm' is not done", "expire --set", "stanza-delete"}},
		{"repo-put x", "", []string{"command 'repo-put' is not done"}},
		{"--stanza=s --pg1-path=/p --report check", "", []string{"report=y", "internal"}},
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
		"--buffer-size=64KiB --protocol-timeout=30m --compress-level-network=3 --log-subprocess --sck-keep-alive --tcp-keep-alive-count=3 --cmd-ssh=/bin/ssh --info": 0,
		"--stop-auto --job-retry=1 --allow-root --pg1-path=/nonexistent --no-online --backup":                                                                        codeMissing,
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
	failed.has(t, codeCommand, "P00   INFO: expire command begin", "P00   INFO: expire command end: aborted with exception [104]\n")
	if !strings.HasPrefix(failed.errs, "ERROR: [055]: repo1: stanza s: ") || strings.Contains(failed.out, "ERROR") || !strings.Contains(failed.errs, "pgbackrest stanza-create") {
		t.Errorf("%+v", failed)
	}
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if text := string(b); !strings.HasPrefix(text, "-------------------PROCESS START-------------------\n") || !strings.Contains(text, " P00  ERROR: [055]: repo1: stanza s: ") || strings.Count(text, "\n") != 5 {
		t.Errorf("log file:\n%s", text)
	}
	plain := backrestSays(t, nil, append(base, "--no-log-timestamp", "--log-level-console=warn", "--log-level-stderr=off", "expire")...)
	if !strings.HasPrefix(plain.out, "P00   WARN: option 'repo1-retention-full' is not set for 'repo1-retention-full-type=count', the repository may run out of space\n"+strings.Repeat(" ", 12)+"HINT: ") || plain.errs != "" {
		t.Errorf("%+v", plain)
	}
	backrestSays(t, []string{"PGBACKREST_LOG_LEVEL_FILE=info", "PGBACKREST_LOG_PATH=" + filepath.Join(dir, "none")}, append(base, "expire")...).has(t, codeCommand, "WARN: unable to open log file", "NOTE: process will continue without log file.")
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
	backrestSays(t, nil).has(t, 0, "    pgbackrest [options] [command]", "archive-push", "stanza-upgrade")
	backrestSays(t, nil, "help", "backup").has(t, 0, "--repo-bundle ", "--type  ", "[one of full, diff, incr; default=incr]", "--buffer-size  ", "changes nothing here", "--pg-host ", "Not done by Holdfast", "repo-host-user")
	backrestSays(t, nil, "help", "backup", "process-max").has(t, 0, "values: from 1 to 999\ndefault: 1\n")
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
		{"archive-get a b c", backrest.CodeParamInvalid, "extra parameters found"},
		{"archive-get 000000010000000000000001 /x", codeRepo, "pgbackrest stanza-create"},
		{"archive-push /pg_wal/000000010000000000000001", codeRepo, "pgbackrest stanza-create"},
		{"archive-push /pg_wal/nonsense", backrest.CodeParamInvalid, "not the name of a WAL segment"},
		{"repo-get", codeParam, "source file required"},
		{"repo-get a b", codeParam, "source file required"},
		{"repo-ls /elsewhere", backrest.CodeParamInvalid, "not in base path"},
	} {
		words := base
		if strings.HasPrefix(c.line, "repo-") {
			words = base[:3]
		}
		backrestSays(t, nil, append(slices.Clone(words), strings.Fields(c.line)...)...).has(t, c.code, c.want)
	}
	backrestSays(t, nil, "--no-config", "--stanza=s", "--repo1-path="+dir, "archive-push", "pg_wal/x").has(t, codeRequired, "'pg1-path' must be specified when relative wal paths are used")
}

// TestBackrestHelpTellsValues: what one asks the help of an option for is what holds, and where it comes from does not matter.
func TestBackrestHelpTellsValues(t *testing.T) {
	backrestSays(t, []string{"PGBACKREST_LOG_PATH=/path/set/by/env"}, "help", "backup", "log-path").has(t, 0, "current: /path/set/by/env\ndefault: /var/log/pgbackrest\n")
	backrestSays(t, nil, "--process-max=3", "help", "backup", "process-max").has(t, 0, "current: 3\ndefault: 1\n")
	backrestSays(t, nil, "--no-config", "--repo2-path=/two", "help", "backup", "repo1-path").has(t, 0, "'repo-path' option help", "current: repo2-path: /two")
	secret := backrestSays(t, []string{"PGBACKREST_REPO1_CIPHER_TYPE=aes-256-cbc", "PGBACKREST_REPO1_CIPHER_PASS=hunter2"}, "--no-config", "help", "backup", "repo-cipher-pass")
	if secret.has(t, 0, "<redacted>"); strings.Contains(secret.out, "hunter2") {
		t.Error("the passphrase is shown")
	}
	backrestSays(t, nil, "help", "backup", "repo-host").has(t, 0, "Not done by Holdfast: run the command on the host")
	backrestSays(t, nil, "help", "repo-rm").has(t, 0, "Not done by Holdfast: a repository is not edited by hand")
	backrestSays(t, nil, "help", "backup", "nonsense").has(t, codeOption, "ERROR: [031]: option 'nonsense' is not valid for command 'backup'")
	backrestSays(t, nil, "help", "backup", "delta", "x").has(t, backrest.CodeParamInvalid, "only one option allowed")
	backrestSays(t, []string{"PGBACKREST_PROCESS_MAX=many"}, "help", "backup").has(t, 0, "--process-max") // whatever is wrong
	if got := backrestSays(t, nil, "version", "--output=num"); got.code != 0 || got.out != versionNumber(Version) || versionNumber("2.59.1") != "2059001" || versionNumber("3") != "3000000" {
		t.Errorf("%+v, %s", got, versionNumber("2.59.1"))
	}
	backrestSays(t, nil, "version", "--output=json").has(t, codeValue, "'json' is not allowed for 'output' option")
	for _, name := range backrest.Commands() {
		if backrest.CommandText(name) == "" {
			t.Errorf("no help for command %s", name)
		}
	}
	for _, o := range backrest.Options() {
		if o.Text() == "" {
			t.Errorf("no help for option %s", o.Name)
		}
	}
}

// TestBackrestSettles: options that are right by themselves and wrong together.
func TestBackrestSettles(t *testing.T) {
	two := "--repo1-path=/one --repo2-path=/two "
	for _, c := range []struct {
		line string
		code int
		want string
	}{
		{"--stanza=s --pg1-path=/p " + two + "stanza-delete", codeRequired, "stanza-delete command requires option: repo"},
		{"--stanza=s --pg1-path=/p --repo2-path=/two stanza-delete", codeRequired, "requires option: repo"},
		{"--stanza=s " + two + "--repo3-path=/one info", codeValue, "local repo1 and repo3 paths are both '/one' but must be different"},
		{"--stanza=s --pg1-path=/p --db-timeout=10 --protocol-timeout=5 backup", codeValue, "'5' is not valid for 'protocol-timeout' option"},
		{"--stanza=../s info", codeValue, "stanza name"},
		{"--stanza=../s stop", codeValue, "stanza name"},
		{"--stanza=s --pg1-path=/p --pg-version-force=12 backup", codeValue, "PostgreSQL 12 is not supported (supported: PostgreSQL 13 to 18)"},
		{"--stanza=s --pg1-path=/p --pg-version-force=x backup", codeValue, "'x' is not valid for 'pg-version-force' option"},
		{"--stanza=s --repo1-retention-full=1 --repo1-retention-archive-type=incr expire", codeCommand, "WARN: WAL segments will not be expired: option 'repo1-retention-archive-type=incr' but option 'repo1-retention-archive' is not set"},
		{"--stanza=s --repo1-retention-full=1 --repo1-retention-archive-type=diff expire", codeCommand, "neither option 'repo1-retention-archive' nor option 'repo1-retention-diff' is set"},
		{"--stanza=s --repo1-retention-full=1 --repo1-retention-archive-type=diff --repo1-retention-archive=1 expire", codeCommand, "option 'repo1-retention-diff' is not set for"},
		{"--stanza=s --pg1-path=/nx --no-compress --compress-type=lz4 --no-online backup", codeMissing, "WARN: 'compress' and 'compress-type' options should not both be set"},
		{"--stanza=s --pg1-path=/nx --no-online --force stanza-create", codeMissing, "WARN: option --force is no longer supported"},
		{"--stanza=s --dry-run --set=bogus --repo1-retention-full=1 expire", codeValue, "ERROR: [032]: [DRY-RUN] 'bogus' is not a valid backup label format"},
		{"--stanza=s --repo-target-time=2026-11-22 info", codeOption, "option 'repo-target-time' not valid without option 'repo'"},
		{"check", 0, "WARN: no stanzas found to check"},
	} {
		backrestSays(t, nil, append([]string{"--no-config"}, strings.Fields(c.line)...)...).has(t, c.code, c.want)
	}
}

// TestSamePathOfAnotherKind: a bucket and a directory may have the same path, and two buckets; two directories may not.
func TestSamePathOfAnotherKind(t *testing.T) {
	bucket := func(key, name string) []string {
		return []string{"PGBACKREST_REPO" + key + "_TYPE=s3", "PGBACKREST_REPO" + key + "_S3_BUCKET=" + name, "PGBACKREST_REPO" + key + "_S3_ENDPOINT=s3.invalid", "PGBACKREST_REPO" + key + "_S3_REGION=r",
			"PGBACKREST_REPO" + key + "_S3_KEY=k", "PGBACKREST_REPO" + key + "_S3_KEY_SECRET=s"}
	}
	dir := t.TempDir()
	line := []string{"--no-config", "--stanza=s", "--repo1-path=" + dir, "--repo2-path=" + dir, "--repo3-path=" + dir, "--repo=1", "info"}
	backrestSays(t, append(bucket("2", "b"), bucket("3", "c")...), line...).has(t, 0, "missing stanza path")
	backrestSays(t, bucket("2", "b"), line...).has(t, codeValue, "local repo1 and repo3 paths are both '"+dir+"' but must be different")
}

// TestBlockSizeOptions: what the maps of block incremental take, and what they refuse.
func TestBlockSizeOptions(t *testing.T) {
	sizes := func(words ...string) (engine.BlockSizes, error) {
		env, _, _ := bareEnv(strings.NewReader(""), append([]string{"pgbackrest", "--no-config", "--stanza=s", "--pg1-path=/p", "--repo1-bundle", "--repo1-block", "backup"}, words...)...)
		r := &backrestRun{env: env, log: newBackrestLog(env)}
		if err := r.parse(); err != nil {
			return engine.BlockSizes{}, err
		}
		return r.blockSizes(1)
	}
	got, err := sizes("--repo1-block-size-map=1MiB=64KiB", "--repo1-block-size-map=16KiB=8KiB", "--repo1-block-age-map=7=2", "--repo1-block-checksum-size-map=32KiB=9", "--repo1-block-size-super=64KiB", "--repo1-block-size-super-full=2MiB")
	slices.SortFunc(got.Files, func(a, b engine.BlockStep) int { return int(a.From - b.From) })
	if err != nil || fmt.Sprint(got) != "{[{16384 8192} {1048576 65536}] [{604800 2}] [{32768 9}] 2097152 65536}" {
		t.Error(got, err)
	}
	if got, err := sizes(); err != nil || fmt.Sprint(got) != "{[] [] [] 1048576 262144}" {
		t.Error(got, err)
	}
	for _, c := range []struct{ word, want string }{
		{"--repo1-block-size-map=16KiB=9000", "multiple of 8192"},
		{"--repo1-block-size-map=16KiB=x", "'x' is not valid for 'repo1-block-size-map' option"},
		{"--repo1-block-size-map=big=8KiB", "'big' is not valid for 'repo1-block-size-map' option"},
		{"--repo1-block-size-map=16KiB", "key/value '16KiB' not valid for 'repo1-block-size-map' option"},
		{"--repo1-block-age-map=7=-1", "factor -1"},
		{"--repo1-block-checksum-size-map=8KiB=5", "allowed are 6 to 16"},
		{"--repo1-block-size-super=16KiB", "'16KiB' is out of range for 'repo1-block-size-super' option"},
	} {
		if _, err := sizes(c.word); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.word, err, c.want)
		}
	}
}

// TestProcessOptions: priority and neutral-umask reach the process, and only when they were set.
func TestProcessOptions(t *testing.T) {
	for _, c := range []struct {
		line string
		want string
	}{
		{"info", "umask 0"}, {"--priority=7 info", "umask 0 nice 7"}, {"--no-neutral-umask info", "umask 0 umask 27"},
	} {
		env, _, errs := bareEnv(strings.NewReader(""), append([]string{"pgbackrest", "--no-config", "--repo1-path=" + t.TempDir()}, strings.Fields(c.line)...)...)
		var calls []string
		env.Nice = func(n int) error { calls = append(calls, fmt.Sprintf("nice %d", n)); return nil }
		env.Umask = func(m int) int { calls = append(calls, fmt.Sprintf("umask %o", m)); return 0o27 }
		if code := Main(t.Context(), env); code != 0 || strings.Join(calls, " ") != c.want {
			t.Errorf("%s: %d %v %s, want %s", c.line, code, calls, errs, c.want)
		}
	}
	env, _, _ := bareEnv(strings.NewReader(""), "pgbackrest", "--no-config", "--priority=-5", "info")
	env.Nice = func(int) error { return errors.New("operation not permitted") }
	if code := Main(t.Context(), env); code != codeKernel {
		t.Errorf("a priority that can't be set: %d", code)
	}
}

// TestQueryTimeout: db-timeout reaches the session, and stays below a protocol-timeout that was set alone.
func TestQueryTimeout(t *testing.T) {
	for line, want := range map[string]time.Duration{"": 30 * time.Minute, "--db-timeout=90": 90 * time.Second, "--protocol-timeout=60": 30 * time.Second, "--protocol-timeout=20": 10 * time.Second, "--protocol-timeout=1h": 30 * time.Minute} {
		env, _, _ := bareEnv(strings.NewReader(""), append([]string{"pgbackrest", "--no-config", "--stanza=s", "--pg1-path=/p", "check"}, strings.Fields(line)...)...)
		r := &backrestRun{env: env, log: newBackrestLog(env)}
		if err := r.parse(); err != nil || r.conn(1).Query != want {
			t.Errorf("%q: %v %v, want %v", line, r.conn(1).Query, err, want)
		}
	}
}
