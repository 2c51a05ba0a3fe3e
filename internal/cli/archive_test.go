package cli

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/repo"
)

func TestParseArchive(t *testing.T) {
	for _, c := range []struct {
		verb, line string // words separated by spaces; "_" is the empty word
		opts       map[string]string
		words      []string
		refused    string
	}{
		{verb: "archive-push", line: "--stanza=main --repo1-path /r pg_wal/0001 --compress-type=lz4", opts: map[string]string{"stanza": "main", "repo1-path": "/r", "compress-type": "lz4"}, words: []string{"pg_wal/0001"}},
		{verb: "archive-push", line: "--no-archive-header-check x", opts: map[string]string{"archive-header-check": "n"}, words: []string{"x"}},
		{verb: "archive-push", line: "--archive-header-check x", opts: map[string]string{"archive-header-check": "y"}, words: []string{"x"}},
		{verb: "archive-push", line: "--archive-header-check=n x", opts: map[string]string{"archive-header-check": "n"}, words: []string{"x"}},
		{verb: "archive-push", line: "--pg1-path=/a=b x", opts: map[string]string{"pg1-path": "/a=b"}, words: []string{"x"}},
		{verb: "archive-get", line: "--repo1-path=/a --repo256-path=/b f p", opts: map[string]string{"repo1-path": "/a", "repo256-path": "/b"}, words: []string{"f", "p"}},
		{verb: "archive-get", line: "--nonsense --help", opts: nil, refused: "option --nonsense is not known"},
		{verb: "archive-get", line: "--help --nonsense", opts: map[string]string{"help": ""}},
		{verb: "archive-push", line: "-h", opts: map[string]string{"help": ""}},
		{verb: "archive-push", line: "--archive-header-check=no x", refused: "it takes y or n"},
		{verb: "archive-push", line: "--no-archive-header-check=y x", refused: "--no-archive-header-check is not known"},
		{verb: "archive-push", line: "--no-stanza x", refused: "--no-stanza is not known"},
		{verb: "archive-push", line: "--repo2-path=/b x", refused: "--repo2-path is not known; see: holdfast pg archive-push --help"},
		{verb: "archive-push", line: "--stanza", refused: "--stanza needs a value"},
		{verb: "archive-push", line: "--stanza= x", refused: "--stanza is empty"},
		{verb: "archive-push", line: "--stanza _ x", refused: "--stanza is empty"},
		{verb: "archive-push", line: "--stanza=a --stanza=b x", refused: "--stanza is given twice"},
		{verb: "archive-push", line: "-x x", refused: "option -x is not known"},
		{verb: "archive-push", line: "--repo1-path-secret=hidden x", refused: "option --repo1-path-secret is not known"},
		{verb: "archive-get", line: "--compress-type=gz f p", refused: "archive-get: option --compress-type is not known"},
		{verb: "archive-get", line: "--no-archive-header-check f p", refused: "option --no-archive-header-check is not known"},
		{verb: "archive-get", line: "--repo0-path=/a f p", refused: "--repo0-path is not known"},
		{verb: "archive-get", line: "--repo01-path=/a f p", refused: "--repo01-path is not known"},
		{verb: "archive-get", line: "--repo257-path=/a f p", refused: "--repo257-path is not known"},
		{verb: "archive-get", line: "--repo-path=/a f p", refused: "--repo-path is not known"},
	} {
		args := strings.Fields(c.line)
		for i, a := range args {
			if a == "_" {
				args[i] = ""
			}
		}
		opts, words, err := parseArchive(c.verb, args)
		if c.refused != "" {
			if err == nil || !strings.Contains(err.Error(), c.refused) || exitCode(err) != exitUsage || strings.Contains(err.Error(), "hidden") {
				t.Errorf("%s %s: want %q, got %v", c.verb, c.line, c.refused, err)
			}
			continue
		}
		if err != nil || !maps.Equal(opts, c.opts) || !slices.Equal(words, c.words) {
			t.Errorf("%s %s: %v %v %v", c.verb, c.line, opts, words, err)
		}
	}
}

