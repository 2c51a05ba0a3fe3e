package action

import (
	"context"
	"errors"
	"strings"
	"testing"

	"holdfast/internal/storage"
)

// away is a storage that answers nothing, and counts how often it was waited for.
type away struct {
	*storage.Mem
	asked int
}

var errAway = storage.Temporary(errors.New("503 SlowDown"))

func (a *away) Stat(context.Context, string) (storage.Info, error) {
	a.asked++
	return storage.Info{}, errAway
}

// TestStoreAwayOnce: a storage that is away costs a run the time of one vain request, which may be minutes, and not one for each of
// tarballs and clusters.
func TestStoreAwayOnce(t *testing.T) {
	w := newWorld(t)
	w.backup()
	gone := &away{Mem: storage.NewMem(nil)}
	opened := 0
	w.o.Store = &StoreOptions{Name: "far", Postgres: true, Tarballs: true, ProcessMax: 1, OpenSets: func() (storage.Storage, error) { return gone, nil },
		OpenRepo: func() (storage.Storage, error) { opened++; return gone, nil }}
	res, err := w.app().CopySets(t.Context())
	if err != nil || gone.asked != 1 || opened > 0 {
		t.Errorf("waited for %d times, opened %d times: %v", gone.asked, opened, err)
	}
	if all := strings.Join(res.Warnings, "\n"); !strings.Contains(all, "the tarballs of set") || !strings.Contains(all, "the copy on far is behind") || strings.Count(all, "503 SlowDown") != 2 {
		t.Errorf("it says\n%s", all)
	}
}
