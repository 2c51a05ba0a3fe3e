package engine_test

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// TestVerifyUnread has the storage refuse one object for ever, each in turn. Verification goes on: it says which object that was,
// calls no backup that needs it valid or damaged, and finds the damage that is elsewhere all the same.
func TestVerifyUnread(t *testing.T) {
	r := newRig(t, 15)
	base := r.mutationRepo(engine.BackupOptions{Compress: repo.ZST, Level: 1, Bundle: true, BundleLimit: 64 << 10, Block: true})
	labels := r.labels(base)
	m := base.CrashClone()
	rotten := ""
	for name := range contents(t, m) {
		if pg.IsBackupHistoryName(path.Base(name)) { // damages no backup
			rotten = max(rotten, name)
		}
	}
	must(t, storage.WriteAll(t.Context(), m, rotten, []byte("not what it was")))
	cases := 0
	for name := range contents(t, m) {
		base := path.Base(name)
		if name == rotten || base == "archive.info" || base == "backup.info" { // without these there is nothing to verify
			continue
		}
		cases++
		st, err := storage.NewFaulty(m, storage.Fault{Op: storage.OpOpen, Name: name, Err: storage.Unavailable(errors.New("503 for ever"))})
		must(t, err)
		res, err := r.stanza(st).Verify(t.Context(), engine.VerifyOptions{ProcessMax: 2})
		if !storage.IsUnavailable(err) || res == nil || !strings.Contains(err.Error(), name) && !strings.HasSuffix(name, ".copy") {
			t.Fatalf("%s: %v", name, err)
		}
		if len(res.Verdicts) != len(labels) || len(res.Unread) == 0 || len(res.Findings) != 1 || res.Findings[0].Object != rotten {
			t.Errorf("%s: %d verdicts, unread %v, findings %v", name, len(res.Verdicts), res.Unread, res.Findings)
		}
		for _, v := range res.Verdicts {
			needed := strings.HasPrefix(name, "backup/demo/"+string(v.Label)+"/") && !strings.HasSuffix(name, ".copy")
			if v.Damage > 0 || v.Status != engine.VerdictValid && v.Status != engine.VerdictUnread || needed && v.Status == engine.VerdictValid {
				t.Errorf("%s: backup %s is %s, %d damaged, %d unread", name, v.Label, v.Status, v.Damage, v.Unread)
			}
		}
	}
	if cases < 20 {
		t.Errorf("only %d cases", cases)
	}
	// A storage that answers nothing more is away: a few objects are asked for, not all, and what was found stays.
	var faults []storage.Fault
	for _, glob := range []string{"backup/demo/*/bundle/*", "backup/demo/*/pg_data/*/*/*", "backup/demo/*/backup.manifest*", "backup/demo/backup.history/*/*", "archive/demo/15-1/*.history"} {
		faults = append(faults, storage.Fault{Op: storage.OpOpen, Name: glob, Err: storage.Unavailable(errors.New("away"))})
	}
	st, err := storage.NewFaulty(m, faults...)
	must(t, err)
	res, err := r.stanza(st).Verify(t.Context(), engine.VerifyOptions{ProcessMax: 2})
	if !storage.IsUnavailable(err) || !strings.Contains(err.Error(), "in a row") || res == nil || len(res.Findings) != 1 || len(res.Unread) > 20 {
		t.Errorf("%v, %+v", err, res)
	}
}

// TestUnlistedManifestAway: a backup that backup.info does not list and whose manifest the storage does not give out is passed over
// by a backup, which does not need it, and stops an expire, which could remove what it needs, with what to do.
func TestUnlistedManifestAway(t *testing.T) {
	r := newRig(t, 15)
	base := storage.NewMem(nil)
	ctx := t.Context()
	must(t, r.create(ctx, base))
	for range 2 {
		_, err := r.backup(ctx, base, base)
		must(t, err)
	}
	bi, err := repo.LoadBackupInfo(ctx, base, "demo", r.pass)
	must(t, err)
	hidden := bi.Backups[1].Label
	bi.Backups = bi.Backups[:1]
	must(t, repo.SaveBackupInfo(ctx, base, "demo", bi, r.pass))
	st, err := storage.NewFaulty(base, storage.Fault{Op: storage.OpOpen, Name: repo.ManifestPath("demo", hidden), Err: storage.Unavailable(errors.New("403 AccessDenied"))})
	must(t, err)
	before := contents(t, base)
	_, err = r.stanza(st).PlanExpire(ctx, engine.ExpireOptions{Full: 1})
	if !storage.IsUnavailable(err) || !strings.Contains(err.Error(), string(hidden)) || !strings.Contains(err.Error(), "make the object readable, or give that backup up") {
		t.Errorf("expire: %v", err)
	}
	r.warned()
	res, err := r.backup(ctx, st, base)
	must(t, err)
	if res.Label <= hidden {
		t.Errorf("the new backup %s does not come after %s", res.Label, hidden)
	}
	if w := r.warned(); !strings.Contains(w, string(hidden)) || !strings.Contains(w, "does without it") {
		t.Errorf("warned %q", w)
	}
	must(t, lost(t, before, base))
	if _, err := r.stanza(base).PlanExpire(ctx, engine.ExpireOptions{Full: 9}); err != nil { // readable again: it is listed again
		t.Error(err)
	}
	must(t, r.restore(ctx, base, filepath.Join(scratch(t), "r"), res.Label))
}

