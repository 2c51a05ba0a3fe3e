package engine_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

func (r *rig) mustBackup(st storage.Storage, o engine.BackupOptions) (*engine.BackupResult, *repo.Manifest) {
	r.t.Helper()
	if o.Compress == "" {
		o.Compress, o.Level = repo.LZ4, 1
	}
	res, err := r.backupWith(r.t.Context(), st, st, o)
	must(r.t, err)
	return res, r.manifest(st, res.Label)
}

// holds restores a backup and compares its relations with the data directory as it is.
func (r *rig) holds(st storage.Storage, l repo.Label) {
	r.t.Helper()
	dir := filepath.Join(scratch(r.t), "restored")
	must(r.t, r.restore(r.t.Context(), st, dir, l))
	if diff := differ(tree(r.t, filepath.Join(r.server.dir, "base")), tree(r.t, filepath.Join(dir, "base"))); diff != "" {
		r.t.Errorf("backup %s: base/%s is not as it was", l, diff)
	}
}

// age gives every file of the data directory a time stamp well in the past, counted from the rig's beginning: the same age
// twice is the same time stamp.
func (r *rig) age(d time.Duration) {
	r.t.Helper()
	at := r.began.Add(-d).Truncate(time.Second)
	must(r.t, filepath.WalkDir(r.server.dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			err = os.Chtimes(p, at, at)
		}
		return err
	}))
}

func TestDiffAndIncr(t *testing.T) {
	for name, o := range map[string]engine.BackupOptions{
		"files": {}, "bundles": {Bundle: true}, "small bundles": {Bundle: true, BundleSize: 10_000, BundleLimit: 30_000},
		"blocks": {Block: true}, "bundled blocks": {Bundle: true, Block: true}, "delta": {Delta: true, Bundle: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 15)
			m := storage.NewMem(nil)
			must(t, r.create(t.Context(), m))
			r.touch("base/16384/2000", scribble(1, 400_000), 30*time.Hour)
			r.touch("base/16384/2001", scribble(2, 50_000), 30*time.Hour)
			r.age(20 * time.Hour)
			o.Type = repo.Incr // nothing to build on: becomes a full backup, and says so
			full, _ := r.mustBackup(m, o)
			if full.Label.Type() != repo.Full {
				t.Fatalf("the first backup is %s", full.Label)
			}
			r.holds(m, full.Label)

			big := []byte(scribble(1, 400_000))
			copy(big[100_000:], "one page of it")
			r.touch("base/16384/2000", string(big), 10*time.Hour)
			r.touch("base/16384/2002", scribble(3, 3000), 10*time.Hour)
			must(t, os.Remove(filepath.Join(r.server.dir, "base/5/PG_VERSION")))
			first, fm := r.mustBackup(m, o)
			if first.Label.Type() != repo.Incr || fm.Prior != full.Label || fm.File("pg_data/base/16384/2001").Reference != full.Label || fm.HasFile("pg_data/base/5/PG_VERSION") {
				t.Errorf("incr %s on %s: %+v", first.Label, fm.Prior, fm.File("pg_data/base/16384/2001"))
			}
			f := fm.File("pg_data/base/16384/2000")
			if stored := f.RepoSize; f.Reference != "" || o.Block != (stored < 50_000) {
				t.Errorf("the changed file: %d bytes stored, reference %q", stored, f.Reference)
			}
			r.holds(m, first.Label)

			r.touch("base/16384/2001", scribble(2, 50_000)[:20_000], 5*time.Hour)
			second, sm := r.mustBackup(m, o)
			if sm.Prior != first.Label || sm.File("pg_data/base/16384/2000").Reference != first.Label || len(sm.References) != 3 {
				t.Errorf("second incr on %s, references %v", sm.Prior, sm.References)
			}
			r.holds(m, second.Label)

			o.Type = repo.Diff
			diff, dm := r.mustBackup(m, o)
			if dm.Prior != full.Label || len(dm.References) != 2 || diff.Label.Type() != repo.Diff {
				t.Errorf("diff on %s, references %v", dm.Prior, dm.References)
			}
			r.holds(m, diff.Label)
			must(t, r.verified(m))
		})
	}
}

