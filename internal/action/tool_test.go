package action

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/said"
	"holdfast/internal/storage"
)

// newTool is a tool whose program is a shell script; what it warns of goes to warned.
func newTool(t *testing.T, script string, warned *[]string) *tool {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "theirs")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data") // its owner is whom the tool runs as
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	a := New(Options{RepoDir: filepath.Join(dir, "repo"), RepoPass: "sesame", PGLockDir: filepath.Join(dir, "lock"), Compress: repo.ZST, Level: 3, ProcessMax: 2,
		Tool: &ToolOptions{Path: program, Dir: filepath.Join(dir, "conf"), Env: []string{"PATH=/usr/bin:/bin", "HERE=" + dir}},
		Events: func(e engine.Event) {
			if w, ok := e.(engine.Warning); ok {
				*warned = append(*warned, w.Text)
			}
		}})
	c := Cluster{Stanza: "main", DataDir: data}
	c.Conn.Host, c.Conn.Port, c.Conn.User = "/run/pg", 5433, "alation"
	st := storage.NewMem(nil)
	s, err := a.stanza(c.Stanza, st)
	if err != nil {
		t.Fatal(err)
	}
	return &tool{a: a, c: c, dir: a.o.RepoDir, st: st, look: s}
}

// TestToolRun: words and configuration without the passphrase, warnings, errors with exit code and last lines.
func TestToolRun(t *testing.T) {
	for _, c := range []struct {
		name, script string
		out          string
		is           error
		says, warns  []string
	}{
		{"good", `echo "$PGBACKREST_REPO1_CIPHER_PASS $HOME $@"`, "sesame  --config=", nil, nil, nil},
		{"warns", "echo 'WARN: one' >&2\necho '      HINT: more' >&2\necho 'INFO: x' >&2\nprintf 'WARN: two' >&2", "", nil, nil, []string{"pgbackrest info: one HINT: more", "pgbackrest info: two"}},
		{"fails", "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13; do echo \"line $i.\" >&2; done\nprintf 'bad \\001\\377 bytes\\n' >&2\nexit 29", "", nil,
			[]string{"stanza main: pgbackrest info: exit code 29", "line 13.", "bad ?? bytes"}, nil},
		{"long line", "head -c 100000 /dev/zero | tr '\\0' x >&2\nexit 3", "", nil, []string{"exit code 3", strings.Repeat("x", said.MaxLine)}, nil},
		{"locked", "exit 50", "", repo.ErrLocked, []string{"exit code 50"}, nil},
		{"stopped", "exit 62", "", engine.ErrStopped, nil, nil},
		{"killed", "kill -9 $$", "", nil, []string{"signal: killed"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var warned []string
			tl := newTool(t, c.script, &warned)
			out, err := tl.run(t.Context(), "info")
			if (err != nil) != (len(c.says) > 0 || c.is != nil) || !errors.Is(err, c.is) && c.is != nil {
				t.Fatalf("%v", err)
			}
			for _, s := range c.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("want %q in %v", s, err)
				}
			}
			if err != nil && (strings.Contains(err.Error(), "line 1.") || strings.Contains(err.Error(), strings.Repeat("x", said.MaxLine+1))) {
				t.Errorf("not bounded: %v", err)
			}
			if !strings.HasPrefix(out, c.out) || !slices.Equal(warned, c.warns) {
				t.Errorf("printed %q, warned %q", out, warned)
			}
			b, err := os.ReadFile(tl.a.o.Tool.Config("main"))
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range []string{"repo1-cipher-type=aes-256-cbc", "compress-level=3", "[main]", "pg1-port=5433", "pg1-user=alation", "pg1-socket-path=/run/pg"} {
				if !strings.Contains(string(b), line+"\n") {
					t.Errorf("no %s in\n%s", line, b)
				}
			}
			if info, err := os.Stat(tl.a.o.Tool.Config("main")); err != nil || info.Mode() != 0o600 || strings.Contains(string(b), "sesame") {
				t.Errorf("%v %v\n%s", info.Mode(), err, b)
			}
		})
	}
}

