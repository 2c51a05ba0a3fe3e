package action

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"holdfast/internal/catalog"
)

// TestFailingRestoreGivesBack: whatever makes a restore fail, everything is as it was, and without the fault it ends right.
func TestFailingRestoreGivesBack(t *testing.T) {
	swap := func(from, to string) error {
		b, err := os.ReadFile(from)
		return errors.Join(err, os.WriteFile(to, b, 0o600))
	}
	for name, c := range map[string]struct {
		step  string // the fault happens there; empty: before Run
		fault func(w *world, o, other RestoreOptions, cancel func()) error
		want  string
	}{
		"application tarball of another set": {"", func(_ *world, o, other RestoreOptions, _ func()) error { return swap(other.RestoreFile, o.RestoreFile) }, "changed since the plan"},
		"bus tarball of another set": {"", func(_ *world, o, other RestoreOptions, _ func()) error {
			return swap(other.EBRestoreFile, o.EBRestoreFile)
		}, "changed since the plan"},
		"application tarball truncated":           {"", func(_ *world, o, _ RestoreOptions, _ func()) error { return os.Truncate(o.RestoreFile, 2000) }, "backup.tar.gz changed since the plan was made"},
		"bus tarball truncated":                   {"", func(_ *world, o, _ RestoreOptions, _ func()) error { return os.Truncate(o.EBRestoreFile, 200) }, "backup.tar.gz changed since the plan was made"},
		"bus tarball truncated before it is read": {"restore:eventbus", func(_ *world, o, _ RestoreOptions, _ func()) error { return os.Truncate(o.EBRestoreFile, 200) }, "backup.tar.gz changed since the plan was made"},
		"tarball gone":                            {"restore:unpack", func(_ *world, o, _ RestoreOptions, _ func()) error { return os.Remove(o.RestoreFile) }, "no such file"},
		"bus tarball gone":                        {"restore:swap-files", func(_ *world, o, _ RestoreOptions, _ func()) error { return os.Remove(o.EBRestoreFile) }, "no such file"},
		"a file in the way": {"restore:swap-files", func(w *world, _, _ RestoreOptions, _ func()) error {
			return os.WriteFile(w.path("srv/more.holdfast-replaced-1abcdef01"), nil, 0o600)
		}, "is there already"},
		"cancelled while unpacking":  {"restore:unpack", func(_ *world, _, _ RestoreOptions, cancel func()) error { cancel(); return nil }, "context canceled"},
		"cancelled before the files": {"restore:swap-files", func(_ *world, _, _ RestoreOptions, cancel func()) error { cancel(); return nil }, "context canceled"},
		"cancelled before the copy":  {"restore:eventbus-keep", func(_ *world, _, _ RestoreOptions, cancel func()) error { cancel(); return nil }, "context canceled"},
		"cancelled before the load":  {"restore:eventbus-load", func(_ *world, _, _ RestoreOptions, cancel func()) error { cancel(); return nil }, "context canceled"},
		"journal can't be written at the end": {"restore:commit", func(w *world, _, _ RestoreOptions, _ func()) error {
			return errors.Join(os.Rename(w.o.JournalPath, w.o.JournalPath+".aside"), os.Mkdir(w.o.JournalPath, 0o700))
		}, "restore journal"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			want := w.state()
			o := w.backup()
			w.produce("events", "3")
			other := w.backup()
			good, goodBus := o.RestoreFile+".good", o.EBRestoreFile+".good"
			if err := errors.Join(swap(o.RestoreFile, good), swap(o.EBRestoreFile, goodBus)); err != nil {
				t.Fatal(err)
			}
			w.write("srv/app/later", "later")
			w.write("srv/app/cache/x", "not in any set")
			before := w.state()
			plan := w.plan(o)
			if len(plan.Missing) > 0 {
				t.Fatalf("plan: %q", plan.Missing)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			act := func() {
				if err := c.fault(w, o, other, cancel); err != nil {
					t.Error(err)
				}
				delete(w.at, c.step)
			}
			journalInTheWay := strings.HasPrefix(name, "journal")
			if w.at[c.step] = act; c.step == "" {
				act()
			}
			if journalInTheWay {
				w.at["restore:give-back"] = func() {
					if err := errors.Join(os.Remove(w.o.JournalPath), os.Rename(w.o.JournalPath+".aside", w.o.JournalPath)); err != nil {
						t.Error(err)
					}
				}
			}
			if _, err := plan.Run(ctx); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("want %q, got %v", c.want, err)
			} else if strings.Contains(name, "truncated") && !strings.Contains(err.Error(), "damaged") {
				t.Errorf("the damage is not told: %v", err)
			}
			if w.imported > 0 {
				t.Error("the parameters were taken over by a restore that failed")
			}
			if err := os.RemoveAll(w.path("srv/more.holdfast-replaced-1abcdef01")); err != nil {
				t.Error(err)
			}
			w.same("after the failure", before)
			if err := errors.Join(os.Rename(good, o.RestoreFile), os.Rename(goodBus, o.EBRestoreFile)); err != nil {
				t.Fatal(err)
			}
			if res := w.restore(o); len(res.Params) != 1 || w.imported != 1 {
				t.Errorf("parameters %q, taken over %d times", res.Params, w.imported)
			}
			if err := os.RemoveAll(w.path("srv/app/cache")); err != nil {
				t.Error(err)
			}
			w.same("restored", want)
		})
	}
}

