package whole

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/world"
)

// paused runs a command up to a step.
func paused(t *testing.T, w *world.World, step, name string, args ...string) *world.Paused {
	t.Helper()
	p, err := w.PauseAt(t.Context(), step, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// failed says whether a run ended as it must: with the code and every text.
func failed(t *testing.T, out world.Output, err error, code int, what ...string) {
	t.Helper()
	if err == nil || out.Code != code {
		t.Errorf("code %d (want %d): %v", out.Code, code, err)
	}
	for _, s := range what {
		if !strings.Contains(out.Stderr, s) {
			t.Errorf("want %q in:\n%s", s, out.Stderr)
		}
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// change makes the application another than in the set.
func change(t *testing.T, w *world.World) *world.Proof {
	t.Helper()
	must(t, w.Exec(t.Context(), "create table if not exists later (n int)", "delete from t where id % 2 = 0"), os.WriteFile(filepath.Join(w.Files, "later"), []byte("later"), 0o600))
	produce(t, w, 200, 210)
	return prove(t, w)
}

// TestFailedRestore breaks something under a restore: it says what, everything is given back, and with the fault gone the
// same restore ends well.
func TestFailedRestore(t *testing.T) {
	w, kafka := newWorldAndBus(t, false)
	s := backup(t, w)
	want := prove(t, w)
	change(t, w)
	other := backup(t, w)
	app, busFile := w.Dump+"/"+s.ID+"_alation_backup.tar.gz", w.Dump+"/"+s.ID+"_alation_eb_backup.tar.gz"
	keep := map[string][]byte{}
	for _, f := range []string{app, busFile} {
		b, err := os.ReadFile(f)
		must(t, err)
		keep[f] = b
	}
	cut := func(f string) func() { return func() { must(t, os.Truncate(f, int64(len(keep[f])/2))) } }
	swap := func(f string) func() {
		return func() {
			b, err := os.ReadFile(strings.ReplaceAll(f, s.ID, other.ID))
			must(t, err, os.WriteFile(f, b, 0o600))
		}
	}
	heal := func() {
		for f, b := range keep {
			must(t, os.WriteFile(f, b, 0o600))
		}
	}
	const nothing, back = "nothing was changed", "what was there before has been given back"
	var free func() error
	for _, c := range []struct {
		name, step  string
		wreck, heal func()
		what, then  string // what may hold several texts, separated by |
		again       bool   // giving back fails as well, and is repeated when the fault is gone
	}{
		{"tarball cut", "restore:unpack", cut(app), heal, "damaged|changed since the plan was made", nothing, false},
		{"tarball swapped", "restore:unpack", swap(app), heal, "changed since the plan was made", nothing, false},
		{"Event Bus tarball cut", "restore:unpack", cut(busFile), heal, "damaged|changed since the plan was made", nothing, false},
		{"Event Bus tarball swapped", "restore:unpack", swap(busFile), heal, "changed since the plan was made", nothing, false},
		{"Event Bus tarball swapped late", "restore:eventbus", swap(busFile), heal, "changed since the plan was made", back, false},
		{"Event Bus tarball cut late", "restore:eventbus", cut(busFile), heal, "damaged|changed since the plan was made", back, false},
		{"WAL lost", "restore:recover", func() {
			dirs, err := filepath.Glob(w.Root + "/data2/tmp/holdfast-restore-*/pgbackrest/archive/*/*/0*")
			if len(dirs) == 0 {
				t.Fatal("there is no WAL in staging")
			}
			for _, d := range dirs {
				err = errors.Join(err, os.RemoveAll(d))
			}
			must(t, err)
		}, func() {}, "not in the archive of stanza rosemeta", back, false},
		{"port taken", "restore:recover", func() {
			var err error
			free, err = w.TakePort(t.Context())
			must(t, err)
		}, func() { must(t, free()) }, "lock file", "holdfast restore --give-back", true},
		{"bus down", "restore:eventbus-load", func() { kafka.down.Store(true) }, func() { kafka.down.Store(false) }, "event bus", "holdfast restore --give-back", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := change(t, w)
			p := paused(t, w, c.step, "holdfast", "restore", "--set", s.ID, "--yes")
			c.wreck()
			out, err := p.Resume()
			failed(t, out, err, 1, append(strings.Split(c.what, "|"), c.then)...)
			t.Log(out.Stderr)
			c.heal()
			if c.again {
				ok(t, w, "holdfast", "restore", "--give-back")
			}
			same(t, "given back", before, prove(t, w))
			leftOvers(t, w)
			restore(t, w, s.ID)
			same(t, "restored with the fault gone", want, prove(t, w))
		})
	}
}

// TestInterruptedRestore ends a restore with Control-C while it loads the event bus, all else being done, on an application
// that has lost a topic: it has lost it afterwards too.
func TestInterruptedRestore(t *testing.T) {
	w := newWorld(t, true)
	s := backup(t, w)
	change(t, w)
	must(t, w.DeleteTopics(t.Context(), "events"))
	before := prove(t, w)
	out, err := paused(t, w, "restore:eventbus-load", "holdfast", "restore", "--set", s.ID, "--yes").Interrupt()
	failed(t, out, err, 130, "interrupted", "what was there before has been given back")
	same(t, "interrupted", before, prove(t, w))
	leftOvers(t, w)
}

// TestMissingPieces: everything that is missing is in one message, and nothing is touched.
func TestMissingPieces(t *testing.T) {
	w := newWorld(t, true)
	s := backup(t, w)
	before := prove(t, w)
	away, err := w.MakeDir("away")
	must(t, err)
	dumped := "/data2/backup/" + s.ID
	ok(t, w, "alation_conf", "alation.backup.restore_file", "-s", dumped+"_alation_backup.tar.gz", "alation.backup.eb_restore_file", "-s", dumped+"_alation_eb_backup.tar.gz")
	segments, err := filepath.Glob(filepath.Join(w.Repo, "archive", world.Stanza, "*", "0*", "0*"))
	if len(segments) < 3 {
		t.Fatalf("WAL %v %v", segments, err)
	}
	catalogue, tarball, events := filepath.Join(w.Root, "data2/holdfast/catalog", s.ID+".json"), w.Dump+"/"+s.ID+"_alation_backup.tar.gz", w.Dump+"/"+s.ID+"_alation_eb_backup.tar.gz"
	wal := segments[len(segments)-1]
	for _, c := range []struct {
		name string
		gone []string
		what []string
	}{
		{"WAL", []string{wal}, []string{filepath.Base(wal)[:24]}},
		{"WAL and event bus", []string{wal, events}, []string{filepath.Base(wal)[:24], filepath.Base(events)}},
		{"WAL, event bus and catalogue", []string{wal, events, catalogue}, []string{filepath.Base(wal)[:24], filepath.Base(events)}},
		{"backup and event bus", []string{filepath.Join(w.Repo, "backup"), events}, []string{"backup.info", filepath.Base(events)}},
		{"both tarballs", []string{tarball, events}, []string{filepath.Base(tarball), filepath.Base(events)}},
		{"both tarballs and WAL", []string{tarball, events, wal}, []string{filepath.Base(tarball), filepath.Base(events), filepath.Base(wal)[:24]}},
		{"all", []string{tarball, events, wal, catalogue}, []string{filepath.Base(tarball), filepath.Base(events)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, f := range c.gone {
				must(t, os.Rename(f, filepath.Join(away, filepath.Base(f))))
			}
			pid, err := os.ReadFile(filepath.Join(w.Data, "postmaster.pid"))
			must(t, err)
			out, err := w.As(t.Context(), "alation_action", "YES\n", "destructive_restore_all")
			failed(t, out, err, 5, append(c.what, "nothing was changed")...)
			t.Log(out.Stderr)
			for _, f := range c.gone {
				must(t, os.Rename(filepath.Join(away, filepath.Base(f)), f))
			}
			now, err := os.ReadFile(filepath.Join(w.Data, "postmaster.pid"))
			if err != nil || string(now) != string(pid) {
				t.Errorf("the server was touched: %q, %q %v", pid, now, err)
			}
			leftOvers(t, w)
		})
	}
	same(t, "nothing was touched", before, prove(t, w))
	if out, err := w.As(t.Context(), "alation_action", "YES\n", "destructive_restore_all"); err != nil {
		t.Fatal(err, out.Stderr)
	}
	same(t, "with everything there", before, prove(t, w))
}
