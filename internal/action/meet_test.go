package action

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/test/stores"
)

// Where retention, chains, tools, Amazon RDS and the preflight meet.

// TestDamagedEntryKeepsStaging: what a set needs whose entry can't be read may lie in the staging repository; nothing is removed from it.
func TestDamagedEntryKeepsStaging(t *testing.T) {
	cat := storage.NewMem(nil)
	if err := storage.WriteAll(t.Context(), cat, "202611280400_1-0.json", []byte("{")); err != nil {
		t.Fatal(err)
	}
	a := New(Options{RepoDir: "/repo", Catalog: catalog.NewStore(cat)})
	if why, err := a.alsoSeparate(t.Context(), "main"); err != nil || !strings.Contains(why, "can't be read") {
		t.Errorf("%q %v", why, err)
	}
}

// TestSpaceOfTools: a run by pg_probackup is judged by the disk of its catalog, and refused for nothing that pgBackRest took.
func TestSpaceOfTools(t *testing.T) {
	for _, mode := range []catalog.Mode{catalog.Apart, catalog.Included} {
		a := New(Options{DumpDir: "/dump", RepoDir: "/repo", TempDir: "/tmp", Compress: repo.ZST, Mode: mode, Clusters: []Cluster{{Stanza: "main"}},
			Probackup: &ProbackupOptions{Active: true, ApartDir: "/catalog", StagingDir: "/catalog", FullEvery: 7}})
		for _, tool := range []string{"", catalog.Probackup} {
			s := sized("202611200000_1", mode, 1000, 300, 10, 40)
			s.Recovery.Postgres[0].Tool = tool
			if tool != "" {
				s.Recovery.Postgres[0].Label = "SMP0KF" // an ID in base 36, not a full backup
			}
			e := estimate{needs: a.placed([]shares{a.scale(s, map[string]int64{"main": 1000}, 10, false)})}
			for _, n := range e.needs {
				if n.dir == "/repo" {
					t.Errorf("%s: the disk of a repository that nothing is written to is looked at: %+v", mode, n)
				}
				if n.dir == "/catalog" && (n.likely != 300 || n.sure != 0) || n.dir == "/dump" && n.sure != 20 {
					t.Errorf("%s, after %q: %+v", mode, tool, n)
				}
			}
		}
	}
}

// TestSpaceAfterChains: what tarballs with chains have of PostgreSQL does not count as files, of which the next run surely has as much.
func TestSpaceAfterChains(t *testing.T) {
	for _, mode := range []catalog.Mode{catalog.Apart, catalog.Included} {
		a := New(Options{DumpDir: "/dump", RepoDir: "/repo", TempDir: "/tmp", Compress: repo.ZST, Mode: mode, Clusters: []Cluster{{Stanza: "main"}}})
		s := sized("202611200000_1", catalog.Included, 1000, 300, 10, 40)
		s.Recovery.Postgres[0].Label = "20261120-000000F_20261121-000000I"
		s.Piece(catalog.Application).Size += 5000 // the backups that it is built on
		e := estimate{needs: a.placed([]shares{a.scale(s, map[string]int64{"main": 1000}, 10, false)})}
		if f := e.judge(volume{dirs: []string{"/dump"}, free: 400}); f.Severity == Blocked {
			t.Errorf("%s: a full backup of about 340 bytes is refused: %+v", mode, f)
		}
	}
}

// TestRemovalOfToolWaits: a deletion that died before pg_probackup removed the backup is not completed by removing the entry, which
// alone says whose the backup is.
func TestRemovalOfToolWaits(t *testing.T) {
	now := time.Date(2026, 11, 29, 4, 0, 0, 0, time.UTC)
	sets := make([]standing, 3)
	for i := range sets {
		began := now.AddDate(0, 0, i-len(sets))
		sets[i] = standing{set: &catalog.Set{ID: began.Format("200601021504") + "_1", State: catalog.Complete, Began: began, Ended: began}}
	}
	sets[0].tool, sets[0].set.State, sets[0].set.Removal = catalog.Probackup, catalog.Failed, &catalog.Removal{Reason: "deleted on request", At: now}
	c := RetentionRule{Sets: 1}.choose(sets, now)[0]
	if c.goes || c.strip || !strings.Contains(strings.Join(c.reasons, "; "), "holdfast sets delete "+sets[0].set.ID) {
		t.Errorf("%+v", c)
	}
}