// TestToolCancelled: the tool is asked to end, and its end is waited for.
func TestToolCancelled(t *testing.T) {
	var warned []string
	tl := newTool(t, "trap 'echo ended >$HERE/ended; exit 1' TERM\n: >$HERE/began\nwhile :; do sleep 0.02; done", &warned)
	here := filepath.Dir(tl.a.o.Tool.Path)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for range 1000 {
			if _, err := os.Stat(filepath.Join(here, "began")); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	}()
	if _, err := tl.run(ctx, "backup"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(here, "ended")); err != nil {
		t.Errorf("it was not let end by itself: %v", err)
	}
}

// TestToolVerify reads what pgbackrest 2.45 and later print.
func TestToolVerify(t *testing.T) {
	const head = "stanza: main\nstatus: %S\n  archiveId: 15-1, total WAL checked: 2, total valid WAL: %W\n    missing: 0, checksum invalid: %I, size invalid: 0, other: 0\n"
	const good = "  backup: 20261124-040209F, status: valid, total files checked: 966, total valid files: 966\n    missing: 0, checksum invalid: 0, size invalid: 0, other: 0\n"
	const bad = "  backup: 20261124-050209F, status: invalid, total files checked: 966, total valid files: 964\n    missing: 1, checksum invalid: 0, size invalid: 1, other: 0\n"
	fill := func(status, valid, invalid string) string {
		return strings.NewReplacer("%S", status, "%W", valid, "%I", invalid).Replace(head)
	}
	for _, c := range []struct {
		name, out string
		exit      string
		set       repo.Label
		want      []string // what findings say, in order; nil and failed: an error
		failed    bool
	}{
		{"good", fill("ok", "2", "0") + good, "0", "20261124-040209F", nil, false},
		{"another is bad", fill("error", "2", "0") + good + bad, "0", "20261124-040209F", nil, false},
		{"bad", fill("error", "2", "0") + good + bad, "0", "20261124-050209F", []string{"status invalid", "missing: 1"}, false},
		{"bad, all asked", fill("error", "2", "0") + good + bad, "1", "", []string{"status invalid", "missing: 1"}, false},
		{"WAL", fill("error", "1", "1") + good, "0", "20261124-040209F", []string{"archive/main/15-1: missing: 0, checksum invalid: 1"}, false},
		{"no reason", fill("error", "2", "0") + good, "0", "20261124-040209F", []string{"stanza main: status: error"}, false},
		{"not listed", fill("ok", "2", "0") + good, "0", "20261124-060209F", []string{"does not list"}, false},
		{"manifest gone", fill("ok", "2", "0") + strings.Replace(bad, "invalid, total", "manifest missing, total", 1), "0", "20261124-050209F", []string{"status manifest missing", "missing: 1"}, false},
		{"cannot look", "", "29", "20261124-040209F", nil, true},
	} {
		var warned []string
		tl := newTool(t, "cat <<'EOT'\n"+c.out+"EOT\nexit "+c.exit+"\n", &warned)
		res, err := tl.Verify(t.Context(), engine.VerifyOptions{Set: c.set})
		if (err != nil) != c.failed {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err != nil {
			continue
		}
		if len(res.Findings) != len(c.want) {
			t.Errorf("%s: %v", c.name, res.Findings)
			continue
		}
		for i, f := range res.Findings {
			if !strings.Contains(f.String(), c.want[i]) {
				t.Errorf("%s: want %q: %s", c.name, c.want[i], f)
			}
		}
	}
}

// TestRecoveryOption: the tool writes 'value' as it gets it, so that quotes and backslashes must be PostgreSQL's already.
func TestRecoveryOption(t *testing.T) {
	if got := recoveryOption("archive_command", `cp '/it'\''s' "%p"`); got != `--recovery-option=archive_command=cp ''/it''\\''''s'' "%p"` {
		t.Error(got)
	}
}
