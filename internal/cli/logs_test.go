package cli

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/runlog"
)

// logged writes entries to a log, or a file rotated away from it, as runs do.
func logged(t *testing.T, path string, entries ...runlog.Entry) {
	t.Helper()
	var b bytes.Buffer
	for _, e := range entries {
		b.WriteString(e.Line())
	}
	text := b.Bytes()
	if strings.HasSuffix(path, ".gz") {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		if _, err := z.Write(text); err != nil || z.Close() != nil {
			t.Fatal(err)
		}
		text = packed.Bytes()
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o640); err != nil {
		t.Fatal(err)
	}
}

const loggedSet = "202611230400_10-0-0-147420"

// loggedRig is an instance whose log tells of a backup that is rotated and compressed, a failed restore, a daemon and its copy, and
// a run that goes on.
func loggedRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	log := logPath(r.in.LogDir())
	at := func(day, minute int) time.Time { return time.Date(2026, 11, day, 2, minute, 0, 0, time.UTC) }
	logged(t, log+".2026-11-22.gz", runlog.New(at(22, 0), "11-aaaaaaaa", "backup_all: began"), runlog.New(at(22, 1), "11-aaaaaaaa", "warning: a file changed"), runlog.New(at(22, 2), "12-bbbbbbbb", "backup_all: began"))
	logged(t, log+".2026-11-23", runlog.New(at(23, 3), "11-aaaaaaaa", "backup_all: copy: x"),
		runlog.New(at(23, 4), "11-aaaaaaaa", runlog.Ended("backup_all", nil, false, 1, loggedSet)))
	logged(t, log, runlog.New(at(24, 0), "20-dddddddd", "daemon: Holdfast 0.1, instance /x, process 20"), runlog.New(at(24, 1), "21-cccccccc", "restore: began"),
		runlog.New(at(24, 2), "21-cccccccc", runlog.Ended("restore", errors.New("no room on /data1"), false, 0, "")),
		runlog.New(at(24, 3), "20-eeeeeeee", "schedule: copy of 2026-11-24 02:03:00 UTC: started as run 20-eeeeeeee"), runlog.New(at(24, 4), "20-eeeeeeee", "schedule: copy of 2026-11-24 02:03:00 UTC: run 20-eeeeeeee: done"),
		runlog.New(at(24, 5), fmt.Sprintf("%d-ffffffff", os.Getpid()), "backup_all: began"))
	if err := os.MkdirAll(r.in.LockDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(instanceLock(r.in), fmt.Appendf(nil, `{"verb":"backup_all","exec":"%d-ffffffff","since":"2026-11-24T04:05:00Z"}`, os.Getpid()), 0o600); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLogsList(t *testing.T) {
	r := loggedRig(t)
	got := r.run("holdfast", "logs")
	got.has(t, exitOK)
	var rows []string
	for _, line := range strings.Split(strings.TrimSpace(got.out), "\n") {
		rows = append(rows, strings.Join(strings.Fields(line), " "))
	}
	want := []string{"RUN VERB BEGAN TOOK OUTCOME SET ERROR",
		fmt.Sprintf("%d-ffffffff backup_all 2026-11-24 02:05:00 UTC 55m0s running - ", os.Getpid()),
		"20-eeeeeeee copy 2026-11-24 02:03:00 UTC 1m0s done - ", "21-cccccccc restore 2026-11-24 02:01:00 UTC 1m0s failed - no room on /data1", "20-dddddddd daemon 2026-11-24 02:00:00 UTC 0s interrupted - ",
		"12-bbbbbbbb backup_all 2026-11-22 02:02:00 UTC 0s interrupted - ", "11-aaaaaaaa backup_all 2026-11-22 02:00:00 UTC 24h4m0s warnings " + loggedSet}
	for i := range want {
		if i >= len(rows) || strings.TrimSpace(rows[i]) != strings.TrimSpace(want[i]) {
			t.Errorf("row %d: want %q in\n%s", i, want[i], got.out)
		}
	}
	var list []struct {
		ID, Verb, Outcome, Set string
		Seconds                float64
	}
	got = r.run("holdfast", "logs", "--json", "--verb", "backup_all", "-n", "2")
	if err := json.Unmarshal([]byte(got.out), &list); err != nil || len(list) != 2 || list[1].ID != "12-bbbbbbbb" {
		t.Errorf("%v %s", err, got.out)
	}
	if got = r.run("holdfast", "logs", "--level", "error"); strings.Count(got.out, "\n") != 2 || !strings.Contains(got.out, "21-cccccccc") {
		t.Error(got.out)
	}
	if got = r.run("holdfast", "logs", "--since", "2026-11-24 02:02:30+00"); strings.Count(got.out, "\n") != 3 {
		t.Error(got.out)
	}
	for _, bad := range [][]string{{"--level", "loud"}, {"--since", "yesterday"}, {"-n", "0"}, {"nosuch"}, {""}, {"last", "--verb", "dance"}, {"a", "b"}} {
		if got := r.run(append([]string{"holdfast", "logs"}, bad...)...); got.code == exitOK || got.out != "" {
			t.Errorf("%q: %+v", bad, got)
		}
	}
	newRig(t).run("holdfast", "logs").has(t, exitOK, "RUN")
	newRig(t).run("holdfast", "logs", "last").has(t, exitUsage, "no run yet")
}

// TestLogsOfRun: by its id, by the set that the log or the catalogue names, and the newest; from compressed, rotated and live files.
func TestLogsOfRun(t *testing.T) {
	r := loggedRig(t)
	for _, name := range []string{"11-aaaaaaaa", loggedSet} {
		got := r.run("holdfast", "logs", name)
		got.has(t, exitOK, "backup_all: began\n", "warning: a file changed\n", "backup_all: copy: x\n", "ended with warnings: set "+loggedSet)
		if strings.Count(got.out, "\n") != 4 {
			t.Error(got.out)
		}
	}
	got := r.run("holdfast", "logs", "11-aaaaaaaa", "--level", "warning", "--json")
	lines := strings.Split(strings.TrimSpace(got.out), "\n")
	var e struct{ Run, Level, Text string }
	if err := json.Unmarshal([]byte(lines[0]), &e); err != nil || len(lines) != 2 || e.Run != "11-aaaaaaaa" || e.Level != "warning" || e.Text != "warning: a file changed" {
		t.Errorf("%v %s", err, got.out)
	}
	const other = "202611240400_10-0-0-147420"
	r.put(&catalog.Set{ID: other, Run: "21-cccccccc", State: catalog.Complete, Mode: catalog.Included, Began: time.Date(2026, 11, 24, 4, 0, 0, 0, time.UTC)})
	r.run("holdfast", "logs", other).has(t, exitOK, "no room on /data1")
	r.run("holdfast", "logs", "last").has(t, exitOK, "-ffffffff backup_all: began")
	r.run("holdfast", "logs", "last", "--verb", "copy").has(t, exitOK, "20-eeeeeeee schedule: copy of")
	r.run("holdfast", "logs", "last", "--verb", "daemon").has(t, exitOK, "daemon: Holdfast")
	if err := os.WriteFile(logPath(r.in.LogDir())+".2026-11-22.gz", []byte("no gzip"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.run("holdfast", "logs", loggedSet).has(t, exitWarnings, "warning: logs:", "2026-11-22.gz", "ended with warnings")
}

// TestLogsFollow: the lines of a run that is being made come until the command is interrupted, through a rotation.
func TestLogsFollow(t *testing.T) {
	r := loggedRig(t)
	run := fmt.Sprintf("%d-ffffffff", os.Getpid())
	env, _, _ := bareEnv(nil, "holdfast", "logs", run, "--follow")
	out := &lockedBuffer{}
	env.Stdout = out
	env.Getenv = func(name string) string { return map[string]string{"HOLDFAST_ROOT": r.root}[name] }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int, 1)
	go func() { done <- Main(ctx, env) }()
	await := func(want string) {
		t.Helper()
		for try := 0; !strings.Contains(out.text(), want); try++ {
			if try == 400 {
				t.Fatalf("no %q in %s", want, out.text())
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	await("began")
	writer, _, errs := bareEnv(nil, "holdfast")
	writer.ExecID = run
	l := newRunLog(writer, r.in.LogDir(), nil)
	l.line("backup_all: copy: one")
	await("copy: one")
	if _, err := l.rotate(10); err != nil {
		t.Fatal(err)
	}
	l.line("backup_all: copy: two")
	await("copy: two")
	cancel()
	if code := <-done; code != exitOK || errs.Len() > 0 || strings.Contains(out.text(), "restore") {
		t.Errorf("%d %s %s", code, errs, out.text())
	}
}

// TestLogBothWays: a line for people and one for programs say the same, and a run's begin and end are among them.
func TestLogBothWays(t *testing.T) {
	r := newRig(t)
	if got := r.run("alation_action", "backup_all"); got.code == exitOK {
		t.Fatal("a backup without PostgreSQL")
	}
	human, err1 := os.ReadFile(logPath(r.in.LogDir()))
	machine, err2 := os.ReadFile(filepath.Join(r.in.LogDir(), "alation_backup.jsonl"))
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	lines, objects := strings.Split(strings.TrimSpace(string(human)), "\n"), strings.Split(strings.TrimSpace(string(machine)), "\n")
	if len(lines) != len(objects) || len(lines) < 2 {
		t.Fatalf("%s\n%s", human, machine)
	}
	for i := range lines {
		var o struct{ Time, Run, Level, Verb, Event, Text string }
		if err := json.Unmarshal([]byte(objects[i]), &o); err != nil || o.Time+" "+o.Run+" "+o.Text != lines[i] {
			t.Errorf("%v\n%s\n%s", err, lines[i], objects[i])
		}
		if o.Run != "41-0badcafe" || i == 0 && o.Event != "begin" || i == len(lines)-1 && (o.Event != "end" || o.Level != "error") {
			t.Errorf("%s", objects[i])
		}
	}
	r.run("holdfast", "logs").has(t, exitOK, "41-0badcafe  backup_all", "failed")
}
