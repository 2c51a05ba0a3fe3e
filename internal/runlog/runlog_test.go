package runlog

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var day = time.Date(2026, 11, 27, 4, 0, 0, 123e6, time.UTC)

func TestEntries(t *testing.T) {
	for _, c := range []struct {
		text string
		want Entry
	}{
		{"backup_all: began", Entry{Level: Info, Verb: "backup_all", Event: Begin}},
		{Ended("backup_all", nil, false, 0, "202611270400_1-2-3-4"), Entry{Level: Info, Verb: "backup_all", Event: End, Outcome: Done, Set: "202611270400_1-2-3-4"}},
		{Ended("backup_all", nil, false, 2, "202611270400_1-2-3-4"), Entry{Level: Warning, Verb: "backup_all", Event: End, Outcome: Warned, Set: "202611270400_1-2-3-4"}},
		{Ended("sets copy", nil, false, 0, ""), Entry{Level: Info, Verb: "sets copy", Event: End, Outcome: Done}},
		{Ended("restore", errors.New("disk: set 7 is full"), false, 0, ""), Entry{Level: Error, Verb: "restore", Event: End, Outcome: Failed}},
		{Ended("restore", context.Canceled, true, 0, ""), Entry{Level: Warning, Verb: "restore", Event: End, Outcome: Interrupted}},
		{"warning: a file changed: ended well", Entry{Level: Warning}},
		{"warning: schedule: backup: 3 times are passed over", Entry{Level: Warning, Verb: "schedule"}},
		{"schedule: backup of 2026-11-27 04:00:00 UTC: started as run 7-1; it makes up 2 earlier times", Entry{Level: Info, Verb: "backup", Event: Begin}},
		{"schedule: backup of 2026-11-27 04:00:00 UTC: run 7-1: failed: no server", Entry{Level: Error, Verb: "backup", Event: End, Outcome: "failed"}},
		{"schedule: copy of 2026-11-27 04:00:00 UTC: run 7-1: done", Entry{Level: Info, Verb: "copy", Event: End, Outcome: "done"}},
		{"schedule: backup of 2026-11-27 04:00:00 UTC: run 7-1: refused: held", Entry{Level: Warning, Verb: "backup", Event: End, Outcome: "refused"}},
		{"schedule: backup: 0 4 * * * Europe/Zurich", Entry{Level: Info, Verb: "schedule"}},
		{"backup: set 202611270400_1-2-3-4: done, with 1 warning(s)", Entry{Level: Info, Verb: "backup", Set: "202611270400_1-2-3-4"}},
		{"daemon: Holdfast 0.1, instance /x, process 7", Entry{Level: Info, Verb: "daemon", Event: Begin}},
		{"daemon: ended", Entry{Level: Info, Verb: "daemon", Event: End, Outcome: Done}},
		{"a sentence, with: a colon", Entry{Level: Info}},
		{"", Entry{Level: Info}},
	} {
		c.want.Time, c.want.Run, c.want.Text = day, "7-1", c.text
		got := New(day, "7-1", c.text)
		if got != c.want {
			t.Errorf("%q:\n%+v, want\n%+v", c.text, got, c.want)
		}
		if again, ok := Parse(strings.TrimSuffix(got.Line(), "\n")); !ok || again != got {
			t.Errorf("%q read again: %+v, %v", c.text, again, ok)
		}
	}
}

