package action

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/test/tally"
)

// TestCheckStore: the check says what the storage does not permit, and leaves nothing behind where it may remove.
func TestCheckStore(t *testing.T) {
	for op, want := range map[storage.Op]string{"": "", storage.OpCreate: "can't be written to", storage.OpCommit: "can't be written to", storage.OpOpen: "can't be read",
		storage.OpRead: "can't be read", storage.OpList: "can't be listed", storage.OpRemove: "nothing can be removed"} {
		m := storage.NewMem(nil)
		var st storage.Storage = m
		if op != "" {
			var err error
			if st, err = storage.NewFaulty(m, storage.Fault{Op: op, Kind: storage.FailBefore}); err != nil {
				t.Fatal(err)
			}
		}
		open := func() (storage.Storage, error) { return st, nil }
		err := New(Options{Store: &StoreOptions{Name: "far", OpenRepo: open, OpenSets: open}}).CheckStore(t.Context())
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "external storage far")) {
			t.Errorf("%s: %v", op, err)
		}
		if left := m.Names(); op != storage.OpRemove && len(left) > 0 {
			t.Errorf("%s: %v is left", op, left)
		}
	}
	if err := New(Options{}).CheckStore(t.Context()); !errors.Is(err, ErrNoStore) {
		t.Errorf("without a store: %v", err)
	}
}

// TestTarballCopies breaks the copy of a set's tarballs off at every call to the storage, in every way. The run is never the worse
// for it; what is listed as there is whole; the next round completes it, and what is fetched is what the run wrote.
func TestTarballCopies(t *testing.T) {
	tested := 0
	for _, pass := range []repo.Secret{"", "sesame"} {
		w := newWorld(t)
		w.o.RepoPass = pass
		w.o.Kit = &KitOptions{Seal: func(_ context.Context, run *catalog.Set, sets []*catalog.Set) ([]byte, []string, error) {
			if len(sets) != 1 || sets[0].ID != run.ID {
				t.Errorf("the kit of %s lists %d sets", run.ID, len(sets))
			}
			return []byte("sealed"), nil, nil
		}}
		base := w.backup()
		set := w.only()
		for _, kind := range []storage.FaultKind{storage.FailBefore, storage.FailAfter, storage.Cancel, storage.Die} {
			for n := 1; ; n++ {
				m := storage.NewMem(nil)
				ctx, cancel := context.WithCancel(t.Context())
				faulty, err := storage.NewFaulty(m, storage.Fault{Nth: n, Kind: kind, Cancel: cancel})
				if err != nil {
					t.Fatal(err)
				}
				st := storage.Storage(faulty)
				w.o.Store = &StoreOptions{Name: "far", Tarballs: true, ProcessMax: 1, OpenSets: func() (storage.Storage, error) { return st, nil }}
				w.forget(set.ID)
				res, err := w.app().CopySets(ctx)
				cancel()
				if !faulty.Fired() {
					if err != nil || len(res.Warnings) > 0 {
						t.Fatalf("%v %+v", err, res)
					}
					break
				}
				tested++
				if kind != storage.Cancel && err != nil {
					t.Errorf("%s at call %d: %v", kind, n, err)
				}
				st = m
				if sets, damaged, err := w.app().StoreSets(t.Context()); err != nil || len(damaged) > 0 || len(sets) > 1 {
					t.Errorf("%s at call %d: %v %v", kind, n, damaged, err)
				} else if len(sets) == 1 {
					w.fetches(set, base)
				}
				if res, err = w.app().CopySets(t.Context()); err != nil || len(res.Warnings) > 0 {
					t.Errorf("%s at call %d, second round: %v %+v", kind, n, err, res)
				}
				w.fetches(set, base)
				if b, err := storage.ReadAll(t.Context(), m, set.ID+"/"+set.ID+kitSuffix, 1<<10); err != nil || string(b) != "sealed" { // as it is, also with a passphrase
					t.Errorf("%s at call %d: the recovery kit there is %q, %v", kind, n, b, err)
				}
				if t.Failed() {
					return
				}
			}
		}
	}
	tally.Count(t, "fault positions of copies to external storage", tested)
}

