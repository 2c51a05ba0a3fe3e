package action

import (
	"os"
	"path/filepath"
	"testing"
	"time"

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
	j := &journal{Run: "1", State: journalMoving, Moves: []move{{From: created}, {From: replaced, Aside: aside}}, Bus: &busJournal{Dump: filepath.Join(dir, "gone")}}
	if err := a.writeJournal(j); err != nil {
		t.Fatal(err)
	}
	if err := a.giveBack(t.Context(), j); err == nil {
		t.Fatal("gave back to a bus that is not there")
	}
	if _, err := os.Stat(created); !os.IsNotExist(err) {
		t.Fatalf("what the restore made stands: %v", err)
	}
	if err := os.Mkdir(created, 0o700); err != nil { // somebody goes on working
		t.Fatal(err)
	}
	again, err := a.readJournal()
	if err != nil || again == nil {
		t.Fatalf("the journal is gone: %v", err)
	}
	o.Bus = nil
	if err := New(o).giveBack(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{created, replaced} {
		if _, err := os.Stat(d); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(o.JournalPath); !os.IsNotExist(err) {
		t.Errorf("the journal stands: %v", err)
	}
}
