package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestMain is also a Holdfast that does its work and then harm: with the path of the real one in DEMO_TEST_REAL, the
// command after which to act in DEMO_TEST_AFTER, and what to do in DEMO_TEST_HARM.
func TestMain(m *testing.M) {
	real := os.Getenv("DEMO_TEST_REAL")
	if real == "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command(real, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := cmd.ProcessState.ExitCode()
	if (code == 0 || code == 3) && slices.Contains(os.Args, os.Getenv("DEMO_TEST_AFTER")) {
		harm := exec.Command("sh", "-c", os.Getenv("DEMO_TEST_HARM"))
		harm.Dir = os.Getenv("HOLDFAST_ROOT")
		if out, err := harm.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "harm: %v: %s", err, out)
			os.Exit(1)
		}
	}
	os.Exit(code)
}

// build makes the program in a directory that the server's user can reach.
func build(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs PostgreSQL, Kafka and pgbackrest; run make test")
	}
	dir, err := os.MkdirTemp("", "hf-demo-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	bin := filepath.Join(dir, "holdfast")
	cmd := exec.Command("go", "build", "-trimpath", "-o", bin, "holdfast/cmd/holdfast")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err := errors.Join(err, os.Chmod(dir, 0o755)); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

// TestStory: whoever reads the output learns what was there, what was typed, what was lost and what was proven.
func TestStory(t *testing.T) {
	var out bytes.Buffer
	began := time.Now()
	if err := tell(t.Context(), build(t), &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Logf("the story took %s", time.Since(began)) // a minute where nothing else runs
	story := out.String()
	rest := story
	for _, part := range []string{
		"is what an operator types", "proof:   is a comparison",
		"── An application: PostgreSQL 15, files, Kafka", "called ROOT below", "300,000 accounts", "the consumer group billing has read",
		"── Back everything up while it is written to, lose everything, bring everything back",
		"$ alation_action backup_all", ": complete", "recovery point holdfast_", "meanwhile a writer wrote", "the server is dead",
		"$ alation_conf alation.backup.restore_file -s", "$ alation_conf alation.backup.eb_restore_file -s",
		"$ echo YES | alation_action destructive_restore_all", "replaces", "is restored",
		"proof: equal to what was lost", "public.accounts        300000 rows", `the file "hard link" under one of 3 names`, "user.origin=", "with holes",
		"billing of orders/0    1000 records read", "proof: at the recovery point the writer was at", "proof: what was written after backup_all",
		"── PostgreSQL kept apart, and back to an earlier time",
		"somebody deleted 90 of them and dropped the table", "$ holdfast restore --set", "proof: log has 100 rows again",
		"── The real pgbackrest reads the same repository",
		"$ pgbackrest info", "status: ok", "$ pgbackrest verify", "completed successfully", "$ pgbackrest restore",
		"proof: PostgreSQL runs on what pgbackrest restored", "public.accounts        300000 rows", "Every proof held.",
	} {
		_, after, found := strings.Cut(rest, part)
		if !found {
			t.Fatalf("%q does not come where it should; the story goes on there with\n%s", part, rest)
		}
		rest = after
	}
	for l := range strings.Lines(story) {
		if n := len([]rune(strings.TrimSpace(l))); n > 240 {
			t.Errorf("a line of %d characters: %s", n, l)
		}
	}
	if bad := regexp.MustCompile(`%!|<nil>|\bnull\b|panic|0001-01-01`).FindString(story); bad != "" {
		t.Errorf("the story contains %q", bad)
	}
	checkNumbers(t, story)
}

// checkNumbers reads the writer's numbers as a reader does: began <= recovered <= ended < gone.
func checkNumbers(t *testing.T, story string) {
	t.Helper()
	var n []int
	for _, re := range []string{`topic: (\d+) when backup_all began, `, `the writer was at (\d+) in the table, `, `the table, (\d+) in the topic, `, `the topic, (\d+) in the file`, `began, (\d+) when it ended`, `the numbers (\d+) to`, `the numbers \d+ to (\d+),`} {
		m := regexp.MustCompile(re).FindStringSubmatch(story)
		if m == nil {
			t.Fatalf("the story does not say %s", re)
		}
		i, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		n = append(n, i)
	}
	n[1]-- // the number that was in the table first may have been on its way to the others
	if !slices.IsSorted(n) {
		t.Errorf("backup began, table less one, topic, file, backup ended, gone from, gone to: %v are not in order", n)
	}
}

// TestStoryEndsWhenAProofFails does harm behind the program's back: the story must not end well, and must name the damage.
func TestStoryEndsWhenAProofFails(t *testing.T) {
	real := build(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("DEMO_TEST_REAL", real)
	for _, c := range []struct{ name, after, harm, says string }{
		{"a file's mode", "destructive_restore_all", "chmod 600 'data1/site_data/part0/deep/file 0.txt'", "file part0/deep/file 0.txt"},
		{"a number of the ledger", "destructive_restore_all", "printf X | dd of=data1/site_data/ledger bs=1 seek=6300 conv=notrunc", "line 50 of the file"},
		{"a tarball that is not there", "backup_all", "rm data2/backup/*_eb_backup.tar.gz", "not two tarballs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("DEMO_TEST_AFTER", c.after)
			t.Setenv("DEMO_TEST_HARM", c.harm)
			var out bytes.Buffer
			err := tell(context.WithoutCancel(t.Context()), self, &out)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v\n%s", c.harm, err, out.String())
			}
			if strings.Contains(out.String(), "Every proof held") {
				t.Errorf("%s: the story ends well", c.harm)
			}
		})
	}
}