// TestToolsBackupGone: a set whose backup is not in pg_probackup's catalog any more does not let older ones go.
func TestToolsBackupGone(t *testing.T) {
	p := chainPast(t)
	p.rule.Sets = 1
	dir := t.TempDir()
	at := p.now.Add(-time.Hour)
	s := &catalog.Set{ID: at.Format("200601021504") + "_1-0", State: catalog.Complete, Mode: catalog.Apart, Began: at, Ended: at, Recovery: &catalog.Recovery{Name: "x"}}
	name := filepath.Join(p.dir, s.ID+appSuffix)
	writeFile(t, name, 10)
	s.Pieces = []catalog.Piece{{Kind: catalog.Application, Path: name, Size: 10}, {Kind: catalog.Postgres, Tool: catalog.Probackup, Path: dir, Stanza: "demo", Label: "SMP0KF", Size: 1}}
	if err := catalog.NewStore(p.cat).Put(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	goes := func() (out []string) {
		for _, s := range mustPlan(t, p).Sets {
			if s.Goes {
				out = append(out, s.ID)
			}
		}
		return out
	}
	if got := goes(); slices.Contains(got, p.sets[3].ID) {
		t.Errorf("%v go, the only set that restores among them", got)
	}
	control := filepath.Join(dir, "backups/demo/SMP0KF/backup.control")
	if err := os.MkdirAll(filepath.Dir(control), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, control, 1)
	if got := goes(); !slices.Contains(got, p.sets[3].ID) {
		t.Errorf("only %v go", got)
	}
}

// TestStoreChainAndPin: WAL between a pinned set and the others goes from external storage in the same round in which a chain between
// them goes.
func TestStoreChainAndPin(t *testing.T) {
	p := chainPast(t)
	r := p.repos["/repo-a"]
	at := p.now.Add(-time.Hour)
	p.add(t, r, at, repo.Full, "", 1)
	chain := p.add(t, r, at.Add(time.Minute), repo.Incr, r.chain[0], 9)
	p.archive(t, r, 5)
	newest := p.add(t, r, at.Add(2*time.Minute), repo.Full, "", 1)
	if err := repo.SaveBackupInfo(t.Context(), r.st, "demo", &r.bi, ""); err != nil {
		t.Fatal(err)
	}
	// On the storage there is all of that; here the catalogue has a pinned set and a newer one that is only there.
	for i, s := range p.sets {
		if i != 3 {
			if err := catalog.NewStore(p.cat).Delete(t.Context(), s.ID); err != nil {
				t.Fatal(err)
			}
			continue
		}
		s.Pin = &catalog.Pin{Reason: "audit", At: p.now}
		s.Pieces[1].Path = "s3://store"
		if err := catalog.NewStore(p.cat).Put(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	s := &catalog.Set{ID: at.Format("200601021504") + "_1-0", State: catalog.Complete, Mode: catalog.Apart, Began: at, Ended: at, Recovery: &catalog.Recovery{Name: "x"}}
	name := filepath.Join(p.dir, s.ID+appSuffix)
	writeFile(t, name, 10)
	s.Pieces = []catalog.Piece{{Kind: catalog.Application, Path: name, Size: 10}, {Kind: catalog.Postgres, Path: "s3://store", Stanza: "demo", Label: string(newest.Label), Size: 1}}
	if err := catalog.NewStore(p.cat).Put(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	p.rule.Sets = 1
	a := p.app(nil)
	a.o.Store = &StoreOptions{Name: "s3://store", OpenRepo: func() (storage.Storage, error) { return r.st, nil }, OpenSets: func() (storage.Storage, error) { return storage.NewMem(nil), nil },
		Postgres: true, KeepSets: 1}
	plan, err := a.PlanRetention(t.Context())
	if err != nil || plan.Store == nil || len(plan.Store.Backups) == 0 || len(plan.Store.WAL) == 0 {
		t.Fatalf("%+v %v", plan, err)
	}
	if _, err := plan.Run(t.Context()); err != nil {
		t.Error(err)
	}
	left := segmentsIn(r.st)
	if slices.Contains(left, chain.ArchiveStop) || !slices.Contains(left, newest.ArchiveStart) {
		t.Errorf("%v is left; the chain ended at %s, the newest began at %s", left, chain.ArchiveStop, newest.ArchiveStart)
	}
}

// TestForeignSnapshot: a snapshot that does not carry a set's tags stays, and does not keep the set's entry for ever.
func TestForeignSnapshot(t *testing.T) {
	s, w := stores.StartRDS(t), newWorld(t)
	w.onRDS(s)
	ctx := t.Context()
	set, err := w.app().BackupAll(ctx)
	if err != nil {
		t.Fatal(err)
	}
	set.Run = "2-abcdef99" // as if somebody had replaced its snapshots
	if err := w.o.Catalog.Put(ctx, set); err != nil {
		t.Fatal(err)
	}
	w.o.Keep, w.o.ExecID = RetentionRule{Sets: 1}, "2-abcdef02"
	if _, err := w.app().BackupAll(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := w.app().Set(ctx, set.ID); err == nil {
		t.Errorf("the set is still there: %q", w.warned)
	}
	if got := names(s, t); len(got) != 4 {
		t.Errorf("snapshots %v", got)
	}
}

// TestRestoreOfRemovedSet: that the retention has begun to remove a set, which it could not end, is no reason against restoring it from
// pieces that are whole, taken from elsewhere, say.
func TestRestoreOfRemovedSet(t *testing.T) {
	w := newWorld(t)
	set, err := w.app().BackupAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, removed := range []bool{false, true} {
		set.State, set.Error = catalog.Failed, "the disk was full"
		if removed {
			set.Error, set.Removal = "being removed: 7 newer sets stay", &catalog.Removal{Reason: "7 newer sets stay", At: w.o.Now()}
		}
		if err := w.o.Catalog.Put(t.Context(), set); err != nil {
			t.Fatal(err)
		}
		plan, err := w.app().PlanRestoreAll(t.Context(), RestoreOptions{RestoreFile: set.Piece(catalog.Application).Path})
		if err != nil || (len(plan.Missing) == 0) != removed {
			t.Errorf("being removed %v: %q %v", removed, plan.Missing, err)
		}
	}
}

// TestRestoreAfterChangeOfMode: a set apart restores where PostgreSQL goes into tarballs by now, from the repository that has it.
func TestRestoreAfterChangeOfMode(t *testing.T) {
	if testing.Short() {
		t.Skip("needs PostgreSQL; run make test")
	}
	c, _, o := pgWorld(t, builtProgram(t), catalog.Apart)
	set, err := New(*o).BackupAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.Exec(t, "insert into t values (0)", "insert into s values (0)")
	before := o.RepoDir
	o.Mode, o.RepoDir = catalog.Included, filepath.Join(filepath.Dir(before), "staging")
	o.Clusters[0].ArchiveCommand = strings.ReplaceAll(o.Clusters[0].ArchiveCommand, before, o.RepoDir)
	a := New(*o)
	if _, err := a.EnableArchiving(t.Context()); err != nil {
		t.Fatal(err)
	}
	plan, err := a.PlanRestoreAll(t.Context(), RestoreOptions{RestoreFile: set.Piece(catalog.Application).Path})
	if err != nil || len(plan.Missing) > 0 {
		t.Fatalf("%q %v", plan.Missing, err)
	}
	if _, err := plan.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	rows(t, c, 1000)
}
