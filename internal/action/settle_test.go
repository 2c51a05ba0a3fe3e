package action

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/rds"
	"holdfast/internal/storage"
)

// unsettle makes a set one of a run that died when it was complete.
func (w *world) unsettle(id string, change func(*catalog.Set)) {
	w.t.Helper()
	s, err := w.o.Catalog.Get(w.t.Context(), id)
	if err == nil {
		s.Unsettled = true
		if change != nil {
			change(s)
		}
		err = w.o.Catalog.Put(w.t.Context(), s)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// TestSettleKeepsTheNewest: an older set that a dead run left unsettled is not taken for the newest, whose time the retention would then end.
func TestSettleKeepsTheNewest(t *testing.T) {
	w := newWorld(t)
	a, err := w.app().BackupAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := w.app().BackupAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.unsettle(a.ID, nil)
	w.o.ExecID = "3-dead"
	w.o.Keep = RetentionRule{Sets: 1}
	if _, err := w.app().Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.o.Catalog.Get(t.Context(), b.ID); err != nil {
		t.Errorf("the newest set is gone: %v", err)
	}
}

// TestKitOfADeadRunStays: a recovery kit that was written and not entered is entered, not written anew with the parameters of another day.
func TestKitOfADeadRunStays(t *testing.T) {
	w := newWorld(t)
	w.o.Kit = &KitOptions{Seal: func(_ context.Context, run *catalog.Set, _ []*catalog.Set) ([]byte, []string, error) {
		return []byte("sealed for " + run.ID), nil, nil
	}}
	a, err := w.app().BackupAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	path := a.Kit.Path
	w.unsettle(a.ID, func(s *catalog.Set) { s.Kit = nil })
	w.o.Kit = &KitOptions{Seal: func(_ context.Context, run *catalog.Set, _ []*catalog.Set) ([]byte, []string, error) {
		return []byte("of other parameters, for " + run.ID), nil, nil
	}}
	if _, err := w.app().BackupAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || string(b) != "sealed for "+a.ID {
		t.Errorf("%q %v", b, err)
	}
}

// TestStoredSetsAreSettled: what an instance has still to do is not in the document on external storage, and a kit that is made up gets there.
func TestStoredSetsAreSettled(t *testing.T) {
	w := newWorld(t)
	m := storage.NewMem(nil)
	open := func() (storage.Storage, error) { return m, nil }
	w.o.Store = &StoreOptions{Name: "far", Tarballs: true, ProcessMax: 1, OpenRepo: open, OpenSets: open}
	w.o.Kit = &KitOptions{Seal: func(_ context.Context, run *catalog.Set, _ []*catalog.Set) ([]byte, []string, error) {
		return []byte("sealed for " + run.ID), nil, nil
	}}
	a, err := w.app().BackupAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sets, _, err := w.app().StoreSets(t.Context())
	if err != nil || len(sets) != 1 || sets[0].Unsettled {
		t.Errorf("on the store: %+v %v", sets, err)
	}
	// killed before the kit; then sets copy; then the next run
	if err := os.Remove(a.Kit.Path); err != nil {
		t.Fatal(err)
	}
	if err := m.Remove(t.Context(), m.Names()...); err != nil {
		t.Fatal(err)
	}
	w.unsettle(a.ID, func(s *catalog.Set) { s.Kit, s.Copy = nil, nil })
	if _, err := w.app().CopySets(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.app().BackupAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(m.Names(), " "), a.ID+kitSuffix) {
		t.Error("the kit of the first set is not on the store")
	}
}

// TestRDSDoctorOutOfTime: a service that does not answer within the time of a look is a warning, and no parameter is blamed for it.
func TestRDSDoctorOutOfTime(t *testing.T) {
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	defer silent.Close()
	a := New(Options{Now: time.Now, RDS: RDSOptions{Limit: time.Hour, Clusters: []RDSCluster{{Stanza: "s", Region: "eu-west-1", Instance: "db-one"}},
		Open: func(region string) (*rds.Client, error) {
			return rds.New(rds.Options{Region: region, Endpoint: silent.URL, Key: "k", Secret: "s"})
		}}})
	for _, f := range RunChecks(t.Context(), 100*time.Millisecond, []Check{{AreaPostgres, "s", func(ctx context.Context) []Finding { return a.checkDBInstance(ctx, a.o.RDS.Clusters[0]) }}}) {
		if f.Severity != Warns || strings.Contains(f.String(), "pgsql.rds.timeout") {
			t.Errorf("%v %s", f.Severity, f)
		}
	}
}

// TestFetchedAgainStays: tarballs that a program had taken away before its run died, fetched again, are not given to it once more.
func TestFetchedAgainStays(t *testing.T) {
	w := newWorld(t)
	m := storage.NewMem(nil)
	open := func() (storage.Storage, error) { return m, nil }
	w.o.Store = &StoreOptions{Name: "far", Tarballs: true, ProcessMax: 1, OpenRepo: open, OpenSets: open}
	a, err := w.app().BackupAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.unsettle(a.ID, nil)
	for _, p := range a.Pieces { // the script has moved them, and the run died
		if err := os.Remove(p.Path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.app().FetchSet(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
	prog := filepath.Join(w.o.DumpDir, "prog")
	if err := os.WriteFile(prog, []byte("#!/bin/sh\nrm $1 $2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.o.PostScript = &PostScriptOptions{Path: prog, Timeout: time.Minute}
	if _, err := w.app().BackupAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, p := range a.Pieces {
		if !exists(p.Path) {
			t.Errorf("%s, which was fetched, has been given to the program", p.Path)
		}
	}
}

// endless is a context whose time ends when end is called.
type endless struct {
	context.Context
	done chan struct{}
}

func (e *endless) end()                  { close(e.done) }
func (e *endless) Done() <-chan struct{} { return e.done }
func (e *endless) Err() error {
	select {
	case <-e.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// TestLatePostScriptStarvesNobody: a run whose time ended before the program leaves it to the next one, for which its own set comes
// first. When there is no time for the other then, either, that was its try, and the runs after that come to all of their work.
func TestLatePostScriptStarvesNobody(t *testing.T) {
	w := newWorld(t)
	calls := filepath.Join(t.TempDir(), "calls")
	prog := filepath.Join(t.TempDir(), "prog")
	if err := os.WriteFile(prog, []byte("#!/bin/sh\necho $HOLDFAST_SET >>"+calls+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.o.PostScript = &PostScriptOptions{Path: prog, Timeout: time.Minute}
	var made []*catalog.Set
	for _, over := range []int{1, 2, 0} { // the step of the program at which the time ends
		ctx, n := &endless{t.Context(), make(chan struct{})}, 0
		w.at["backup_all:post-script"] = func() {
			if n++; n == over {
				ctx.end()
			}
		}
		s, err := w.app().BackupAll(ctx)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, s)
	}
	b, err := os.ReadFile(calls)
	if want := made[1].ID + "\n" + made[2].ID + "\n"; err != nil || string(b) != want {
		t.Errorf("called for\n%s, want\n%s", b, want)
	}
	first, err := w.o.Catalog.Get(t.Context(), made[0].ID)
	if err != nil || first.Unsettled || first.PostScript.Error == "" {
		t.Errorf("%+v %v", first, err)
	}
	if made[2].Retention == nil {
		t.Errorf("the third run applied no retention: %v", w.warned)
	}
}