// TestTouchedButEqual: a small file that was written again with the same content becomes a reference even without delta.
func TestTouchedButEqual(t *testing.T) {
	r := newRig(t, 15)
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	r.age(20 * time.Hour)
	full, _ := r.mustBackup(m, engine.BackupOptions{})
	r.age(3 * time.Hour)
	_, im := r.mustBackup(m, engine.BackupOptions{Type: repo.Incr})
	for _, f := range im.Files {
		if !strings.HasPrefix(f.Name, "pg_data/base/") || f.Size == 0 {
			continue
		}
		if f.Reference != full.Label {
			t.Errorf("%s is stored again", f.Name)
		}
		info, err := os.Stat(filepath.Join(r.server.dir, strings.TrimPrefix(f.Name, "pg_data/")))
		must(t, err)
		if f.Timestamp != info.ModTime().Unix() { // or it would be read again by every later backup
			t.Errorf("%s has the time stamp of the backup before", f.Name)
		}
	}
}

// TestEqualWithoutMap: a file that an earlier backup stored without a block map, or with blocks larger than the file, is not
// stored again while it is unchanged, only because block incremental would cut it in another way by now.
func TestEqualWithoutMap(t *testing.T) {
	large := engine.BackupOptions{Bundle: true, Block: true, BlockSizes: engine.BlockSizes{Files: []engine.BlockStep{{From: 8192, Value: 128 << 10}}}}
	for name, c := range map[string]struct{ full, incr engine.BackupOptions }{
		"touched": {}, "delta": {incr: engine.BackupOptions{Delta: true}}, "large blocks": {full: large}, "large blocks, delta": {full: large, incr: engine.BackupOptions{Delta: true}},
	} {
		o := c.incr
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 15)
			m := storage.NewMem(nil)
			must(t, r.create(t.Context(), m))
			const file = "base/16384/2000"
			r.touch(file, scribble(1, 90_000), 20*time.Hour)
			full, _ := r.mustBackup(m, c.full)
			r.touch(file, scribble(1, 90_000), 3*time.Hour)
			o.Type, o.Bundle, o.Block = repo.Incr, true, true
			_, im := r.mustBackup(m, o)
			if f := im.File("pg_data/" + file); f.Reference != full.Label {
				t.Errorf("%s is stored again: %+v", f.Name, f)
			}
			r.touch(file, scribble(2, 90_000), time.Hour)
			res, im := r.mustBackup(m, o)
			if f := im.File("pg_data/" + file); f.Reference != "" || f.BlockMapSize == 0 {
				t.Errorf("%s has changed and is not stored in blocks: %+v", f.Name, f)
			}
			r.holds(m, res.Label)
			must(t, r.verified(m))
		})
	}
}

// TestOtherBlockChecksums: a file smaller than its blocks does not keep their sizes for the set, so that in the next backup it
// can have blocks of the same size with checksums of another: it is stored as a whole, in new blocks.
func TestOtherBlockChecksums(t *testing.T) {
	r := newRig(t, 15)
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	const file = "base/16384/2000"
	r.touch(file, scribble(1, 24_000), 20*time.Hour)
	o := engine.BackupOptions{Bundle: true, Block: true, BlockSizes: engine.BlockSizes{Files: []engine.BlockStep{{From: 8192, Value: 32 << 10}}, Checksums: []engine.BlockStep{{From: 8192, Value: 6}}}}
	r.mustBackup(m, o)
	for i, size := range []int{24_000, 30_000, 70_000, 24_000} {
		r.touch(file, scribble(uint64(2+i), size), time.Duration(10-i)*time.Hour)
		o.Type = repo.Incr
		o.BlockSizes.Checksums = []engine.BlockStep{{From: 8192, Value: int64(7 + i)}}
		res, im := r.mustBackup(m, o)
		if f := im.File("pg_data/" + file); f.Reference != "" || f.BlockMapSize == 0 {
			t.Errorf("%s is not stored in blocks: %+v", f.Name, f)
		}
		r.holds(m, res.Label)
	}
	must(t, r.verified(m))
}

