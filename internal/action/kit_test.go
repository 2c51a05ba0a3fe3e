package action

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/catalog"
	"holdfast/internal/storage"
)

// TestKit: a run's kit is whole, closed to others and known to the set, goes with it, and is never the set's undoing: what keeps it
// from being written is a warning. What a dead run left of one is cleared away.
func TestKit(t *testing.T) {
	w := newWorld(t)
	fail := error(nil)
	var saw, lacks []string
	w.o.Kit = &KitOptions{Seal: func(_ context.Context, run *catalog.Set, sets []*catalog.Set) ([]byte, []string, error) {
		saw = nil
		for _, s := range sets {
			saw = append(saw, s.ID)
		}
		return []byte("sealed for " + run.ID), lacks, fail
	}}
	if err := errors.Join(os.MkdirAll(w.o.DumpDir, 0o755), os.WriteFile(filepath.Join(w.o.DumpDir, hiddenPrefix+"202001010000_1-0"+kitSuffix), []byte("half"), 0o600)); err != nil {
		t.Fatal(err)
	}
	first, err := w.app().BackupAll(t.Context())
	if err != nil || first.Kit == nil || first.Kit.Path != filepath.Join(w.o.DumpDir, first.ID+kitSuffix) {
		t.Fatalf("%v %+v", err, first.Kit)
	}
	b, err := os.ReadFile(first.Kit.Path)
	info, err2 := os.Stat(first.Kit.Path)
	if err := errors.Join(err, err2); err != nil || string(b) != "sealed for "+first.ID || info.Mode() != 0o600 || first.Kit.Size != info.Size() || len(first.Kit.SHA256) != 64 {
		t.Errorf("%v %q %+v", err, b, first.Kit)
	}
	stored, err := w.o.Catalog.Get(t.Context(), first.ID)
	if err != nil || stored.Kit == nil || *stored.Kit != *first.Kit {
		t.Errorf("%v %+v", err, stored)
	}
	fail = errors.New("no key for it")
	second, err := w.app().BackupAll(t.Context())
	if err != nil || second.State != catalog.Complete || second.Kit != nil || len(w.warned) != 1 || !strings.Contains(w.warned[0], "no key for it") || len(saw) != 2 || saw[1] != second.ID {
		t.Errorf("%v %+v %q %v", err, second.Kit, w.warned, saw)
	}
	fail, lacks, w.warned = nil, []string{"a certificate"}, nil
	if third, err := w.app().BackupAll(t.Context()); err != nil || third.Kit == nil || len(w.warned) != 1 || !strings.Contains(w.warned[0], third.ID+" lacks a certificate") {
		t.Errorf("%v %+v %q", err, third.Kit, w.warned)
	} else if err := os.Remove(third.Kit.Path); err != nil {
		t.Error(err)
	}
	plan, err := w.app().PlanDeleteSet(t.Context(), first.ID, false)
	if err == nil {
		err = plan.Run(t.Context())
	}
	if left, gerr := filepath.Glob(filepath.Join(w.o.DumpDir, "*"+kitSuffix)); err != nil || gerr != nil || len(left) > 0 || exists(filepath.Join(w.o.DumpDir, hiddenPrefix+"202001010000_1-0"+kitSuffix)) {
		t.Errorf("%v, left: %v", err, left)
	}
}

// TestKitCancelled: a run that is ended while it writes its kit leaves a complete set and no part of a kit.
func TestKitCancelled(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	w.o.Kit = &KitOptions{Seal: func(context.Context, *catalog.Set, []*catalog.Set) ([]byte, []string, error) {
		cancel()
		return []byte("sealed"), nil, nil
	}}
	set, err := w.app().BackupAll(ctx)
	if !errors.Is(err, context.Canceled) || set.State != catalog.Complete || set.Kit != nil {
		t.Errorf("%v %+v", err, set)
	}
	if left, err := filepath.Glob(filepath.Join(w.o.DumpDir, "*kit*")); err != nil || len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

// TestAppendOnly: credentials that may only add pass the check of the storage, nothing is removed with them, and what is due is named.
func TestAppendOnly(t *testing.T) {
	m := storage.NewMem(nil)
	w := newWorld(t)
	removals := 0
	st := denying{m, &removals}
	open := func() (storage.Storage, error) { return st, nil }
	w.o.Store = &StoreOptions{Name: "far", Tarballs: true, ProcessMax: 1, KeepSets: 1, AppendOnly: true, OpenRepo: open, OpenSets: open}
	for range 2 {
		if err := w.app().CheckStore(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if names := m.Names(); len(names) != 1 {
		t.Errorf("the checks left %v", names)
	}
	w.backup()
	first := w.only()
	w.backup()
	plan, err := w.app().PlanDeleteSet(t.Context(), first.ID, false)
	if err == nil {
		err = plan.Run(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	removals = 0
	res, err := w.app().CopySets(t.Context())
	if err != nil || len(res.Warnings) > 0 || len(res.Removed) > 0 || len(res.Due) != 1 || res.Due[0] != first.ID || removals != 0 {
		t.Errorf("%v %+v, %d removals", err, res, removals)
	}
	due, err := w.app().PlanExpireStore(t.Context())
	if err != nil || len(due.Sets) != 1 || len(due.Backups) != 0 {
		t.Fatalf("%v %+v", err, due)
	}
	if _, err := due.Run(t.Context()); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("with these credentials: %v", err)
	}
	other := func() (storage.Storage, error) { return m, nil }
	w.o.Store.OpenRepo, w.o.Store.OpenSets = other, other
	if due, err = w.app().PlanExpireStore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if removed, err := due.Run(t.Context()); err != nil || len(removed) != 1 {
		t.Errorf("with others: %v %v", removed, err)
	}
	if sets, _, err := w.app().StoreSets(t.Context()); err != nil || len(sets) != 1 || sets[0].ID == first.ID {
		t.Errorf("%v %v", sets, err)
	}
	w.o.Store.AppendOnly = false
	w.o.Store.OpenRepo, w.o.Store.OpenSets = open, open
	if err := w.app().CheckStore(t.Context()); err == nil || !strings.Contains(err.Error(), "nothing can be removed") {
		t.Errorf("where removing is wanted: %v", err)
	}
}

// denying is a storage whose credentials may not remove.
type denying struct {
	storage.Storage
	n *int
}

func (d denying) Remove(context.Context, ...string) error {
	*d.n++
	return &fs.PathError{Op: "remove", Path: "x", Err: fs.ErrPermission}
}
