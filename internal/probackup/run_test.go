package probackup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/said"
)

// script makes a program of shell lines.
func script(t *testing.T, lines string) *Tool {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pg_probackup")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+lines+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return &Tool{Program: file, Dir: filepath.Join(filepath.Dir(file), "catalog"), Env: []string{"PATH=/usr/bin:/bin"}, Grace: 300 * time.Millisecond}
}

func TestFails(t *testing.T) {
	for _, c := range []struct {
		lines string
		code  int
		says  []string
	}{
		{"echo 'INFO: begin' >&2\necho 'ERROR: the disk is blue' >&2\nexit 1", 1, []string{"instance main: pg_probackup validate: exit code 1", "INFO: begin", "ERROR: the disk is blue"}},
		{"kill -9 $$", -1, []string{"signal: killed"}},
		{"printf 'ERROR: not ended' >&2; exit 3", 3, []string{"ERROR: not ended"}},
		{"printf 'ERROR: \\033[31mred\\n' >&2; exit 1", 1, []string{"?[31mred"}},
		{"i=0; while [ $i -lt 50 ]; do echo \"INFO: line $i\" >&2; i=$((i+1)); done; exit 1", 1, []string{"line 38", "line 49"}},
	} {
		err := script(t, c.lines).Validate(t.Context(), "main", "A", 1)
		var e *Error
		if !errors.As(err, &e) || e.Code != c.code {
			t.Errorf("%s: %v", c.lines, err)
			continue
		}
		for _, want := range c.says {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: want %q in %v", c.lines, want, err)
			}
		}
		if strings.Contains(err.Error(), "line 37") || len(e.Last) > said.MaxLines {
			t.Errorf("%d lines are kept", len(e.Last))
		}
	}
	missing := script(t, "")
	missing.Program += ".gone"
	if err := missing.Init(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := script(t, "echo something else; exit 0").Version(t.Context()); !errors.Is(err, ErrNotProbackup) {
		t.Error(err)
	}
	if _, err := script(t, "exit 2").Version(t.Context()); !errors.Is(err, ErrNotProbackup) {
		t.Error(err)
	}
}

func TestLog(t *testing.T) {
	tool := script(t, `echo 'INFO: begin' >&2
echo 'WARNING: the moon is full' >&2
echo 'WARNING: Current PostgreSQL role is superuser. It is not recommended to run pg_probackup under superuser.' >&2
echo 'WARNING: Backup A is used without validation.' >&2
echo '[{"instance":"main","backups":[]}]'`)
	var warned, said []string
	tool.Warn, tool.Say = func(s string) { warned = append(warned, s) }, func(s string) { said = append(said, s) }
	if _, err := tool.Show(t.Context(), "main"); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(warned) != "[the moon is full]" || len(said) != 3 {
		t.Errorf("warned %q, said %q", warned, said)
	}
}

// TestEnvironment: nothing of ours reaches the program but what it is given.
func TestEnvironment(t *testing.T) {
	t.Setenv("BACKUP_PATH", "/elsewhere")
	t.Setenv("PGDATA", "/elsewhere")
	tool := script(t, `env | sort >"$0.env"; echo "$@" >"$0.args"`)
	tool.Env = append(tool.Env, "PGPASSWORD=hush")
	if err := tool.Backup(t.Context(), "main", BackupOptions{Mode: "FULL", Server: Server{DataDir: "/d", Host: "/s", Port: 1, User: "u"}, Note: "n"}); err != nil {
		t.Fatal(err)
	}
	env, err1 := os.ReadFile(tool.Program + ".env")
	args, err2 := os.ReadFile(tool.Program + ".args")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(env), "elsewhere") || !strings.Contains(string(env), "PGPASSWORD=hush\n") || !strings.Contains(string(env), "LC_ALL=C\n") || strings.Contains(string(args), "hush") {
		t.Errorf("environment:\n%sarguments: %s", env, args)
	}
}

// TestCancelled: the program is interrupted and may end by itself; one that does not, and what it has started, is killed.
func TestCancelled(t *testing.T) {
	for name, c := range map[string]struct {
		lines string
		ends  bool // by itself
	}{
		"ends":           {`trap 'echo ended >"$0.ended"; exit 1' INT; echo $$ >"$0.pid.new"; mv "$0.pid.new" "$0.pid"; while :; do sleep 0.05; done`, true},
		"does not end":   {`trap '' INT TERM; echo $$ >"$0.pid.new"; mv "$0.pid.new" "$0.pid"; while :; do sleep 0.05; done`, false},
		"leaves a child": {`trap 'exit 1' INT; (trap '' INT TERM; while :; do sleep 0.05; done) & echo $! >"$0.pid.new"; mv "$0.pid.new" "$0.pid"; wait`, false},
	} {
		t.Run(name, func(t *testing.T) {
			tool := script(t, c.lines)
			if c.ends {
				tool.Grace = time.Minute
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- tool.Validate(ctx, "main", "A", 1) }()
			pid := 0
			for end := time.Now().Add(10 * time.Second); pid == 0; time.Sleep(10 * time.Millisecond) {
				if b, err := os.ReadFile(tool.Program + ".pid"); err == nil {
					if pid, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
						t.Fatal(err)
					}
				}
				if time.Now().After(end) {
					t.Fatal("it was not started")
				}
			}
			cancel()
			select {
			case err := <-done:
				if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("it goes on")
			}
			if _, err := os.Stat(tool.Program + ".ended"); (err == nil) != c.ends {
				t.Errorf("ended by itself: %v", err)
			}
			for end := time.Now().Add(10 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
				b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
				if err != nil || strings.Contains(string(b), ") Z ") {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("process %d is left", pid)
				}
			}
		})
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, mode os.FileMode) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	dirs := []string{"relative", filepath.Join(dir, "none"), dir}
	if _, err := Find(dirs, "15"); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "pg_probackup-15") {
		t.Error(err)
	}
	put("pg_probackup", 0o644)
	if got, err := Find(dirs, "15"); err == nil {
		t.Error("not a program:", got)
	}
	if err := os.Chmod(filepath.Join(dir, "pg_probackup"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := Find(dirs, "15"); err != nil || got != filepath.Join(dir, "pg_probackup") {
		t.Error(got, err)
	}
	want := put("pg_probackup-15", 0o755)
	if got, err := Find(dirs, "15"); err != nil || got != want {
		t.Error(got, err)
	}
}