// TestDeltaByItself: where time stamps can't be trusted contents are compared, and the operator is told.
func TestDeltaByItself(t *testing.T) {
	file := "base/16384/2000"
	for name, c := range map[string]struct {
		change func(r *rig)
		want   string
	}{
		"future":               {func(r *rig) { r.touch(file, scribble(2, 9000), -time.Hour) }, "was last changed in the future"},
		"older":                {func(r *rig) { r.touch(file, scribble(2, 9000), 40*time.Hour) }, "is older than in backup"},
		"other size, same age": {func(r *rig) { r.touch(file, scribble(2, 8000), 0); r.age(20 * time.Hour) }, "has another size at the same time stamp"},
		"same":                 {func(*rig) {}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 15)
			m := storage.NewMem(nil)
			must(t, r.create(t.Context(), m))
			r.touch(file, scribble(1, 9000), 20*time.Hour)
			r.age(20 * time.Hour)
			r.mustBackup(m, engine.BackupOptions{})
			r.warned()
			c.change(r)
			res, im := r.mustBackup(m, engine.BackupOptions{Type: repo.Incr})
			if got := r.warned(); c.want == "" && strings.Contains(got, "trusted") || !strings.Contains(got, c.want) || im.Options.Delta != (c.want != "") {
				t.Errorf("warned %q, delta %t; want %q", got, im.Options.Delta, c.want)
			}
			r.holds(m, res.Label)
		})
	}
}

// TestSetsStayAlike: compression and page checks are those of the full backup until the next one.
func TestSetsStayAlike(t *testing.T) {
	r := newRig(t, 15)
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	_, fm := r.mustBackup(m, engine.BackupOptions{Compress: repo.GZ, Level: 3, Bundle: true, Block: true})
	r.touch("base/16384/2000", scribble(1, 40_000), time.Hour)
	res, im := r.mustBackup(m, engine.BackupOptions{Type: repo.Incr, Compress: repo.ZST, Level: 3})
	if im.Options.CompressType != repo.GZ || im.Options.CompressLevel != 3 || im.CipherPass != fm.CipherPass || !im.BundleRaw || im.Bundle || im.BlockIncr {
		t.Errorf("the incr has %+v, raw bundles %t", im.Options, im.BundleRaw)
	}
	r.holds(m, res.Label)
	must(t, r.verified(m))
}

// TestResume kills a full backup while it stores files; the next one takes over what is good of it, under the same label.
func TestResume(t *testing.T) {
	for name, o := range map[string]engine.BackupOptions{"by time": {Resume: true, SaveThreshold: 1}, "by content": {Resume: true, SaveThreshold: 1, Delta: true}, "blocks": {Resume: true, SaveThreshold: 1, Block: true}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 15)
			m := storage.NewMem(nil)
			must(t, r.create(t.Context(), m))
			for i := range 6 {
				r.touch("base/16384/200"+string(rune('0'+i)), scribble(uint64(i), 50_000+i*1000), 9*time.Hour)
			}
			o.Compress, o.ProcessMax = repo.None, 1
			resumed := 0
			for n := 8; n < 60; n += 3 {
				left := m.CrashClone()
				faulty, err := storage.NewFaulty(left, storage.Fault{Op: storage.OpCommit, Nth: n, Kind: storage.Die})
				must(t, err)
				if _, err = r.backupWith(t.Context(), faulty, left, o); err == nil {
					break
				}
				var dir repo.Label
				exists := false
				for d, err := range repo.Labels(t.Context(), left, "demo") {
					must(t, err)
					dir, exists = d.Label, d.Manifest
				}
				if exists { // it died in publishing: a backup already
					break
				}
				if n%2 == 0 { // a stored file was damaged meanwhile: it must not be taken over
					must(t, storage.WriteAll(t.Context(), left, "backup/demo/"+string(dir)+"/pg_data/base/16384/2005", []byte("junk")))
				}
				r.warned()
				res, _ := r.mustBackup(left, engine.BackupOptions{Resume: true, Delta: o.Delta, Block: o.Block, Compress: repo.None})
				if strings.Contains(r.warned(), "it is resumed") {
					resumed++
					if res.Label != dir {
						t.Errorf("resumed as %s, was %s", res.Label, dir)
					}
				}
				r.holds(left, res.Label)
				must(t, r.verified(left))
			}
			if resumed < 3 {
				t.Errorf("only %d runs were resumed", resumed)
			}
		})
	}
}

