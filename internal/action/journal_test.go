package action

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"holdfast/internal/engine"
	"holdfast/internal/eventbus"
)

// TestGiveBackTwice: a give-back that failed at the event bus is repeated without undoing again what is back already.
func TestGiveBackTwice(t *testing.T) {
	dir := t.TempDir()
	created, replaced := filepath.Join(dir, "created"), filepath.Join(dir, "replaced")
	aside := replaced + asideMark + "1"
	for _, d := range []string{created, replaced, aside} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{JournalPath: filepath.Join(dir, "restore.json"), Bus: &eventbus.Options{Brokers: []string{"127.0.0.1:1"}, Timeout: time.Second}}
	a := New(o)
	j := &journal{Run: "1", State: journalMoving, Moves: []move{{From: created}, {From: replaced, Aside: aside}}, Bus: &busJournal{Creates: []string{"never"}}}
	if err := a.writeJournal(j); err != nil {
		t.Fatal(err)
	}
	if err := a.giveBack(t.Context(), j, false); err == nil {
		t.Fatal("gave back to a bus that is not there")
	}
	if exists(created) {
		t.Fatal("what the restore made stands")
	}
	if err := os.Mkdir(created, 0o700); err != nil { // somebody goes on working
		t.Fatal(err)
	}
	again, err := a.readJournal()
	if err != nil || again == nil {
		t.Fatalf("the journal is gone: %v", err)
	}
	o.Bus = nil
	if err := New(o).giveBack(t.Context(), again, false); err == nil || !strings.Contains(err.Error(), "never") || !exists(o.JournalPath) {
		t.Errorf("the topics are forgotten without a bus: %v", err)
	}
	kafka, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer kafka.Close()
	o.Bus = &eventbus.Options{Brokers: kafka.ListenAddrs()}
	if err := New(o).giveBack(t.Context(), again, false); err != nil {
		t.Fatal(err)
	}
	if !exists(created) || !exists(replaced) {
		t.Error("the second give-back undid what was back")
	}
	if exists(o.JournalPath) {
		t.Error("the journal stands")
	}
}

// TestUndoRemovesOnlyItsOwn: the process that restored removes what it made; a later one renames it: it may have become
// somebody's.
func TestUndoRemovesOnlyItsOwn(t *testing.T) {
	for name, c := range map[string]struct{ own, aside, from bool }{
		"own, something was there":      {true, true, true},
		"own, nothing was there":        {true, false, true},
		"later, something was there":    {false, true, true},
		"later, nothing was there":      {false, false, true},
		"later, new was never in place": {false, true, false},
		"later, nothing at all":         {false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			from := filepath.Join(dir, "data")
			m := move{From: from, Tree: true}
			make := func(path, text string) error {
				return errors.Join(os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "f"), []byte(text), 0o600))
			}
			var err error
			if c.aside {
				m.Aside = from + asideMark + "1"
				err = make(m.Aside, "old")
			}
			if c.from {
				err = errors.Join(err, make(from, "new"))
			}
			if err = errors.Join(err, make(from+undoneMark+"1", "of an earlier undo"), make(from+newMark+"1", "half filled")); err != nil {
				t.Fatal(err)
			}
			logs := from
			if !c.aside {
				logs = dir
			}
			var warned []string
			a := New(Options{JournalPath: filepath.Join(dir, "j"), Events: func(e engine.Event) {
				if w, ok := e.(engine.Warning); ok {
					warned = append(warned, w.Text)
					_ = os.MkdirAll(filepath.Join(logs, "logs"), 0o700) // as the run's log does, which may lie in the tree
				}
			}})
			j := &journal{Run: "1", State: journalMoving, Moves: []move{m}}
			if err := a.giveBack(t.Context(), j, c.own); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(filepath.Join(from, "f"))
			if c.aside && string(b) != "old" || !c.aside && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("in its place is %q, %v", b, err)
			}
			if exists(from + newMark + "1") {
				t.Error("what the restore had half filled is still there")
			}
			kept := from + undoneMark + "1-2"
			b, _ = os.ReadFile(filepath.Join(kept, "f"))
			if renamed := !c.own && c.from; renamed != (string(b) == "new") || renamed != strings.Contains(strings.Join(warned, "\n"), kept) {
				t.Errorf("kept aside: %q; said: %q", b, warned)
			}
		})
	}
}

// TestMountPoints reads the kernel's list, escapes included.
func TestMountPoints(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mountinfo")
	text := "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n36 22 8:2 / /data\\0401/x\\134y rw - xfs /dev/sdb rw\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := mountPoints(path)
	if err != nil || strings.Join(got, "|") != `/|/data 1/x\y` {
		t.Errorf("%q %v", got, err)
	}
	own, err := mountPoints("/proc/self/mountinfo")
	if err != nil || len(own) == 0 {
		t.Errorf("this host: %q %v", own, err)
	}
	p := &RestorePlan{Replaces: []string{"/", t.TempDir()}}
	p.mounts()
	// In a chroot the root need not be a mount point.
	if all := strings.Join(p.Missing, "\n"); strings.Contains(all, "/ is a mount point") != slices.Contains(own, "/") || !strings.Contains(all, "/proc is mounted inside /,") {
		t.Errorf("replacing the root: %q", all)
	}
}