// TestStoreAway: a storage that is away, for all calls or for one, is no damage to a set on it.
func TestStoreAway(t *testing.T) {
	w := newWorld(t)
	w.backup()
	m := storage.NewMem(nil)
	var st storage.Storage = m
	open := func() (storage.Storage, error) { return st, nil }
	w.o.Store = &StoreOptions{Name: "far", Tarballs: true, ProcessMax: 1, OpenSets: open, OpenRepo: open}
	if res, err := w.app().CopySets(t.Context()); err != nil || len(res.Warnings) > 0 {
		t.Fatalf("%v %+v", err, res)
	}
	away := storage.Temporary(errors.New("503 SlowDown"))
	for n := 1; ; n++ {
		faulty, err := storage.NewFaulty(m, storage.Fault{Nth: n, Err: away})
		if err != nil {
			t.Fatal(err)
		}
		st = faulty
		sets, damaged, err := w.app().StoreSets(t.Context())
		if !faulty.Fired() {
			if err != nil || len(sets) != 1 || n < 3 {
				t.Fatalf("%d calls, %d sets, %v", n, len(sets), err)
			}
			break
		}
		if !errors.Is(err, storage.ErrUnavailable) || len(damaged) > 0 {
			t.Errorf("list, call %d: %v %v", n, damaged, err)
		}
	}
	var err error
	if st, err = storage.NewFaulty(m, storage.Fault{Err: away, Nth: 1}); err != nil {
		t.Fatal(err)
	}
	if found, err := w.app().verifyBackup(t.Context(), "far", "demo", "20260101-000000F"); !errors.Is(err, storage.ErrUnavailable) || len(found) > 0 {
		t.Errorf("verify: %q %v", found, err)
	}
}

// only is the set in the catalogue.
func (w *world) only() *catalog.Set {
	w.t.Helper()
	sets, _, err := w.o.Catalog.List(w.t.Context())
	if err != nil || len(sets) != 1 {
		w.t.Fatalf("%d sets, %v", len(sets), err)
	}
	return sets[0]
}