// TestResumeOutage: a store that does not give the interrupted backup's manifest just then is no reason to remove the backup.
func TestResumeOutage(t *testing.T) {
	r, m := newStore(t)
	o := engine.BackupOptions{Compress: repo.None, ProcessMax: 1, SaveThreshold: 1, Resume: true}
	dies, err := storage.NewFaulty(m, storage.Fault{Op: storage.OpCommit, Name: "2000*", Nth: 1, Kind: storage.Die})
	must(t, err)
	if _, err := r.backupWith(t.Context(), dies, m, o); err == nil {
		t.Fatal("the fault did not end the backup")
	}
	before := contents(t, m)
	outage := storage.Fault{Op: storage.OpOpen, Name: "backup.manifest.copy"}
	away, err := storage.NewFaulty(m, outage)
	must(t, err)
	if _, err := r.backupWith(t.Context(), away, m, o); err == nil || !strings.Contains(err.Error(), "backup.manifest.copy") {
		t.Errorf("error: %v", err)
	}
	after := contents(t, m)
	for name := range before {
		if _, ok := after[name]; !ok {
			t.Errorf("%s was removed", name)
		}
	}
	r.warned()
	res, _ := r.mustBackup(m, o)
	if w := r.warned(); !strings.Contains(w, "it is resumed") {
		t.Errorf("warned %q", w)
	}
	r.holds(m, res.Label)
}

// TestNotResumed: what another program, compression or cluster left is removed.
func TestNotResumed(t *testing.T) {
	r := newRig(t, 15)
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	faulty, err := storage.NewFaulty(m, storage.Fault{Op: storage.OpCommit, Nth: 12, Kind: storage.Die})
	must(t, err)
	if _, err = r.backupWith(t.Context(), faulty, m, engine.BackupOptions{Compress: repo.None, SaveThreshold: 1, ProcessMax: 1}); err == nil {
		t.Fatal("the fault did not end the backup")
	}
	for name, o := range map[string]engine.BackupOptions{"compressed with none": {Resume: true, Compress: repo.GZ, Level: 1}, "its files are removed": {Compress: repo.None}} {
		left := m.CrashClone()
		r.warned()
		res, _ := r.mustBackup(left, o)
		if got := r.warned(); !strings.Contains(got, name) || strings.Contains(got, "is resumed") {
			t.Errorf("warned %q, want %q", got, name)
		}
		r.holds(left, res.Label)
		must(t, r.verified(left))
	}
}

func TestOffline(t *testing.T) {
	r := newRig(t, 15)
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	offline := func(o engine.BackupOptions) (*engine.BackupResult, error) {
		o.DataDir, o.Offline, o.Compress, o.Level = r.server.dir, true, repo.GZ, 1
		// Offline backups are made before the time of the fake server, whose clock stands.
		now := func() time.Time { return time.Date(2026, 2, 1, 12, 0, 0, 0, time.UTC).Add(time.Since(r.began)) }
		plan, err := r.stanzaAt(m, now).PlanBackup(t.Context(), o)
		if err != nil {
			return nil, err
		}
		return plan.Run(t.Context())
	}
	pid := filepath.Join(r.server.dir, "postmaster.pid")
	must(t, os.WriteFile(pid, []byte("1\n"), 0o600))
	if _, err := offline(engine.BackupOptions{}); !errors.Is(err, engine.ErrTargetRunning) {
		t.Fatalf("a running server: %v", err)
	}
	_, err := offline(engine.BackupOptions{Force: true})
	must(t, err)
	must(t, os.Remove(pid))
	r.touch("base/16384/2000", scribble(1, 9000), time.Hour)
	res, err := offline(engine.BackupOptions{Type: repo.Incr})
	must(t, err)
	got := r.manifest(m, res.Label)
	if got.Options.Online || got.ArchiveStart != "" || got.LSNStart != "" || got.HasFile("pg_data/backup_label") {
		t.Errorf("an offline backup says %+v, WAL %s", got.Options, got.ArchiveStart)
	}
	r.holds(m, res.Label)
	must(t, r.verified(m))
	r.warned()
	_, im := r.mustBackup(m, engine.BackupOptions{Type: repo.Incr, Compress: repo.GZ, Level: 1})
	if w := r.warned(); !strings.Contains(w, "made offline") || !im.Options.Delta {
		t.Errorf("online after offline: %q", w)
	}
}

