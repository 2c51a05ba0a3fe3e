package action

import (
	"testing"
	"time"

	"holdfast/internal/storage"
)

// TestTarRepoStat: an object that nobody writes keeps its time. A backup knows by size and time that its unfinished manifest is
// still its own, and one of more than a gigabyte looks.
func TestTarRepoStat(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	tick := func() time.Time {
		now = now.Add(time.Second)
		return now
	}
	r := newTarRepo(storage.NewMem(nil), nil, t.TempDir(), tick)
	const name = "backup/demo/20261129-120000F/backup.manifest.copy"
	stat := func() storage.Info {
		t.Helper()
		in, err := r.Stat(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return in
	}
	write := func(text string) {
		t.Helper()
		if err := storage.WriteAll(t.Context(), r, name, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	first := stat()
	if second := stat(); first != second {
		t.Errorf("nobody wrote, and %+v became %+v", first, second)
	}
	write("two")
	if later := stat(); !later.ModTime.After(first.ModTime) {
		t.Errorf("written again at %v, after %v", later.ModTime, first.ModTime)
	}
}