// TestBusAway: a bus that goes away in the middle keeps what it held in a copy; giving back goes on when it is there again.
func TestBusAway(t *testing.T) {
	w := newWorld(t)
	o := w.backup()
	w.write("srv/app/later", "later")
	plan := w.plan(o)
	w.kafka.Close()
	if _, err := plan.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "event bus") || !strings.Contains(err.Error(), "given back") {
		t.Fatalf("the bus is away: %v", err)
	}
	if b, err := os.ReadFile(w.path("srv/app/later")); err != nil || string(b) != "later" {
		t.Errorf("files are not back: %q %v", b, err)
	}
	if exists(w.o.JournalPath) {
		t.Error("the bus had not been touched: the journal could go")
	}
	missing := strings.Join(w.plan(o).Missing, "\n")
	if !strings.Contains(missing, "event bus") {
		t.Errorf("a plan without a bus: %q", missing)
	}
}

// TestProducersDuringRestore: what is produced after the copy is copied again, and never deleted without being in a copy.
func TestProducersDuringRestore(t *testing.T) {
	w := newWorld(t)
	o := w.backup()
	want := w.state()
	loads := 0
	w.at["restore:eventbus-load"] = func() { loads++; w.produce("events", "late") }
	_, err := w.plan(o).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "stop the producers") || loads != keepTries {
		t.Fatalf("%d loads: %v", loads, err)
	}
	w.same("producers go on", strings.Replace(want, "events/0 ends at 2", "events/0 2: late\nevents/0 3: late\nevents/0 4: late\nevents/0 ends at 5", 1))
	w.at["restore:eventbus-load"] = func() {
		delete(w.at, "restore:eventbus-load")
		w.produce("events", "once")
	}
	w.restore(o)
	w.same("after one more copy", want)
}

// TestProducerMakesATopic: a topic that somebody made after the last copy is not the restore's to delete.
func TestProducerMakesATopic(t *testing.T) {
	w := newWorld(t)
	w.produce("second", "x")
	o := w.backup()
	w.deleteTopic("second")
	loads := 0
	w.at["restore:eventbus-load"] = func() {
		if loads++; loads < keepTries {
			w.produce("events", "late")
			return
		}
		w.produce("second", "made meanwhile")
	}
	if _, err := w.plan(o).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "stop the producers") {
		t.Fatal(err)
	}
	if all := w.topics(); !strings.Contains(all, "second/0 0: made meanwhile") || !strings.Contains(all, "events/0 3: late") {
		t.Errorf("after the refusal:\n%s", all)
	}
}