// TestLabelsKeepUp: backups in quick succession have labels of seconds that have begun, or the original, which shifts its own label
// by one second at most, would refuse the next one.
func TestLabelsKeepUp(t *testing.T) {
	r := newRig(t, 15)
	r.clock = time.Now
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	for i, typ := range []repo.BackupType{repo.Full, repo.Incr, repo.Incr, repo.Diff} {
		plan, err := r.stanza(m).PlanBackup(t.Context(), engine.BackupOptions{DataDir: r.server.dir, Offline: true, Type: typ, Compress: repo.LZ4, Level: 1})
		must(t, err)
		res, err := plan.Run(t.Context())
		must(t, err)
		if now := time.Now().UTC().Format("20060102-150405"); string(res.Label[len(res.Label)-len(now)-1:len(res.Label)-1]) > now {
			t.Errorf("backup %d is %s, and it is %s", i, res.Label, now)
		}
	}
}

func TestHardlink(t *testing.T) {
	r := newRig(t, 15)
	dir := filepath.Join(scratch(t), "repo")
	p, err := storage.NewPosix(dir, storage.PosixOptions{})
	must(t, err)
	defer p.Close()
	must(t, r.create(t.Context(), p))
	r.age(20 * time.Hour)
	full, _ := r.mustBackup(p, engine.BackupOptions{Hardlink: true})
	r.touch("base/16384/2000", scribble(1, 9000), time.Hour)
	incr, _ := r.mustBackup(p, engine.BackupOptions{Hardlink: true, Type: repo.Incr})
	a, err := os.Stat(filepath.Join(dir, "backup/demo", string(full.Label), "pg_data/base/16384/16385.lz4"))
	must(t, err)
	b, err := os.Stat(filepath.Join(dir, "backup/demo", string(incr.Label), "pg_data/base/16384/16385.lz4"))
	must(t, err)
	if !os.SameFile(a, b) {
		t.Error("the unchanged file is not linked into the incr")
	}
	if _, err := os.Stat(filepath.Join(dir, "backup/demo", string(incr.Label), "pg_data/pg_notify")); err != nil && r.manifest(p, incr.Label).Paths != nil {
		if _, err := os.Stat(filepath.Join(dir, "backup/demo", string(incr.Label), "pg_data/pg_xact")); err != nil {
			t.Errorf("a hard-linked incr lacks directories: %v", err)
		}
	}
	r.holds(p, incr.Label)
	if _, err := r.backupWith(t.Context(), p, p, engine.BackupOptions{Hardlink: true, Bundle: true}); err == nil {
		t.Error("hard links and bundles together are accepted")
	}
	if _, err := r.backupWith(t.Context(), storage.NewMem(nil), p, engine.BackupOptions{}); !errors.Is(err, engine.ErrStanzaMissing) {
		t.Errorf("no stanza: %v", err)
	}
}

func TestArchiveCopy(t *testing.T) {
	for _, o := range []engine.BackupOptions{{Bundle: true}, {Compress: repo.GZ, Level: 1}} {
		r := newRig(t, 15)
		m := storage.NewMem(nil)
		must(t, r.create(t.Context(), m))
		o.ArchiveCopy = true
		res, got := r.mustBackup(m, o)
		n := 0
		for _, f := range got.Files {
			if seg, ok := strings.CutPrefix(f.Name, "pg_data/pg_wal/"); ok && f.Size == segmentSize && f.BundleID == 0 && f.RepoSHA1 == "" && seg >= res.ArchiveStart && seg <= res.ArchiveStop {
				n++
			}
		}
		if n == 0 || !got.Options.ArchiveCopy {
			t.Errorf("%d segments are in the backup", n)
		}
		must(t, r.verified(m))
		dir := filepath.Join(scratch(t), "restored")
		must(t, r.restore(t.Context(), m, dir, res.Label))
		if info, err := os.Stat(filepath.Join(dir, "pg_wal", res.ArchiveStart)); err != nil || info.Size() != segmentSize {
			t.Errorf("the restored pg_wal lacks %s: %v", res.ArchiveStart, err)
		}
	}
}