// TestArchiveRefuses: what PostgreSQL gets back when a command of its settings is wrong, or a repository is not there.
func TestArchiveRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	empty, lock := filepath.Join(dir, "empty"), "--lock-path="+filepath.Join(dir, "lock")
	const segment = "000000010000000000000001"
	for _, c := range []struct {
		words []string
		code  int
		want  string
	}{
		{[]string{"archive-push", "--stanza=s", "--repo1-path=/r"}, exitUsage, "needs one path"},
		{[]string{"archive-push", "--stanza=s", "--repo1-path=/r", "a", "b"}, exitUsage, "needs one path"},
		{[]string{"archive-push", "--repo1-path=/r", "--pg1-path=/p", "a"}, exitUsage, "--stanza is missing"},
		{[]string{"archive-push", "--stanza=s", "--pg1-path=/p", "a"}, exitUsage, "--repo1-path is missing"},
		{[]string{"archive-push", "--compress-type=brotli", "a"}, exitUsage, `unknown compression type "brotli"`},
		{[]string{"archive-push", "--compress-level=high", "a"}, exitUsage, "--compress-level=high is not a number"},
		{[]string{"archive-push", "--compress-type=gz", "--compress-level=10", "a"}, exitUsage, "--compress-level=10: gz takes -1 to 9"},
		{[]string{"archive-push", "--stanza=s", "--repo1-path=" + empty, "a"}, exitFailed, "no working directory here"},
		{[]string{"archive-push", "--stanza=s", "--repo1-path=" + empty, "--pg1-path=/p", lock, segment}, exitFailed, "stanza-create"},
		{[]string{"archive-get", "--stanza=s", "--repo1-path=/r", segment}, exitUsage, "needs a name and a destination"},
		{[]string{"archive-get", "--stanza=s", "--pg1-path=/p", segment, "d"}, exitUsage, "--repo1-path is missing"},
		// An archive without the segment ends with 1; no archive, and not able to look, are above 125.
		{[]string{"archive-get", "--stanza=s", "--repo1-path=" + empty, "--pg1-path=" + dir, lock, segment, "d"}, exitArchive, "does not exist"},
		{[]string{"archive-get", "--stanza=s", "--repo1-path=" + file, "--pg1-path=" + dir, lock, segment, "d"}, exitArchive, "not a directory"},
		{[]string{"archive-get", "--stanza=s", "--repo1-path=" + empty, "--repo2-path=" + file, "--pg1-path=" + dir, lock, segment, "d"}, exitArchive, "not a directory"},
		{[]string{"archive-get", "--help"}, exitOK, "restore_command = "},
	} {
		bare(t, "", slices.Concat([]string{"holdfast", "pg"}, c.words)...).has(t, c.code, c.want)
		// The command tree, which Main goes around for these verbs, says the same.
		env, out, errs := bareEnv(strings.NewReader(""), slices.Concat([]string{"holdfast", "pg"}, c.words)...)
		code := rootMain(t.Context(), env)
		said{out.String(), errs.String(), code}.has(t, c.code, c.want)
	}
	if _, err := os.Stat(filepath.Join(dir, "d")); err == nil {
		t.Error("a destination was made")
	}
}

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{
		"":                    "''",
		"/usr/bin/holdfast":   "/usr/bin/holdfast",
		"--repo1-path=/a,b@c": "--repo1-path=/a,b@c",
		"/a b":                "'/a b'",
		"/it's":               `'/it'\''s'`,
		"$HOME;`x`":           "'$HOME;`x`'",
		"50%p":                "50%%p", // PostgreSQL makes one of the two
		"50% off":             "'50%% off'",
		"/später":             "'/später'",
		"a\nb":                "'a\nb'",
		"~/x":                 "'~/x'",
		`back\slash"`:         `'back\slash"'`,
	} {
		if got := shellQuote(in); got != want {
			t.Errorf("%q: want %s, got %s", in, want, got)
		}
	}
}

// shell runs one line as PostgreSQL does.
func shell(t *testing.T, line string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", line).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// TestArchiveCommandsParse: what is put into PostgreSQL's settings is what the verbs understand, whatever is in a path.
func TestArchiveCommandsParse(t *testing.T) {
	const odd = "/it's 100% $HOME/repo"
	// What PostgreSQL and the shell make of the text: the first doubles are single again, the quotes go.
	words := func(command string) []string {
		t.Helper()
		out := shell(t, "for w in "+strings.NewReplacer("%%", "%", "%p", "PATH", "%f", "NAME").Replace(command)+`; do printf '%s\n' "$w"; done`)
		return strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	}
	push := words(archiveCommand("/opt/my programs/holdfast", "main", odd, odd+"/pg", odd+"/pass", repo.LZ4, 3))
	opts, rest, err := parseArchive(push[2], push[3:])
	if err != nil || push[0] != "/opt/my programs/holdfast" || opts["repo1-path"] != odd || opts["pg1-path"] != odd+"/pg" || opts["repo1-cipher-pass-file"] != odd+"/pass" || opts["compress-level"] != "3" || !slices.Equal(rest, []string{"PATH"}) {
		t.Errorf("%q: %v %v %v", push, opts, rest, err)
	}
	get := words(restoreCommand("/h", "main", odd, odd+"/pass", directories([]string{odd, "/second"})))
	opts, rest, err = parseArchive(get[2], get[3:])
	if err != nil || opts["repo1-path"] != odd || opts["repo2-path"] != "/second" || !slices.Equal(rest, []string{"NAME", "PATH"}) {
		t.Errorf("%q: %v %v %v", get, opts, rest, err)
	}
}
