package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/instance"
	"holdfast/internal/storage"
)

// rig runs command lines in this process, on an instance of its own below a temporary directory. No server is asked.
type rig struct {
	t    *testing.T
	root string
	in   *instance.Instance
}

// said is what a command line printed, and its exit code.
type said struct {
	out, errs string
	code      int
}

func (s said) has(t *testing.T, code int, want ...string) {
	t.Helper()
	if s.code != code {
		t.Errorf("code %d, want %d\n%s%s", s.code, code, s.out, s.errs)
	}
	for _, w := range want {
		if !strings.Contains(s.out+s.errs, w) {
			t.Errorf("want %q in:\n%s%s", w, s.out, s.errs)
		}
	}
}

// bareEnv is a world without an instance, a terminal or a clock that moves.
func bareEnv(stdin io.Reader, words ...string) (*Env, *bytes.Buffer, *bytes.Buffer) {
	var out, errs bytes.Buffer
	return &Env{Args: words, Stdin: stdin, Stdout: &out, Stderr: &errs, Getenv: func(string) string { return "" }, Environ: func() []string { return nil },
		Now: func() time.Time { return time.Date(2026, 11, 24, 3, 0, 0, 0, time.UTC) }, Exe: "/usr/local/bin/holdfast",
		Getwd: func() (string, error) { return "", errors.New("no working directory here") },
		Kill:  func() { panic("killed") }, Stop: func() { panic("stopped") }, ExecID: "41-0badcafe"}, &out, &errs
}

// bare runs one command line without an instance.
func bare(t *testing.T, stdin string, words ...string) said {
	t.Helper()
	env, out, errs := bareEnv(strings.NewReader(stdin), words...)
	code := Main(t.Context(), env)
	return said{out.String(), errs.String(), code}
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "program")
	if err := os.WriteFile(exe, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"data", "backup"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r := &rig{t: t, root: filepath.Join(dir, "root")}
	env, out, errs := bareEnv(strings.NewReader(""), "holdfast", "init", filepath.Join(dir, "data"), filepath.Join(dir, "backup"), "--root", r.root, "--user", u.Username)
	env.Exe = exe
	if code := Main(t.Context(), env); code != 0 {
		t.Fatalf("init: code %d\n%s%s", code, out, errs)
	}
	if r.in, err = instance.Open(r.root); err != nil {
		t.Fatal(err)
	}
	return r
}

// run runs one command line on the instance, named by HOLDFAST_ROOT.
func (r *rig) run(words ...string) said { return r.typed("", words...) }

// typed is run with something on standard input.
func (r *rig) typed(stdin string, words ...string) said {
	r.t.Helper()
	return r.main(r.t.Context(), strings.NewReader(stdin), words...)
}

func (r *rig) main(ctx context.Context, stdin io.Reader, words ...string) said {
	r.t.Helper()
	env, out, errs := bareEnv(stdin, words...)
	env.Getenv = func(name string) string {
		if name == "HOLDFAST_ROOT" {
			return r.root
		}
		return ""
	}
	code := Main(ctx, env)
	return said{out.String(), errs.String(), code}
}

// put stores sets in the instance's catalogue.
func (r *rig) put(sets ...*catalog.Set) {
	r.t.Helper()
	st, err := storage.NewPosix(r.in.CatalogDir(), storage.PosixOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, s := range sets {
		if err := catalog.NewStore(st).Put(r.t.Context(), s); err != nil {
			r.t.Fatal(err)
		}
	}
}