// TestCancelledBackup: the server is out of backup mode and the repository's backups are as before.
func TestCancelledBackup(t *testing.T) {
	r := newRig(t, 15)
	m, made := r.withBackups(1)
	before := contents(t, m)
	ctx, cancel := context.WithCancel(t.Context())
	faulty, err := storage.NewFaulty(m, storage.Fault{Op: storage.OpCommit, Nth: 6, Kind: storage.Cancel, Cancel: cancel})
	must(t, err)
	if _, err := r.backupWith(ctx, faulty, m, engine.BackupOptions{Type: repo.Incr, Compress: repo.GZ, Level: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("error: %v", err)
	}
	must(t, r.server.waitIdle())
	must(t, lost(t, before, m))
	r.holds(m, made[0].Label)
}

// TestSetOfBzip2: a set in bz2 goes on in bz2, whatever is asked for, with and without blocks.
func TestSetOfBzip2(t *testing.T) {
	r, m := newStore(t)
	r.touch("base/16384/2000", scribble(1, 300_000), 20*time.Hour)
	r.mustBackup(m, engine.BackupOptions{Compress: repo.BZ2, Level: 9, Bundle: true, Block: true})
	big := []byte(scribble(1, 300_000))
	copy(big[100_000:], "one page of it")
	r.touch("base/16384/2000", string(big), 10*time.Hour)
	r.touch("base/16384/2001", scribble(2, 3_000_000), 10*time.Hour)
	res, im := r.mustBackup(m, engine.BackupOptions{Type: repo.Incr, Compress: repo.ZST, Level: 3, Bundle: true, Block: true})
	if im.Options.CompressType != repo.BZ2 || im.Options.CompressLevel != 9 {
		t.Errorf("the incr has %+v", im.Options)
	}
	if f := im.File("pg_data/base/16384/2000"); f.BlockMapSize == 0 || f.RepoSize > 50_000 {
		t.Errorf("the changed file: %+v", f)
	}
	r.holds(m, res.Label)
	must(t, r.verified(m))
}

// TestBlockCollision: a changed block has the short checksum of the old one by chance. The SHA-1 of the file tells, and all of
// it is stored. Chance is helped here: the map in the full backup gets the checksum that the change will have.
func TestBlockCollision(t *testing.T) {
	r, _ := newStore(t)
	r.pass = ""
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	o := engine.BackupOptions{Block: true, Compress: repo.None}
	full, man := r.mustBackup(m, o)
	f := man.File("pg_data/base/16384/2000")
	content := []byte(scribble(1, 80*8192))
	copy(content[3*8192:], "changed")
	r.touch("base/16384/2000", string(content), time.Hour)

	object, offset, length, _ := man.Object("demo", f)
	image, err := storage.ReadAll(t.Context(), m, object, 8<<20)
	must(t, err)
	at := offset + length - f.BlockMapSize
	blocks, err := repo.DecodeBlockMap(image[at:], f.BlockSize, f.BlockSumSize)
	must(t, err)
	blocks.Blocks[3].Checksum = blocks.Sum(content[3*8192 : 4*8192])
	raw, err := blocks.Encode()
	must(t, err)
	if int64(len(raw)) != f.BlockMapSize || f.BlockSize != 8192 {
		t.Fatalf("the map has %d bytes instead of %d, the blocks %d", len(raw), f.BlockMapSize, f.BlockSize)
	}
	must(t, storage.WriteAll(t.Context(), m, object, append(image[:at:at], raw...)))

	o.Type = repo.Incr
	incr, im := r.mustBackup(m, o)
	if now := im.File(f.Name); now.Reference == full.Label || now.SHA1 == f.SHA1 {
		t.Errorf("the file is taken for unchanged: %+v", now)
	}
	r.holds(m, incr.Label)
}

// TestNothingToBuildOn: the backups of the cluster before a stanza-upgrade are no base for those of the new one.
func TestNothingToBuildOn(t *testing.T) {
	r := newRig(t, 15)
	m, _ := r.withBackups(2)
	next := newRig(t, 16)
	next.server.clock = next.server.clock.Add(100 * time.Hour)
	_, err := next.stanza(m).Upgrade(t.Context(), next.control)
	must(t, err)
	for _, typ := range []repo.BackupType{repo.Incr, repo.Diff} {
		left := m.CrashClone()
		res, man := next.mustBackup(left, engine.BackupOptions{Type: typ})
		if res.Label.Type() != repo.Full || man.Prior != "" {
			t.Errorf("a %s became %s on %s", typ, res.Label, man.Prior)
		}
		next.holds(left, res.Label)
		incr, im := next.mustBackup(left, engine.BackupOptions{Type: typ})
		if im.Prior != res.Label {
			t.Errorf("%s is built on %s", incr.Label, im.Prior)
		}
	}
}

// TestSetKeepsPageChecks: whether pages are verified stays as in the full backup, or what a reference inherits would not be
// what the option says.
func TestSetKeepsPageChecks(t *testing.T) {
	on, off := true, false
	for _, c := range []struct {
		full, incr *bool
		want       bool
		warns      bool
	}{{&off, nil, false, false}, {&off, &on, false, true}, {&on, &off, true, true}, {nil, &off, true, true}, {nil, nil, true, false}} {
		r, m := newStore(t)
		r.server.checksums = 1
		must(t, r.server.checkpoint())
		r.mustBackup(m, engine.BackupOptions{ChecksumPage: c.full})
		o := engine.BackupOptions{Type: repo.Incr, ChecksumPage: c.incr, Conn: r.server.conn(), DataDir: r.server.dir, Compress: repo.LZ4}
		plan, err := r.stanza(m).PlanBackup(t.Context(), o)
		must(t, err)
		if warned := strings.Contains(strings.Join(plan.Warnings, "\n"), "until the next full backup"); warned != c.warns {
			t.Errorf("%v: warnings %q", c, plan.Warnings)
		}
		_, man := r.mustBackup(m, o)
		if man.Options.ChecksumPage != c.want {
			t.Errorf("%v: the incr verifies pages: %t", c, man.Options.ChecksumPage)
		}
	}
}

// TestTimelineChanges: files of a server that was promoted, or restored and promoted, may differ from those of the backup
// before although size and time stamp are the same.
func TestTimelineChanges(t *testing.T) {
	for _, block := range []bool{false, true} {
		r, m := newStore(t)
		r.mustBackup(m, engine.BackupOptions{Block: block})
		file := filepath.Join(r.server.dir, "base/16384/2000")
		info, err := os.Stat(file)
		must(t, err)
		must(t, os.WriteFile(file, []byte(scribble(5, int(info.Size()))), 0o600))
		must(t, os.Chtimes(file, info.ModTime(), info.ModTime()))
		r.server.timeline = 2
		r.server.write(t, "pg_wal/00000002.history", "1\t0/2280000\tx\n")
		must(t, r.server.checkpoint())
		r.warned()
		res, man := r.mustBackup(m, engine.BackupOptions{Type: repo.Incr, Block: block})
		if w := r.warned(); !man.Options.Delta || !strings.Contains(w, "timeline changed") {
			t.Errorf("delta %t, warned %q", man.Options.Delta, w)
		}
		r.holds(m, res.Label)
	}
}

// TestBlockSizeOfASet: a file keeps the block size that it got when it was first stored, whatever its age is now, until it is
// shorter than one block.
func TestBlockSizeOfASet(t *testing.T) {
	r, m := newStore(t)
	size := func(pages int, age time.Duration) { r.touch("base/16384/2001", scribble(3, pages*8192), age) }
	for i, step := range []struct {
		pages int
		age   time.Duration
		block int64
	}{{9, 700 * time.Hour, 4 * 8192}, {10, time.Hour, 4 * 8192}, {4, time.Hour, 4 * 8192}, {3, time.Hour, 8192}, {9, 800 * time.Hour, 8192}, {1, time.Hour, 8192}, {0, time.Hour, 0}, {9, 800 * time.Hour, 4 * 8192}} {
		r.server.clock = time.Now()
		size(step.pages, step.age-time.Duration(i)*time.Minute)
		o := engine.BackupOptions{Block: true, Type: repo.Incr}
		label := r.backups(m, o)[0]
		if f := r.manifest(m, label).File("pg_data/base/16384/2001"); f.BlockSize != step.block {
			t.Errorf("step %d: blocks of %d bytes, not %d", i, f.BlockSize, step.block)
		}
	}
}

// TestPriorMapOfNowhere: a block map that names a backup which the manifest does not know is no base to build on.
func TestPriorMapOfNowhere(t *testing.T) {
	r, _ := newStore(t)
	r.pass = ""
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	o := engine.BackupOptions{Block: true, Compress: repo.None}
	_, man := r.mustBackup(m, o)
	f := man.File("pg_data/base/16384/2000")
	object, _, length, _ := man.Object("demo", f)
	image, err := storage.ReadAll(t.Context(), m, object, 8<<20)
	must(t, err)
	blocks, err := repo.DecodeBlockMap(image[length-f.BlockMapSize:], f.BlockSize, f.BlockSumSize)
	must(t, err)
	for i := range blocks.Blocks {
		blocks.Blocks[i].Reference = 3
	}
	raw, err := blocks.Encode()
	must(t, err)
	image = append(image[:length-f.BlockMapSize], raw...)
	f.BlockMapSize, f.RepoSize = int64(len(raw)), int64(len(image))
	must(t, storage.WriteAll(t.Context(), m, object, image))
	must(t, repo.PublishManifest(t.Context(), m, "demo", man, ""))
	r.touch("base/16384/2000", scribble(2, 80*8192), time.Hour)
	o.Type = repo.Incr
	if _, err := r.backupWith(t.Context(), m, m, o); err == nil || !strings.Contains(err.Error(), "full backup") {
		t.Errorf("error: %v", err)
	}
}

// TestResumeWithOtherOptions: the run that takes over an interrupted backup stores otherwise than that one did. What it takes
// over stays as it was stored, and is read as that by everybody, also as the base of the next backup.
func TestResumeWithOtherOptions(t *testing.T) {
	kinds := map[string]engine.BackupOptions{"files": {}, "blocks": {Block: true}, "bundles": {Bundle: true, BundleLimit: 60_000}, "both": {Bundle: true, Block: true, BundleLimit: 60_000}}
	for before, a := range kinds {
		for after, b := range kinds {
			r, m := newStore(t)
			for i := range 6 {
				r.touch("base/16384/200"+string(rune('0'+i)), scribble(uint64(i), 50_000+i*5000), 9*time.Hour)
			}
			a.Compress, a.ProcessMax, a.SaveThreshold, a.Resume = repo.None, 1, 1, true
			faulty, err := storage.NewFaulty(m, storage.Fault{Op: storage.OpCommit, Name: "*2003*", Nth: 1, Kind: storage.Die})
			must(t, err)
			if _, err := r.backupWith(t.Context(), faulty, m, a); err == nil {
				t.Fatalf("%s: the fault did not end the backup", before)
			}
			r.warned()
			b.Compress, b.Resume = repo.None, true
			res, _ := r.mustBackup(m, b)
			if w := r.warned(); !strings.Contains(w, "it is resumed") {
				t.Errorf("%s, then %s: %s", before, after, w)
			}
			check := func(l repo.Label) {
				t.Helper()
				r.holds(m, l)
				if _, err := (&pageReader{contents(t, m), string(r.pass)}).backup(string(l)); err != nil {
					t.Errorf("%s, then %s: %v", before, after, err)
				}
			}
			check(res.Label)
			for i, o := range []engine.BackupOptions{b, a, b} {
				o.Type, o.Resume = repo.Incr, false
				text := []byte(scribble(5, 75_000))
				copy(text[9000*i:], "changed")
				r.touch("base/16384/2005", string(text), time.Duration(8-i)*time.Hour)
				incr, _ := r.mustBackup(m, o)
				check(incr.Label)
			}
			must(t, r.verified(m))
		}
	}
}