// TestGiveBackLeavesTopicsAlone: a run that died before it deleted a topic had not touched it; what came since stays.
func TestGiveBackLeavesTopicsAlone(t *testing.T) {
	w := newWorld(t)
	o := w.backup()
	died := filepath.Join(t.TempDir(), "copy")
	var j *journal
	ctx, cancel := context.WithCancel(t.Context())
	w.at["restore:eventbus-load"] = func() {
		cancel()
		var err error
		if j, err = w.app().readJournal(); err != nil || j.Bus == nil {
			t.Fatalf("the journal does not tell of the bus: %+v %v", j, err)
		}
		if err := os.CopyFS(died, os.DirFS(j.Bus.Dump)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.plan(o).Run(ctx); err == nil {
		t.Fatal("it did not fail")
	}
	j.Moves, j.Bus.Dump = nil, died
	if err := w.app().writeJournal(j); err != nil {
		t.Fatal(err)
	}
	w.produce("events", "since")
	before := w.state()
	if done, err := w.app().GiveBack(t.Context()); err != nil || !done {
		t.Fatalf("give back: %t %v", done, err)
	}
	w.same("given back", before)
	w.deleteTopic("events")
	if err := w.app().writeJournal(j); err != nil {
		t.Fatal(err)
	}
	if _, err := w.app().GiveBack(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.same("given back where it is gone", strings.Replace(before, "events/0 2: since\nevents/0 ends at 3", "events/0 ends at 2", 1))
}

// TestTopicsOfTheRestoreAreDeleted: a failing restore leaves no topic that was not there, and keeps those made since the plan.
func TestTopicsOfTheRestoreAreDeleted(t *testing.T) {
	w := newWorld(t)
	w.produce("second", "x")
	o := w.backup()
	w.deleteTopic("events")
	w.deleteTopic("second")
	plan := w.plan(o)
	if len(plan.Topics) > 0 {
		t.Fatalf("topics of the plan: %q", plan.Topics)
	}
	w.produce("second", "since the plan")
	before := w.state()
	ctx, cancel := context.WithCancel(t.Context())
	w.at["restore:commit"] = cancel
	// The step comes after the look at the context; the write of the journal is made to fail too.
	if err := os.MkdirAll(filepath.Dir(w.o.JournalPath), 0o755); err != nil {
		t.Fatal(err)
	}
	w.at["restore:commit"] = func() {
		cancel()
		if err := errors.Join(os.Rename(w.o.JournalPath, w.o.JournalPath+".aside"), os.Mkdir(w.o.JournalPath, 0o700)); err != nil {
			t.Error(err)
		}
	}
	w.at["restore:give-back"] = func() {
		if err := errors.Join(os.Remove(w.o.JournalPath), os.Rename(w.o.JournalPath+".aside", w.o.JournalPath)); err != nil {
			t.Error(err)
		}
	}
	if _, err := plan.Run(ctx); err == nil {
		t.Fatal("it did not fail")
	}
	w.same("given back", before)
}

// TestPlanListsAll: everything that stands in the way is in one list.
func TestPlanListsAll(t *testing.T) {
	w := newWorld(t)
	o, other := w.backup(), w.backup()
	set := w.plan(o).Set
	known, err := w.o.Catalog.Get(t.Context(), set.ID)
	if err != nil {
		t.Fatal(err)
	}
	known.Recovery.Files.IndexSHA256 = strings.Repeat("0", 64)
	known.Pieces[0].SHA256 = strings.Repeat("1", 64)
	known.State, known.Error = catalog.Failed, "the disk was full"
	if err := w.o.Catalog.Put(t.Context(), known); err != nil {
		t.Fatal(err)
	}
	before := w.state()
	good := w.o
	w.o.Files.Trees = []catalog.Tree{{Name: "app", Path: "srv/app"}, {Name: "other", Path: "srv/other"}}
	w.o.Files.SkipDirs = []string{w.path("srv/app/inside")}
	w.o.Bus = nil
	p := w.plan(o)
	want := []string{"eventbus.enabled", "alation_conf files.paths -s /srv/app,/srv/other,/srv/more", "srv/app/inside lies inside", "the disk was full", "an index of files", "the catalogue says " + strings.Repeat("1", 64)}
	all := strings.Join(p.Missing, "\n")
	for _, text := range want {
		if !strings.Contains(all, text) {
			t.Errorf("not listed: %q in\n%s", text, all)
		}
	}
	if _, err := p.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "nothing was changed") || !strings.Contains(err.Error(), p.Missing[len(p.Missing)-1]) {
		t.Errorf("Run of a plan with missing pieces: %v", err)
	}
	w.o = good
	if p := w.plan(RestoreOptions{RestoreFile: other.RestoreFile}); len(p.Missing) > 0 || len(p.From) != 2 || p.From[1].Path != other.EBRestoreFile {
		t.Errorf("the Event Bus tarball beside is not found: %q %v", p.Missing, p.From)
	}
	alone := filepath.Join(t.TempDir(), "app.tar.gz")
	if err := os.Link(o.RestoreFile, alone); err != nil {
		t.Fatal(err)
	}
	for want, o := range map[string]RestoreOptions{
		"alation.backup.restore_file":    {EBRestoreFile: o.EBRestoreFile},
		"alation.backup.eb_restore_file": {RestoreFile: alone},
		"different runs":                 {RestoreFile: o.RestoreFile, EBRestoreFile: other.EBRestoreFile},
		"holds the eventbus":             {RestoreFile: o.EBRestoreFile, EBRestoreFile: o.EBRestoreFile},
		"holds the application":          {RestoreFile: o.RestoreFile, EBRestoreFile: o.RestoreFile},
		"no such file":                   {RestoreFile: o.RestoreFile + "x", EBRestoreFile: o.EBRestoreFile + "x"},
	} {
		if all := strings.Join(w.plan(o).Missing, "\n"); !strings.Contains(all, want) {
			t.Errorf("%+v: %q is not in\n%s", o, want, all)
		}
	}
	w.same("planning", before)
}

// TestExcludedFilesStay: what files.exclude names is in no set and is not lost either; what the set brought wins.
func TestExcludedFilesStay(t *testing.T) {
	w := newWorld(t)
	outside := t.TempDir()
	exclude := w.o.Files.Exclude
	w.o.Files.Exclude = nil // at the time of the backup
	w.write("srv/app/cache/both", "of the set")
	w.write("srv/app/set.tmp", "of the set")
	if err := os.Symlink(outside, w.path("srv/app/link")); err != nil {
		t.Fatal(err)
	}
	o := w.backup()
	w.o.Files.Exclude = exclude
	if err := os.Remove(w.path("srv/app/link")); err != nil {
		t.Fatal(err)
	}
	w.write("srv/app/link/x.tmp", "must not leave the tree")
	w.write("srv/app/cache/both", "later")
	w.write("srv/app/set.tmp", "later")
	w.write("srv/app/cache/deep/x", "cached")
	w.write("srv/app/sub/y.tmp", "temporary")
	w.write("srv/app/new/z.tmp", "in a directory of its own")
	w.write("srv/app/new/lost", "later")
	w.write("srv/more/c", "changed")
	p := w.plan(o)
	if notes := strings.Join(p.Notes, "\n"); !strings.Contains(notes, "cache/**, **/*.tmp") {
		t.Errorf("the plan does not say what stays: %q", notes)
	}
	if _, err := p.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for rel, want := range map[string]string{"srv/app/cache/deep/x": "cached", "srv/app/cache/both": "of the set", "srv/app/set.tmp": "of the set", "srv/app/sub/y.tmp": "temporary", "srv/app/new/z.tmp": "in a directory of its own", "srv/more/c": "three"} {
		if b, err := os.ReadFile(w.path(rel)); err != nil || string(b) != want {
			t.Errorf("%s: %q %v", rel, b, err)
		}
	}
	if exists(w.path("srv/app/new/lost")) {
		t.Error("a file that is not excluded survived")
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 || !strings.Contains(strings.Join(w.warned, "\n"), "link/x.tmp") {
		t.Errorf("through the set's link came %v %v; said %q", left, err, w.warned)
	}
	entries, err := os.ReadDir(w.path("srv"))
	if err != nil || len(entries) != 2 {
		t.Errorf("left over: %v %v", entries, err)
	}
}

// TestCommittedRestoreIsFinished: a restore that died after it was committed is finished by whatever comes next, and a backup
// does not call it interrupted.
func TestCommittedRestoreIsFinished(t *testing.T) {
	for _, keep := range []bool{false, true} {
		w := newWorld(t)
		aside := w.path("srv/app") + asideMark + "7"
		w.write("srv/app"+asideMark+"7/cache/x", "cached")
		j := &journal{Run: "7", Set: "202611220400_1-0", State: journalCommitted, Keep: keep, Params: w.o.TempDir,
			Moves: []move{{From: w.path("srv/app"), Aside: aside, Tree: true}, {From: w.path("srv/more"), Tree: true}}}
		if err := errors.Join(os.MkdirAll(filepath.Dir(w.o.JournalPath), 0o755), w.app().writeJournal(j)); err != nil {
			t.Fatal(err)
		}
		plan, err := w.app().PlanBackupAll(t.Context())
		if err != nil || len(plan.WhatIsWrong) > 0 || len(plan.Unfinished) != 1 {
			t.Errorf("plan: %+v %v", plan, err)
		}
		if !exists(aside) {
			t.Error("planning removed something")
		}
		w.backup()
		if exists(aside) != keep || exists(w.o.JournalPath) || w.imported != 1 || !exists(w.path("srv/more/c")) {
			t.Errorf("keep %t: aside there %t, journal %t, parameters taken over %d times", keep, exists(aside), exists(w.o.JournalPath), w.imported)
		}
		if b, err := os.ReadFile(w.path("srv/app/cache/x")); err != nil || string(b) != "cached" {
			t.Errorf("excluded file: %q %v", b, err)
		}
		j.State = journalMoving
		if err := w.app().writeJournal(j); err != nil {
			t.Fatal(err)
		}
		if _, err := w.app().BackupAll(t.Context()); err == nil || !strings.Contains(err.Error(), "holdfast restore --give-back") {
			t.Errorf("a backup over an interrupted restore: %v", err)
		}
		if plan, err := w.app().PlanBackupAll(t.Context()); err != nil || len(plan.WhatIsWrong) != 1 {
			t.Errorf("plan over an interrupted restore: %+v %v", plan, err)
		}
	}
}

// TestTreeDir: a set decides neither that this host's directories are replaced, nor which.
func TestTreeDir(t *testing.T) {
	a := New(Options{Root: "/", Files: FilesOptions{Trees: []catalog.Tree{{Name: "a", Path: "srv/app"}}, Absent: []string{"opt/site"}}})
	for path, want := range map[string]string{"srv/app": "/srv/app", "/srv/app": "/srv/app", "opt/site": "/opt/site", "etc": "", "srv": "", "srv/app/x": "", "": "", ".": "", "../etc": "", "srv/../etc": "", "srv/app/../../etc": ""} {
		got, err := a.treeDir(catalog.Tree{Name: "x", Path: path})
		if got != want || (err == nil) != (want != "") || err != nil && !strings.Contains(err.Error(), "files.paths") {
			t.Errorf("%q goes to %q, %v", path, got, err)
		}
	}
}

// TestCraftedIndexIsRefused: the set in the tarball and the index beside it must be of one make.
func TestCraftedIndexIsRefused(t *testing.T) {
	w := newWorld(t)
	o := w.backup()
	p := w.plan(o)
	p.Set.Recovery.Files.IndexSHA256 = strings.Repeat("a", 64)
	before := w.state()
	if _, err := p.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "index has the SHA-256") {
		t.Errorf("another index: %v", err)
	}
	w.same("refused", before)
	if b, err := json.Marshal(p); err != nil || !strings.Contains(string(b), `"replaces":[`) {
		t.Errorf("plan as JSON: %s %v", b, err)
	}
}

// TestBusFailsInTheMiddle: topics are deleted, the new ones can't be made, and giving back fails for the same reason: the copy
// is kept until a give-back that works.
func TestBusFailsInTheMiddle(t *testing.T) {
	w := newWorld(t)
	w.produce("gone-later", "x")
	o := w.backup()
	w.write("srv/app/later", "later")
	w.produce("events", "3")
	before := w.state()
	full := atomic.Bool{}
	w.at["restore:eventbus-load"] = func() { full.Store(true) }
	w.kafka.ControlKey(int16(kmsg.CreateTopics), func(req kmsg.Request) (kmsg.Response, error, bool) {
		w.kafka.KeepControl()
		create, ok := req.(*kmsg.CreateTopicsRequest)
		if !ok || !full.Load() {
			return nil, nil, false
		}
		resp, _ := create.ResponseKind().(*kmsg.CreateTopicsResponse)
		for _, topic := range create.Topics {
			r := kmsg.NewCreateTopicsResponseTopic()
			r.Topic, r.ErrorCode = topic.Topic, kerr.PolicyViolation.Code
			resp.Topics = append(resp.Topics, r)
		}
		return resp, nil, true
	})
	_, err := w.plan(o).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "the event bus is not") || !strings.Contains(err.Error(), "holdfast restore --give-back") {
		t.Fatalf("no topic can be made: %v", err)
	}
	if b, err := os.ReadFile(w.path("srv/app/later")); err != nil || string(b) != "later" {
		t.Errorf("files are not back: %q %v", b, err)
	}
	if done, err := w.app().GiveBack(t.Context()); err == nil || done && !exists(w.o.JournalPath) {
		t.Errorf("given back to a bus that refuses: %t %v", done, err)
	}
	full.Store(false)
	delete(w.at, "restore:eventbus-load")
	if done, err := w.app().GiveBack(t.Context()); err != nil || !done {
		t.Fatalf("give back: %t %v", done, err)
	}
	w.same("given back", before)
	w.restore(o)
}