// forget takes the note of its copy from a set.
func (w *world) forget(id string) {
	w.t.Helper()
	s, err := w.o.Catalog.Get(w.t.Context(), id)
	if err == nil {
		s.Copy = nil
		err = w.o.Catalog.Put(w.t.Context(), s)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// fetches brings the set's tarballs back into an empty directory and compares them.
func (w *world) fetches(set *catalog.Set, base RestoreOptions) {
	w.t.Helper()
	o := w.o
	o.DumpDir, o.Catalog = w.t.TempDir(), catalog.NewStore(storage.NewMem(nil))
	got, err := New(o).FetchSet(w.t.Context(), set.ID)
	if err != nil {
		w.t.Error(err)
		return
	}
	for _, f := range []string{base.RestoreFile, base.EBRestoreFile} {
		want, err1 := os.ReadFile(f)
		have, err2 := os.ReadFile(filepath.Join(o.DumpDir, filepath.Base(f)))
		if err := errors.Join(err1, err2); err != nil || string(want) != string(have) {
			w.t.Errorf("%s was fetched otherwise: %v", f, err)
		}
	}
	if p := got.Piece(catalog.Application); p == nil || filepath.Dir(p.Path) != o.DumpDir {
		w.t.Errorf("the entry names %+v", p)
	}
	if left, err := filepath.Glob(filepath.Join(o.DumpDir, hiddenPrefix+"*")); err != nil || len(left) > 0 {
		w.t.Errorf("%v is left", left)
	}
}

// TestFetchDamaged: a tarball that is damaged there, or whose document names files elsewhere, is refused and leaves nothing.
func TestFetchDamaged(t *testing.T) {
	w := newWorld(t)
	w.backup()
	set := w.only()
	m := storage.NewMem(nil)
	w.o.Store = &StoreOptions{Name: "far", Tarballs: true, OpenSets: func() (storage.Storage, error) { return m, nil }}
	if res, err := w.app().CopySets(t.Context()); err != nil || len(res.Warnings) > 0 {
		t.Fatal(err, res)
	}
	refused := func(want string) {
		t.Helper()
		o := w.o
		o.DumpDir, o.Catalog = t.TempDir(), catalog.NewStore(storage.NewMem(nil))
		if _, err := New(o).FetchSet(t.Context(), set.ID); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("it says %v, not %q", err, want)
		}
		if left, err := filepath.Glob(o.DumpDir + "/*_alation_backup*"); err != nil || len(left) > 0 {
			t.Errorf("%v is left", left)
		}
	}
	name := set.ID + "/" + filepath.Base(set.Piece(catalog.Application).Path)
	b, err := storage.ReadAll(t.Context(), m, name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	bad := append([]byte{}, b...)
	bad[len(bad)/2] ^= 1
	if err := storage.WriteAll(t.Context(), m, name, bad); err != nil {
		t.Fatal(err)
	}
	refused("damaged there")
	doctored := *set
	doctored.Pieces = append([]catalog.Piece{}, set.Pieces...)
	doctored.Pieces[0].Path = "/etc/passwd"
	doc, err := doctored.Encode()
	if err == nil {
		err = errors.Join(storage.WriteAll(t.Context(), m, name, b), storage.WriteAll(t.Context(), m, set.ID+"/"+setName, doc))
	}
	if err != nil {
		t.Fatal(err)
	}
	refused(`names the tarball "passwd"`)
	w.o.RepoPass = "other"
	refused("no such backup set")
}

// TestPostScriptOutput: lines of any length and number, of any bytes, become log lines that can't be mistaken for others.
func TestPostScriptOutput(t *testing.T) {
	var lines []string
	a := New(Options{Events: func(e engine.Event) {
		if s, ok := e.(engine.Step); ok {
			lines = append(lines, s.Detail)
		}
	}})
	a.logOutput(io.MultiReader(strings.NewReader("one\n\x1b[31mtwo\r\n"+strings.Repeat("x", 5000)+"\nlast"), strings.NewReader(strings.Repeat("\nmore", postScriptLines))))
	if len(lines) != postScriptLines+1 || lines[0] != "one" || strings.ContainsAny(lines[1], "\x1b\r") || len(lines[2]) > postScriptLine+len("…") || lines[3] != "last" ||
		!strings.Contains(lines[postScriptLines], "not logged") {
		t.Errorf("%d lines: %.40q", len(lines), lines[:5])
	}
}

// TestPostScriptEnds: a program is ended with what it started when it takes too long, and its end is in the set.
func TestPostScriptEnds(t *testing.T) {
	w := newWorld(t)
	program := filepath.Join(t.TempDir(), "program")
	for text, want := range map[string]struct {
		code int
		text string
	}{"exit 0": {0, ""}, "exit 3": {3, "exit status 3"}, "sleep 100 & sleep 100": {-1, "took longer"}} {
		if err := os.WriteFile(program, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		w.o.PostScript = &PostScriptOptions{Path: program, Timeout: 300 * time.Millisecond, Env: []string{"PATH=/usr/bin:/bin"}}
		if text == "exit 0" || text == "exit 3" {
			w.o.PostScript.Timeout = time.Minute
		}
		set, err := w.app().BackupAll(t.Context())
		if err != nil || set.State != catalog.Complete || set.PostScript.Code != want.code || !strings.Contains(set.PostScript.Error, want.text) || (want.text == "") != (set.PostScript.Error == "") {
			t.Errorf("%s: %v %+v", text, err, set.PostScript)
		}
	}
}