// TestSweepTemporaries: temporary files that writers which died left in a directory go with the next expire when they are more than
// a day old, ours and pgbackrest's, and nothing else goes.
func TestSweepTemporaries(t *testing.T) {
	r := newRig(t, 15)
	dir := filepath.Join(scratch(t), "repo")
	p, err := storage.NewPosix(dir, storage.PosixOptions{})
	must(t, err)
	t.Cleanup(func() { must(t, p.Close()) })
	ctx := t.Context()
	must(t, r.create(ctx, p))
	res, err := r.backup(ctx, p, p)
	must(t, err)
	before := tree(t, dir)
	young, old := []string{"archive/demo/15-1/x.pgbackrest.tmp"}, []string{
		"archive/demo/archive.info.pgbackrest.tmp", "archive/demo/15-1/0000000100000000/000000010000000000000001-aa.zst.pgbackrest.tmp",
		"backup/demo/" + string(res.Label) + "/pg_data/base/1/2.gz.pgbackrest.tmp", "backup/demo/.backup.info.holdfast-tmp-00000000000000ff"}
	for _, name := range append(slices.Clone(young), old...) {
		file := filepath.Join(dir, name)
		mkdir(t, filepath.Dir(file))
		must(t, os.WriteFile(file, []byte("torn"), 0o600))
		if slices.Contains(old, name) {
			at := time.Now().Add(-25 * time.Hour)
			must(t, os.Chtimes(file, at, at))
		}
	}
	plan, err := r.stanza(p).PlanExpire(ctx, engine.ExpireOptions{Full: 5})
	must(t, err)
	must(t, plan.Run(ctx))
	after := tree(t, dir)
	for _, name := range old {
		if _, ok := after[name]; ok {
			t.Errorf("%s is still there", name)
		}
	}
	for name := range before {
		if _, ok := after[name]; !ok {
			t.Errorf("%s is gone", name)
		}
	}
	if _, ok := after[young[0]]; !ok {
		t.Errorf("%s, which is young, is gone", young[0])
	}
}

// TestRemoveLooksAgain: what an interrupted removal seems to have left may be a backup that another host completes at this moment.
func TestRemoveLooksAgain(t *testing.T) {
	r := newRig(t, 15)
	m := storage.NewMem(nil)
	ctx := t.Context()
	must(t, r.create(ctx, m))
	for range 2 {
		_, err := r.backup(ctx, m, m)
		must(t, err)
	}
	whole := m.CrashClone()
	bi, err := repo.LoadBackupInfo(ctx, m, "demo", r.pass)
	must(t, err)
	other := bi.Backups[1].Label
	bi.Backups = bi.Backups[:1]
	must(t, repo.SaveBackupInfo(ctx, m, "demo", bi, r.pass))
	must(t, m.Remove(ctx, repo.ManifestPath("demo", other))) // still under way
	plan, err := r.stanza(m).PlanRemove(ctx, other, false)
	must(t, err)
	b, err := storage.ReadAll(ctx, whole, repo.ManifestPath("demo", other), 8<<20)
	must(t, err)
	must(t, storage.WriteAll(ctx, m, repo.ManifestPath("demo", other), b)) // and complete
	before := contents(t, m)
	if err := plan.Run(ctx); err == nil || !strings.Contains(err.Error(), "make the plan again") {
		t.Errorf("removed what another host had just completed: %v", err)
	}
	must(t, lost(t, before, m))
	if err := r.verify(m, r.labels(m)[0]); err != nil {
		t.Error(fmt.Errorf("the other backup: %w", err))
	}
}

// TestUnlistedPriorAway: a backup that is listed is built on one that is not, whose manifest the storage does not give out. Passing
// over that one would take the other off the list, so that pgbackrest's expire removed it.
func TestUnlistedPriorAway(t *testing.T) {
	r := newRig(t, 15)
	base := storage.NewMem(nil)
	ctx := t.Context()
	must(t, r.create(ctx, base))
	for _, typ := range []repo.BackupType{repo.Full, repo.Incr, repo.Incr} {
		_, err := r.backupWith(ctx, base, base, engine.BackupOptions{Type: typ, Compress: repo.GZ, Level: 1})
		must(t, err)
	}
	bi, err := repo.LoadBackupInfo(ctx, base, "demo", r.pass)
	must(t, err)
	hidden, last := bi.Backups[1].Label, bi.Backups[2]
	if last.Prior != hidden {
		t.Fatalf("%s is built on %s", last.Label, last.Prior)
	}
	bi.Backups = slices.Delete(bi.Backups, 1, 2)
	must(t, repo.SaveBackupInfo(ctx, base, "demo", bi, r.pass))
	st, err := storage.NewFaulty(base, storage.Fault{Op: storage.OpOpen, Name: repo.ManifestPath("demo", hidden), Err: storage.Unavailable(errors.New("403 AccessDenied"))})
	must(t, err)
	if _, err := r.backup(ctx, st, base); !storage.IsUnavailable(err) || !strings.Contains(err.Error(), string(hidden)) {
		t.Errorf("backup: %v", err)
	}
	bi, err = repo.LoadBackupInfo(ctx, base, "demo", r.pass)
	must(t, err)
	if bi.Find(last.Label) == nil {
		t.Errorf("%s is no longer listed", last.Label)
	}
}