// TestOneLine: whatever a run says is one line of printable text, in both files.
func TestOneLine(t *testing.T) {
	e := New(day, "7-1", "restore: ended with an error: first\n2026-11-27T04:00:00.123Z 9-9 backup_all: ended well\x1b[2J\xff\r\n")
	line := e.Line()
	if strings.Count(line, "\n") != 1 || strings.ContainsAny(line[:len(line)-1], "\x1b\r\n") || !strings.Contains(line, "first; 2026-11-27T04:00:00.123Z 9-9 backup_all") {
		t.Errorf("%q", line)
	}
	b := e.JSON()
	var back struct {
		Time       time.Time
		Run, Level string
		Text       string
	}
	if err := json.Unmarshal(b, &back); err != nil || bytes.Count(b, []byte("\n")) != 1 || !back.Time.Equal(day) || back.Run != "7-1" || back.Level != "error" || back.Text != e.Text {
		t.Errorf("%s %+v %v", b, back, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(New(day, "7-1", "schedule: backup of x: run y: failed: z").Line())
	f.Add(New(day, "7-1", Ended("backup_all", nil, false, 2, "s")).Line())
	f.Add("2026-11-27T04:00:00.123Z  two blanks")
	f.Add("  - a continuation: of something")
	f.Fuzz(func(t *testing.T, line string) {
		e, ok := Parse(line)
		if !ok {
			return
		}
		again, ok := Parse(strings.TrimSuffix(e.Line(), "\n"))
		if !ok || again != e {
			t.Errorf("%q: %+v, then %+v, %v", line, e, again, ok)
		}
		if !json.Valid(e.JSON()) {
			t.Errorf("%s", e.JSON())
		}
		var r Run
		r.add(e)
	})
}

// put writes lines to a file of the log's directory.
func put(t *testing.T, path string, lines ...string) {
	t.Helper()
	text := strings.Join(lines, "")
	if strings.HasSuffix(path, ".gz") {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		if _, err := z.Write([]byte(text)); err != nil || z.Close() != nil {
			t.Fatal(err)
		}
		text = b.String()
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func said(days int, run, text string) string { return New(day.AddDate(0, 0, days), run, text).Line() }

func texts(t *testing.T, l Log, since time.Time) []string {
	t.Helper()
	var out []string
	if err := l.Scan(t.Context(), since, func(e Entry) error { out = append(out, e.Run+" "+e.Text); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestScan reads the live log and what was rotated away, in order: compressed, twice on a day, one in the middle of being
// compressed; entries of several lines as they were written once, and a line that is too long.
func TestScan(t *testing.T) {
	path := filepath.Join(t.TempDir(), "alation_backup.log")
	put(t, path+".2026-11-24.gz", said(-3, "1-a", "first"), "its second line\n")
	put(t, path+".2026-11-25", said(-2, "2-b", "second"))
	put(t, path+".2026-11-25.gz", said(-2, "2-b", "second"))
	put(t, path+".2026-11-25.2", said(-2, "3-c", "third"))
	put(t, path+".2026-11-25.10", said(-2, "3-c", "fourth"))
	if err := os.WriteFile(path+".2026-11-26.gz", []byte("no gzip"), 0o600); err != nil {
		t.Fatal(err)
	}
	put(t, path+".old", said(-2, "9-z", "of somebody else"))
	if err := os.Symlink(path+".old", path+".2026-11-23"); err != nil {
		t.Fatal(err)
	}
	put(t, path, said(0, "4-d", strings.Repeat("l", lineMax)), said(0, "4-d", "last"))
	var problems []string
	l := Log{Path: path, Problem: func(err error) { problems = append(problems, err.Error()) }}
	got := texts(t, l, time.Time{})
	want := []string{"1-a first", "1-a its second line", "2-b second", "3-c third", "3-c fourth", "", "4-d last"}
	if len(got) != len(want) || len(got[5]) > lineMax+20 || !strings.HasSuffix(got[5], "l…") {
		t.Fatalf("%d %.300q", len(got), got)
	}
	got[5] = ""
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if len(problems) != 2 || !strings.Contains(strings.Join(problems, "\n"), "2026-11-23") || !strings.Contains(strings.Join(problems, "\n"), "2026-11-26.gz") {
		t.Errorf("%q", problems)
	}
	if got := texts(t, l, day); len(got) != 2 {
		t.Errorf("since: %.100q", got)
	}
	if got := texts(t, Log{Path: filepath.Join(t.TempDir(), "none", "x.log")}, time.Time{}); len(got) != 0 {
		t.Errorf("%q", got)
	}
	stop := errors.New("enough")
	if err := l.Scan(t.Context(), time.Time{}, func(Entry) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Scan(ctx, time.Time{}, func(Entry) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestScanWhileRotating: whoever reads while the log is rotated, compressed and removed sees every line that stays once, in order.
func TestScanWhileRotating(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	put(t, path, said(0, "1-a", "0"))
	stop := make(chan struct{})
	var rotations atomic.Int32
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for n := 1; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			if err == nil {
				_, err = f.WriteString(said(0, "1-a", fmt.Sprint(n)))
				err = errors.Join(err, f.Close())
			}
			if err == nil && n%7 == 0 {
				rotated := path + "." + day.AddDate(0, 0, n/7).Format("2006-01-02")
				time.Sleep(time.Millisecond) // a directory that grows faster than it can be read shows no moment of it
				rotations.Add(1)
				if err = os.Rename(path, rotated); err == nil && n%3 == 0 {
					text, rerr := os.ReadFile(rotated)
					put(t, rotated+".gz", string(text))
					err = errors.Join(rerr, os.Remove(rotated))
				}
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for scans := 0; scans < 25 || rotations.Load() < 30; scans++ {
		last := -1
		err := (Log{Path: path, Problem: func(err error) { t.Error(err) }}).Scan(t.Context(), time.Time{}, func(e Entry) error {
			n := 0
			if _, err := fmt.Sscan(e.Text, &n); err != nil || n != last+1 {
				return fmt.Errorf("%d (%v) after %d", n, err, last)
			}
			last = n
			return nil
		})
		if err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	wg.Wait()
}

// TestFollow: lines come as they are written, in pieces, through a rotation, a truncation, and where there was no log at first.
func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	put(t, path+".2026-11-26", said(-1, "1-a", "before"))
	ctx, cancel := context.WithCancel(t.Context())
	lines, done := make(chan string, 100), make(chan error, 1)
	go func() {
		done <- (Log{Path: path}).Follow(ctx, time.Time{}, func(e Entry) error { lines <- e.Text; return nil })
	}()
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-lines:
			if got != want {
				t.Fatalf("%q, want %q", got, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("no %q", want)
		}
	}
	write := func(text string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = f.WriteString(text)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	expect("before")
	write(said(0, "1-a", "one"))
	expect("one")
	two := said(0, "1-a", "two")
	write(two[:30])
	time.Sleep(2 * followPoll)
	write(two[30:])
	expect("two")
	old, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0) // a writer who opened it before
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".2026-11-27"); err != nil {
		t.Fatal(err)
	}
	if _, err := old.WriteString(said(0, "1-a", "late")); err != nil || old.Close() != nil {
		t.Fatal(err)
	}
	write(said(1, "1-a", "three"))
	expect("late")
	expect("three")
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * followPoll)
	write(said(1, "1-a", "4"))
	expect("4")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestRuns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	put(t, path+".2026-11-26.gz", said(-1, "1-a", "backup_all: prepare"), said(-1, "1-a", "warning: something"),
		said(-1, "2-b", "schedule: backup of 2026-11-26 04:00:00 UTC: started as run 2-b"), said(-1, "2-b", "backup_all: began"))
	put(t, path, said(0, "2-b", Ended("backup_all", nil, false, 1, "S")), said(0, "2-b", "backup: set S: done, with 1 warning(s)"), said(0, "2-b", "schedule: backup of 2026-11-26 04:00:00 UTC: run 2-b: done"),
		said(1, "3-c", Began("restore")), said(1, "3-c", Ended("restore", errors.New("no server: none"), false, 0, "")), said(2, "4-d", "schedule: copy of x: started as run 4-d"), said(2, "4-d", "schedule: copy of x: run 4-d: yielded: another"))
	l := Log{Path: path}
	runs, err := l.Runs(t.Context(), time.Time{}, 10, nil)
	if err != nil || len(runs) != 4 {
		t.Fatalf("%+v %v", runs, err)
	}
	type brief struct {
		id, verb, outcome, err, set string
		ended                       bool
		warnings                    int
		took                        time.Duration
	}
	for i, want := range []brief{{"4-d", "copy", "yielded", "another", "", true, 0, 0}, {"3-c", "restore", Failed, "no server: none", "", true, 0, 0}, {"2-b", "backup_all", Warned, "", "S", true, 0, dayLength}, {"1-a", "backup_all", "", "", "", false, 1, 0}} {
		r := runs[i]
		if got := (brief{r.ID, r.Verb, r.Outcome, r.Error, r.Set, r.Ended, r.Warnings, r.Duration()}); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	if runs, err := l.Runs(t.Context(), time.Time{}, 1, func(r *Run) bool { return r.Set == "S" }); err != nil || len(runs) != 1 || runs[0].ID != "2-b" {
		t.Errorf("%+v %v", runs, err)
	}
}

// TestBounded: of a long log of many runs no more are held than were asked for and some, and the newest are listed.
func TestBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	const many = 60000
	for n := range many {
		e := New(day.Add(time.Duration(n)*time.Second), fmt.Sprintf("%d-x", n), "schedule: copy of x: run y: failed: "+strings.Repeat("e", 200))
		if _, err := f.WriteString(e.Line()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteString(said(365, "1-last", Began("backup_all"))); err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	l := Log{Path: path}
	runs, err := l.Runs(t.Context(), time.Time{}, 20, nil)
	if err != nil || len(runs) != 20 || runs[0].ID != "1-last" || runs[1].ID != fmt.Sprintf("%d-x", many-1) || runs[19].ID != fmt.Sprintf("%d-x", many-19) {
		t.Errorf("%d runs, %v: %v", len(runs), err, runs)
	}
	c := collector{runs: map[string]*Run{}, max: 2*20 + runsSlack}
	most := 0
	if err := l.Scan(t.Context(), time.Time{}, func(e Entry) error {
		err := c.add(e)
		most = max(most, len(c.runs))
		return err
	}); err != nil || most > c.max {
		t.Errorf("%d runs at once, %v", most, err)
	}
	runs, err = l.Runs(t.Context(), time.Time{}, 5, func(r *Run) bool { return r.Verb == "backup_all" })
	if err != nil || len(runs) != 1 {
		t.Errorf("%v %v", runs, err)
	}
}
