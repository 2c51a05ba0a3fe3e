package engine_test

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// withStandby gives the rig a standby: a second server with a copy of the data directory.
func (r *rig) withStandby() *fakeServer {
	r.t.Helper()
	s := newFakeServer(r.t, pg.Version(15))
	must(r.t, os.RemoveAll(s.dir))
	must(r.t, os.CopyFS(s.dir, os.DirFS(r.server.dir)))
	s.standby = true
	return s
}

func fromStandby(s *fakeServer, o engine.BackupOptions) engine.BackupOptions {
	o.Standby, o.StandbyConn, o.StandbyDataDir = engine.StandbyYes, s.conn(), s.dir
	return o
}

// TestStandbyLacksFiles: a file that only the primary has (a tablespace that is not mounted on the standby, a standby that is
// behind) is read there; it must not be taken for dropped.
func TestStandbyLacksFiles(t *testing.T) {
	r := newRig(t, 15)
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	r.age(20 * time.Hour)
	s := r.withStandby()
	must(t, os.Remove(filepath.Join(s.dir, "base/16384/16385")))
	res, fm := r.mustBackup(m, fromStandby(s, engine.BackupOptions{}))
	if !fm.HasFile("pg_data/base/16384/16385") || res.Vanished != 0 {
		t.Errorf("the file that the standby lacks is not in the backup; %d vanished", res.Vanished)
	}
	r.holds(m, res.Label)
}

// TestStandbyBehind: the primary writes a page after the backup has begun and before it is listed; the standby has the page
// in memory only. The WAL of this backup has the change, that of the next one has not: the next one must store the file.
func TestStandbyBehind(t *testing.T) {
	for name, o := range map[string]engine.BackupOptions{"files": {}, "large": {}, "blocks": {Block: true}} {
		t.Run(name, func(t *testing.T) {
			size := 40_000
			if name == "large" { // not compared as a matter of course
				size = 1_200_000
			}
			r := newRig(t, 15)
			m := storage.NewMem(nil)
			must(t, r.create(t.Context(), m))
			r.touch("base/16384/2000", scribble(1, size), 20*time.Hour)
			r.age(20 * time.Hour)
			r.server.clock = time.Now().Add(-10 * time.Minute)
			s := r.withStandby()
			s.onReplay = func() { r.touch("base/16384/2000", scribble(2, size), 9*time.Minute) }
			r.mustBackup(m, fromStandby(s, o))
			s.onReplay = nil
			must(t, os.RemoveAll(s.dir)) // a restart point later it has what the primary has
			must(t, os.CopyFS(s.dir, os.DirFS(r.server.dir)))
			o.Type = repo.Incr
			res, _ := r.mustBackup(m, fromStandby(s, o))
			r.holds(m, res.Label)
		})
	}
}

// TestStandbyPromoted: from its promotion on a standby writes its own history; what was read from it is worth nothing.
func TestStandbyPromoted(t *testing.T) {
	r := newRig(t, 15)
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	s := r.withStandby()
	s.onReplay = func() { s.standby = false }
	_, err := r.backupWith(t.Context(), m, m, fromStandby(s, engine.BackupOptions{}))
	if err == nil || !strings.Contains(err.Error(), "promoted") {
		t.Errorf("error: %v", err)
	}
	if got := r.labels(m); len(got) != 0 {
		t.Errorf("backups %v", got)
	}
	must(t, r.server.waitIdle())
}

// TestVerifyReadsWhatNoManifestHolds: an incremental refers to files of a full backup whose manifests are lost. It can be
// restored as long as those files are good; when one is not, it must not be called valid.
func TestVerifyReadsWhatNoManifestHolds(t *testing.T) {
	for name, o := range map[string]engine.BackupOptions{"files": {Compress: repo.None}, "bundles": {Compress: repo.None, Bundle: true}, "blocks": {Compress: repo.None, Block: true}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 15)
			r.pass = ""
			m := storage.NewMem(nil)
			must(t, r.create(t.Context(), m))
			r.touch("base/16384/2000", scribble(1, 90_000), 9*time.Hour)
			r.age(20 * time.Hour)
			full, fm := r.mustBackup(m, o)
			o.Type = repo.Incr
			big := []byte(scribble(1, 90_000))
			copy(big, "changed")
			r.touch("base/16384/2000", string(big), 8*time.Hour)
			incr, _ := r.mustBackup(m, o)
			// The full's manifests are unreadable, and one of its files is damaged.
			for _, n := range []string{"", ".copy"} {
				must(t, storage.WriteAll(t.Context(), m, repo.ManifestPath("demo", full.Label)+n, []byte("[torn")))
			}
			damaged := "pg_data/base/16384/16385"
			if o.Block {
				damaged = "pg_data/base/16384/2000"
			}
			object, at, _, _ := fm.Object("demo", fm.File(damaged))
			b, err := storage.ReadAll(t.Context(), m, object, 8<<20)
			must(t, err)
			b[at+15_000] ^= 1
			must(t, storage.WriteAll(t.Context(), m, object, b))
			for _, set := range []repo.Label{"", incr.Label} {
				res, err := r.stanza(m).Verify(t.Context(), engine.VerifyOptions{Set: set})
				must(t, err)
				for _, v := range res.Verdicts {
					if v.Label == incr.Label && v.Status != engine.VerdictInvalid {
						t.Errorf("set %q: backup %s is called %s; a restore says: %v", set, v.Label, v.Status, r.restore(t.Context(), m, filepath.Join(scratch(t), "x"), incr.Label))
					}
				}
			}
		})
	}
}

// TestRebuildKeepsWhatIsOnlyOutOfReach: an info file that could not be read this time is not lost, nor is one that is
// encrypted when no passphrase is given. Neither may be written anew: what only it knows would be gone.
func TestRebuildKeepsWhatIsOnlyOutOfReach(t *testing.T) {
	r := newRig(t, 15)
	r.pass = ""
	base, _ := r.withBackups(1)
	for name, f := range map[string]storage.Fault{
		"both":             {Op: storage.OpOpen, Name: "archive.info*"},
		"damaged, no copy": {Op: storage.OpOpen, Name: "archive.info.copy"},
		"backup.info":      {Op: storage.OpOpen, Name: "backup.info*"},
	} {
		m := base.CrashClone()
		if name == "damaged, no copy" {
			must(t, storage.WriteAll(t.Context(), m, "archive/demo/archive.info", []byte("[torn")))
		}
		before := contents(t, m)
		faulty, err := storage.NewFaulty(m, f)
		must(t, err)
		if _, err := r.stanza(faulty).Rebuild(t.Context(), r.control); !errors.Is(err, storage.ErrInjected) {
			t.Errorf("%s: %v", name, err)
		}
		for n, was := range contents(t, m) {
			if was != before[n] {
				t.Errorf("%s: %s was written", name, n)
			}
		}
	}
	// A manifest that can't be read now belongs to a backup that backup.info must not forget.
	m := base.CrashClone()
	must(t, m.Remove(t.Context(), "backup/demo/backup.info", "backup/demo/backup.info.copy"))
	faulty, err := storage.NewFaulty(m, storage.Fault{Op: storage.OpOpen, Name: "backup.manifest*"})
	must(t, err)
	if _, err := r.stanza(faulty).Rebuild(t.Context(), r.control); !errors.Is(err, storage.ErrInjected) {
		t.Errorf("manifest out of reach: %v", err)
	}
	// Encrypted, and asked without the passphrase; the backup's own directory was moved away for the moment.
	r.pass = "sealed"
	m = storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	before := contents(t, m)
	r.pass = ""
	must(t, storage.WriteAll(t.Context(), m, "archive/demo/15-1/0000000100000000/"+segmentObjectName(t, r), segmentBytes(t, r)))
	if _, err := r.stanza(m).Rebuild(t.Context(), r.control); err == nil || !strings.Contains(err.Error(), "encrypted") {
		t.Errorf("without the passphrase: %v", err)
	}
	must(t, lostInfo(t, before, m))
}

func segmentBytes(t *testing.T, r *rig) []byte {
	t.Helper()
	file, err := r.server.segment("000000010000000000000003")
	must(t, err)
	b, err := os.ReadFile(file)
	must(t, err)
	return b
}

func segmentObjectName(t *testing.T, r *rig) string {
	t.Helper()
	return fmt.Sprintf("000000010000000000000003-%x", sha1.Sum(segmentBytes(t, r)))
}

// lostInfo says which objects changed, info files included.
func lostInfo(t *testing.T, before map[string]string, st storage.Storage) error {
	t.Helper()
	now := contents(t, st)
	for name, was := range before {
		if now[name] != was {
			return fmt.Errorf("%s changed", name)
		}
	}
	return nil
}

// TestResumeDistrustsTimeStamps: an interrupted backup read a file where the time stamp did not tell its state. What it stored
// is compared with the file before it is taken over.
func TestResumeDistrustsTimeStamps(t *testing.T) {
	const size = 200_000
	for name, c := range map[string]struct {
		interrupted func(r *rig, s *fakeServer) engine.BackupOptions // options of the run that dies
		change      func(r *rig, s *fakeServer)                      // between the runs
		next        func(r *rig, s *fakeServer) engine.BackupOptions
	}{
		"standby was behind": {
			func(r *rig, s *fakeServer) engine.BackupOptions {
				s.onReplay = func() { r.touch("base/16384/2000", scribble(2, size), 9*time.Minute) }
				return fromStandby(s, engine.BackupOptions{})
			},
			func(r *rig, s *fakeServer) {
				s.onReplay = nil
				must(t, os.RemoveAll(s.dir))
				must(t, os.CopyFS(s.dir, os.DirFS(r.server.dir)))
			},
			func(_ *rig, s *fakeServer) engine.BackupOptions { return fromStandby(s, engine.BackupOptions{}) },
		},
		"standby was behind, then the primary": {
			func(r *rig, s *fakeServer) engine.BackupOptions {
				s.onReplay = func() { r.touch("base/16384/2000", scribble(2, size), 9*time.Minute) }
				return fromStandby(s, engine.BackupOptions{})
			},
			func(_ *rig, s *fakeServer) { s.onReplay = nil },
			func(*rig, *fakeServer) engine.BackupOptions { return engine.BackupOptions{} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 15)
			m := storage.NewMem(nil)
			must(t, r.create(t.Context(), m))
			r.touch("base/16384/2000", scribble(1, size), 20*time.Hour)
			r.age(20 * time.Hour)
			r.server.clock = time.Now().Add(-10 * time.Minute)
			s := r.withStandby()
			faulty, err := storage.NewFaulty(m, storage.Fault{Op: storage.OpCommit, Nth: 12, Kind: storage.Die})
			must(t, err)
			o := c.interrupted(r, s)
			o.Resume, o.SaveThreshold, o.ProcessMax, o.Compress = true, 1, 1, repo.None
			if _, err := r.backupWith(t.Context(), faulty, m, o); err == nil {
				t.Fatal("the fault did not end the backup")
			}
			c.change(r, s)
			r.warned()
			o = c.next(r, s)
			o.Resume, o.Compress = true, repo.None
			res, _ := r.mustBackup(m, o)
			if got := r.warned(); !strings.Contains(got, "it is resumed") {
				t.Errorf("warned %q", got)
			}
			r.holds(m, res.Label)
		})
	}
}

// TestResumeOfflineComparesContents: an interrupted online backup and an offline one (or one on another timeline) may have
// seen two data directories.
func TestResumeOfflineComparesContents(t *testing.T) {
	const size = 200_000
	r := newRig(t, 15)
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	r.touch("base/16384/2000", scribble(1, size), 20*time.Hour)
	r.age(20 * time.Hour)
	file := filepath.Join(r.server.dir, "base/16384/2000")
	info, err := os.Stat(file)
	must(t, err)
	faulty, err := storage.NewFaulty(m, storage.Fault{Op: storage.OpCommit, Nth: 12, Kind: storage.Die})
	must(t, err)
	if _, err := r.backupWith(t.Context(), faulty, m, engine.BackupOptions{Resume: true, SaveThreshold: 1, ProcessMax: 1, Compress: repo.None}); err == nil {
		t.Fatal("the fault did not end the backup")
	}
	must(t, os.WriteFile(file, []byte(scribble(2, size)), 0o600))
	must(t, os.Chtimes(file, info.ModTime(), info.ModTime()))
	r.warned()
	plan, err := r.stanza(m).PlanBackup(t.Context(), engine.BackupOptions{DataDir: r.server.dir, Offline: true, Resume: true, Compress: repo.None})
	must(t, err)
	res, err := plan.Run(t.Context())
	must(t, err)
	if got := r.warned(); !strings.Contains(got, "it is resumed") {
		t.Errorf("warned %q", got)
	}
	r.holds(m, res.Label)
}

// TestClockGrain: the kernel stamps files by a clock that lags some milliseconds. In the first moments of a second a file may
// be written and still get the second before as its time stamp; such a file is held back too.
func TestClockGrain(t *testing.T) {
	r := newRig(t, 15)
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	r.age(20 * time.Hour)
	second := time.Now().Truncate(time.Second)
	before := second.Add(-time.Second)
	must(t, os.Chtimes(filepath.Join(r.server.dir, "base/16384/16385"), before, before))
	began := time.Now()
	clock := func() time.Time { // five milliseconds into the second, then some time later
		if d := time.Since(began); d > 1500*time.Millisecond {
			return second.Add(5 * time.Second)
		}
		return second.Add(5 * time.Millisecond)
	}
	plan, err := r.stanzaAt(m, clock).PlanBackup(t.Context(), engine.BackupOptions{DataDir: r.server.dir, Offline: true, Compress: repo.None})
	must(t, err)
	_, err = plan.Run(t.Context())
	must(t, err)
	if d := time.Since(began); d < time.Second {
		t.Errorf("the backup took %s: the file was not held back", d)
	}
}

// TestRemovedWhileRunning: locks are those of one host. A backup by another host to the same repository takes what is there
// for the remainder of a dead one and removes it; the backup that comes to its end must not be called complete.
func TestRemovedWhileRunning(t *testing.T) {
	r := newRig(t, 15)
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	keeper := r.stanza(m)
	pushed := 0
	r.archiving = func(file string) error {
		_, err := keeper.Push(context.Background(), engine.PushOptions{Path: file, DataDir: r.server.dir, Compress: repo.LZ4})
		if pushed++; pushed < 2 { // the second one is that of pg_backup_stop
			return err
		}
		for d, err := range repo.Labels(context.Background(), m, "demo") {
			if err != nil {
				return err
			}
			for info, err := range m.List(context.Background(), repo.BackupDir("demo")+"/"+string(d.Label), storage.ListOptions{Recursive: true}) {
				if err := errors.Join(err, m.Remove(context.Background(), info.Name)); err != nil {
					return err
				}
			}
		}
		return err
	}
	res, err := r.backupWith(t.Context(), m, m, engine.BackupOptions{})
	if err == nil || !strings.Contains(err.Error(), "removed") {
		t.Errorf("result %+v, error: %v", res, err)
	}
	if got := r.labels(m); len(got) != 0 {
		t.Errorf("backups %v", got)
	}
}

// TestBackupKeepsUpgrade: a stanza-upgrade by another host while a backup runs is not undone when the backup ends; archiving
// of the new cluster would stop.
func TestBackupKeepsUpgrade(t *testing.T) {
	r := newRig(t, 15)
	m, _ := r.withBackups(1)
	next := r.control
	next.SystemID++
	var upgraded error
	s, err := engine.New(engine.Options{Stanza: "demo", Storage: m, Pass: r.pass, Local: time.UTC, Events: func(e engine.Event) {
		if step, ok := e.(engine.Step); ok && step.Verb == "backup" && step.Name == "publish" {
			_, upgraded = r.stanza(m).Upgrade(context.Background(), next)
		}
	}})
	must(t, err)
	plan, err := s.PlanBackup(t.Context(), engine.BackupOptions{Conn: r.server.conn(), DataDir: r.server.dir, Fast: true, Compress: repo.GZ, Level: 1})
	must(t, err)
	_, err = plan.Run(t.Context())
	must(t, errors.Join(err, upgraded))
	ai, err := repo.LoadArchiveInfo(t.Context(), m, "demo", r.pass)
	must(t, err)
	bi, err := repo.LoadBackupInfo(t.Context(), m, "demo", r.pass)
	must(t, err)
	if ai.Current != 2 || bi.Current != 2 || len(ai.History) != 2 || len(bi.Backups) != 2 {
		t.Errorf("archive.info: current %d of %d; backup.info: current %d, %d backups", ai.Current, len(ai.History), bi.Current, len(bi.Backups))
	}
}

// TestChangedWhileLooking: while a backup looks whether all that it stored is there, which takes minutes where a listing is slow,
// another host upgrades the stanza, or removes what the backup is built on. Neither goes unnoticed.
func TestChangedWhileLooking(t *testing.T) {
	r := newRig(t, 15)
	m, made := r.withBackups(1)
	first := made[0].Label
	// The one directory that is read whole is the new backup's.
	whole := func(dir string, o storage.ListOptions) bool {
		return o.Recursive && strings.HasPrefix(dir, "backup/demo/2")
	}
	l := &listed{Storage: m, is: whole, after: func() {
		name := repo.ManifestPath("demo", first)
		must(t, m.Remove(t.Context(), name, name+".copy"))
	}}
	_, err := r.backupWith(t.Context(), l, m, engine.BackupOptions{Type: repo.Incr})
	if l.after != nil || err == nil || !strings.Contains(err.Error(), "removed while it ran") {
		t.Errorf("an incr without its full backup: %v", err)
	}
	if got := r.labels(m); !slices.Equal(got, []repo.Label{first}) { // backup.info still has the line of it
		t.Errorf("backups %v", got)
	}
	r = newRig(t, 15)
	m, _ = r.withBackups(1)
	next := r.control
	next.SystemID++
	l = &listed{Storage: m, is: whole, after: func() {
		_, err := r.stanza(m).Upgrade(t.Context(), next)
		must(t, err)
	}}
	if _, err := r.backupWith(t.Context(), l, m, engine.BackupOptions{}); err != nil || l.after != nil {
		t.Errorf("upgraded: %v, %v", l.after == nil, err)
	}
	ai, err := repo.LoadArchiveInfo(t.Context(), m, "demo", r.pass)
	must(t, err)
	bi, err := repo.LoadBackupInfo(t.Context(), m, "demo", r.pass)
	must(t, err)
	if ai.Current != 2 || bi.Current != 2 || len(ai.History) != 2 {
		t.Errorf("the upgrade was undone: archive.info: current %d of %d; backup.info: current %d", ai.Current, len(ai.History), bi.Current)
	}
}

// TestTakenOverWhileRunning: as TestRemovedWhileRunning, but the backup saves its unfinished manifest again after its files
// were removed, or another host has resumed it: the directory looks as if it were this backup's, and is not.
func TestTakenOverWhileRunning(t *testing.T) {
	for name, other := range map[string]func(r *rig, m *storage.Mem) error{
		"removed": func(r *rig, m *storage.Mem) error {
			for info, err := range m.List(context.Background(), "backup/demo", storage.ListOptions{Recursive: true}) {
				if strings.HasPrefix(path.Base(info.Name), "backup.info") {
					continue
				}
				if err := errors.Join(err, m.Remove(context.Background(), info.Name)); err != nil {
					return err
				}
			}
			return nil
		},
		"resumed": func(r *rig, m *storage.Mem) error {
			for d, err := range repo.Labels(context.Background(), m, "demo") {
				if err != nil {
					return err
				}
				bi, err := repo.LoadBackupInfo(context.Background(), m, "demo", r.pass)
				if err != nil {
					return err
				}
				man, err := repo.LoadManifestCopy(context.Background(), m, "demo", d.Label, bi.CipherPass)
				if err != nil {
					return err
				}
				man.TimeStart++ // what the other host saves is not what we saved
				if _, err = repo.SaveManifestCopy(context.Background(), m, "demo", man, bi.CipherPass); err != nil {
					return err
				}
				for info, err := range m.List(context.Background(), "backup/demo/"+string(d.Label), storage.ListOptions{Recursive: true}) {
					f := man.File(strings.TrimPrefix(info.Name, "backup/demo/"+string(d.Label)+"/"))
					if err == nil && path.Base(info.Name) != "backup.manifest.copy" && (f == nil || f.SHA1 == "") { // it keeps what it read that we stored
						err = m.Remove(context.Background(), info.Name)
					}
					if err != nil {
						return err
					}
				}
				return nil
			}
			return errors.New("there is nothing to resume")
		},
	} {
		for when, hook := range map[string]hookedLater{ // a save is a look whether the last one is still there, and a new object
			"between saves":  {hooked{name: "2003"}, 0},
			"in a save":      {hooked{name: "backup.manifest.copy"}, 1},
			"before the end": {hooked{name: "2003"}, 0},
		} {
			o := engine.BackupOptions{SaveThreshold: 1}
			if when == "before the end" {
				o.SaveThreshold = 0
			}
			t.Run(name+" "+when, func(t *testing.T) {
				r, m := newStore(t)
				for i := range 6 {
					r.touch("base/16384/200"+string(rune('0'+i)), scribble(uint64(i), 50_000), 9*time.Hour)
				}
				o.Compress, o.ProcessMax = repo.None, 1
				var otherErr error
				hook.Storage, hook.at = m, func() { otherErr = other(r, m) }
				res, err := r.backupWith(t.Context(), &hook, m, o)
				must(t, otherErr)
				if err == nil || !strings.Contains(err.Error(), "another host") {
					t.Errorf("result %+v, error: %v", res, err)
				}
				if hook.at != nil {
					t.Error("the other host did nothing")
				}
				if got := r.labels(m); len(got) != 0 {
					t.Errorf("backups %v", got)
				}
				must(t, r.server.waitIdle())
			})
		}
	}
}

// TestPublishedWhileCleared: what this host takes for the remainder of a dead backup is published by another host just before
// it would be removed. It stays.
func TestPublishedWhileCleared(t *testing.T) {
	r, m := newStore(t)
	first, _ := r.mustBackup(m, engine.BackupOptions{})
	name := repo.ManifestPath("demo", first.Label)
	manifest, err := storage.ReadAll(t.Context(), m, name, 8<<20)
	must(t, err)
	must(t, m.Remove(t.Context(), name)) // its directory looks unfinished now
	cleared := &listed{Storage: m, is: second("backup/demo/" + string(first.Label)), after: func() { must(t, storage.WriteAll(t.Context(), m, name, manifest)) }}
	second, err := r.backupWith(t.Context(), cleared, m, engine.BackupOptions{})
	must(t, err)
	if cleared.after != nil {
		t.Fatal("nobody looked at the directory")
	}
	r.holds(m, first.Label)
	r.holds(m, second.Label)
	if got := r.labels(m); !slices.Equal(got, []repo.Label{first.Label, second.Label}) {
		t.Errorf("backups %v", got)
	}
}

// TestPublishedWhileResumed: what looked like an interrupted backup to resume is completed by another host while this one begins. It
// stays, and this host says so.
func TestPublishedWhileResumed(t *testing.T) {
	r, m := newStore(t)
	first, _ := r.mustBackup(m, engine.BackupOptions{})
	name := repo.ManifestPath("demo", first.Label)
	manifest, err := storage.ReadAll(t.Context(), m, name, 8<<20)
	must(t, err)
	must(t, m.Remove(t.Context(), name))
	resumed := &listed{Storage: m, is: second("backup/demo/" + string(first.Label)), after: func() { must(t, storage.WriteAll(t.Context(), m, name, manifest)) }}
	if _, err := r.backupWith(t.Context(), resumed, m, engine.BackupOptions{Resume: true, Compress: repo.LZ4, Level: 1}); err == nil || !strings.Contains(err.Error(), "another host has just completed it") {
		t.Errorf("error: %v", err)
	}
	if resumed.after != nil {
		t.Fatal("nobody looked at the directory")
	}
	r.holds(m, first.Label)
}

// listed calls after, once, when what is means has just been listed.
type listed struct {
	storage.Storage
	is    func(dir string, o storage.ListOptions) bool
	after func()
}

// second means the second listing of a directory: the plan looks at it, and then Run, which takes it for unfinished.
func second(want string) func(string, storage.ListOptions) bool {
	seen := 0
	return func(dir string, _ storage.ListOptions) bool {
		if dir == want {
			seen++
		}
		return dir == want && seen == 2
	}
}

func (l *listed) List(ctx context.Context, dir string, o storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		for info, err := range l.Storage.List(ctx, dir, o) {
			if !yield(info, err) {
				return
			}
		}
		if after := l.after; after != nil && l.is(dir, o) {
			l.after = nil
			after()
		}
	}
}

// TestOfflineServerStartedMeanwhile: a server that was started and stopped again while an offline backup ran leaves no
// postmaster.pid, but files of two moments in the backup, and no WAL to make one of them.
func TestOfflineServerStartedMeanwhile(t *testing.T) {
	r := newRig(t, 15)
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	r.age(20 * time.Hour)
	backup := func(st storage.Storage, force bool) error {
		plan, err := r.stanza(st).PlanBackup(t.Context(), engine.BackupOptions{DataDir: r.server.dir, Offline: true, Force: force, Compress: repo.None})
		if err != nil {
			return err
		}
		_, err = plan.Run(t.Context())
		return err
	}
	meanwhile := func() storage.Storage {
		return &hooked{m, "16385", func() {
			r.server.position += segmentSize
			must(t, r.server.checkpoint())
		}}
	}
	if err := backup(meanwhile(), false); !errors.Is(err, engine.ErrTargetRunning) {
		t.Errorf("error: %v", err)
	}
	if got := r.labels(m); len(got) != 0 {
		t.Errorf("backups %v", got)
	}
	must(t, backup(m, false))
	must(t, backup(meanwhile(), true)) // the operator has been warned
}

// TestSegmentStoredTwice: two pushes of one segment at the same moment, with different compression, leave it twice. That is no
// damage: archive-get takes either. Nor is it when one of them is damaged, as long as the other is good; but it is told.
func TestSegmentStoredTwice(t *testing.T) {
	r, m := newStore(t)
	full, _ := r.mustBackup(m, engine.BackupOptions{})
	twice := func(seg string) string {
		t.Helper()
		file := filepath.Join(r.server.dir, "pg_wal", seg)
		b, err := os.ReadFile(file)
		must(t, err)
		bi, err := repo.LoadArchiveInfo(t.Context(), m, "demo", r.pass)
		must(t, err)
		var stored bytes.Buffer
		w, err := repo.NewStreamWriter(&stored, repo.StreamSpec{Compress: repo.GZ, Level: 1, Pass: bi.CipherPass})
		must(t, err)
		_, err = w.Write(b)
		must(t, errors.Join(err, w.Close()))
		object := repo.SegmentPath("demo", "15-1", seg, sum(t, file), repo.GZ)
		must(t, storage.WriteAll(t.Context(), m, object, stored.Bytes()))
		return object
	}
	object := twice(full.ArchiveStop)
	must(t, r.verify(m, ""))
	must(t, r.verify(m, full.Label))
	r.archiving = func(file string) error { // each segment comes twice
		_, err := r.stanza(m).Push(context.Background(), engine.PushOptions{Path: file, DataDir: r.server.dir, Compress: repo.LZ4})
		twice(filepath.Base(file))
		return err
	}
	second, man := r.mustBackup(m, engine.BackupOptions{ArchiveCopy: true})
	if !man.HasFile("pg_data/pg_wal/" + second.ArchiveStop) {
		t.Error("the WAL was not copied into the backup")
	}
	must(t, r.verify(m, ""))

	must(t, storage.WriteAll(t.Context(), m, object, []byte("junk")))
	for _, set := range []repo.Label{"", full.Label} {
		res, err := r.stanza(m).Verify(t.Context(), engine.VerifyOptions{Set: set})
		must(t, err)
		if len(res.Findings) != 1 || res.Findings[0].Object != object || res.Verdicts[0].Status != engine.VerdictValid {
			t.Errorf("one of two is damaged: %v, %v", res.Findings, res.Verdicts)
		}
	}
	dest := filepath.Join(scratch(t), "got")
	must(t, r.stanza(m).Get(t.Context(), engine.GetOptions{Name: full.ArchiveStop, Dest: dest}))
	if sum(t, dest) != sum(t, filepath.Join(r.server.dir, "pg_wal", full.ArchiveStop)) {
		t.Error("the segment came back changed")
	}
}

// TestCreateAtOnce: two hosts create one stanza in an encrypted repository at the same moment. Each draws passphrases of its own,
// and what is encrypted by one that was overwritten is lost: only the host whose files are there may be told that it succeeded.
func TestCreateAtOnce(t *testing.T) {
	for _, at := range []string{"archive.info.copy", "backup.info", "backup.info.copy"} {
		r := newRig(t, 15)
		m := storage.NewMem(nil)
		other := func() {
			elsewhere := storage.NewMem(nil)
			must(t, r.create(t.Context(), elsewhere))
			for name, text := range contents(t, elsewhere) {
				if strings.Contains(name, "archive.info") {
					must(t, storage.WriteAll(t.Context(), m, name, []byte(text)))
				}
			}
		}
		if err := r.create(t.Context(), &hooked{m, at, other}); err == nil || !strings.Contains(err.Error(), "same moment") {
			t.Errorf("%s: %v", at, err)
		}
		must(t, r.create(t.Context(), m))
		must(t, r.verified(m))
	}
}

// TestResumeChecksPages: an interrupted backup did not verify page checksums, the one that takes it over does: what it takes
// over without verifying it would be called good.
func TestResumeChecksPages(t *testing.T) {
	r, m := newStore(t)
	r.server.checksums = 1
	must(t, r.server.checkpoint())
	page, err := os.ReadFile(filepath.Join("..", "pg", "testdata", "page-0"))
	must(t, err)
	page[5000] ^= 1
	r.touch("base/16384/2000", string(page)+strings.Repeat("\x00", 10*8192), 9*time.Hour)
	faulty, err := storage.NewFaulty(m, storage.Fault{Op: storage.OpCommit, Nth: 14, Kind: storage.Die})
	must(t, err)
	off := false
	if _, err := r.backupWith(t.Context(), faulty, m, engine.BackupOptions{Compress: repo.None, SaveThreshold: 1, ProcessMax: 1, ChecksumPage: &off}); err == nil {
		t.Fatal("the fault did not end the backup")
	}
	res, man := r.mustBackup(m, engine.BackupOptions{Resume: true, Compress: repo.None})
	if w := r.warned(); !strings.Contains(w, "it is resumed") {
		t.Errorf("warned %q", w)
	}
	if f := man.File("pg_data/base/16384/2000"); !f.PageChecked || f.PageOK || !slices.Contains(res.PageErrors, f.Name) {
		t.Errorf("the bad page is not reported: %+v, %v", f, res.PageErrors)
	}
}

// TestLabelsOfASetStayInOrder: the clock goes back an hour (daylight saving), the newest backup is of another set. The next
// incr of the older set must still sort behind the one it is built on.
func TestLabelsOfASetStayInOrder(t *testing.T) {
	r, m := newStore(t)
	r.mustBackup(m, engine.BackupOptions{})
	incr, _ := r.mustBackup(m, engine.BackupOptions{Type: repo.Incr})
	last, _ := r.mustBackup(m, engine.BackupOptions{})
	_, err := r.expire(t.Context(), m, engine.ExpireOptions{Set: last.Label})
	must(t, err)
	r.server.clock = r.server.clock.Add(-3 * time.Hour)
	next, _ := r.mustBackup(m, engine.BackupOptions{Type: repo.Incr})
	if next.Label <= incr.Label || next.Label.FullLabel() != incr.Label.FullLabel() {
		t.Errorf("%s comes after %s", next.Label, incr.Label)
	}
	must(t, r.verified(m))
}

// TestDataDirBehindLink: the data directory is reached through a symbolic link, and a link in it leads to a neighbour. The way
// back up is that of the real place.
func TestDataDirBehindLink(t *testing.T) {
	r := newRig(t, 15)
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	must(t, os.Mkdir(filepath.Dir(r.server.dir)+"/logs", 0o700))
	r.server.write(t, filepath.Dir(r.server.dir)+"/logs/today", "a line\n")
	link(t, "../logs", r.server.dir+"/log")
	r.age(20 * time.Hour)
	behind := func(dir string) string {
		name := filepath.Join(scratch(t), "there")
		link(t, dir, name)
		return name
	}
	r.server.saysDir = behind(r.server.dir)
	real := r.server.dir
	r.server.dir = r.server.saysDir
	res, man := r.mustBackup(m, engine.BackupOptions{})
	r.server.dir = real
	if f := man.File("pg_data/log/today"); f == nil || f.Size != 7 {
		t.Errorf("what is behind the link is not in the backup: %+v", f)
	}

	top := scratch(t)
	dir := filepath.Join(top, "data")
	mkdir(t, dir)
	o := r.restoreOptions(behind(dir), res.Label)
	plan, err := r.stanzaAt(m, fixedClock).PlanRestore(t.Context(), o)
	must(t, err)
	_, err = plan.Run(t.Context())
	must(t, err)
	if b, err := os.ReadFile(filepath.Join(dir, "log/today")); string(b) != "a line\n" {
		t.Errorf("what is behind the restored link: %q, %v", b, err)
	}
	if diff := differ(map[string]string{".": "dir", "data": "dir", "logs": "dir", "logs/today": "a line\n"}, shallow(tree(t, top))); diff != "" {
		t.Errorf("%s is not where it should be", diff)
	}

	// Two places that are one by another name overlap.
	o.LinkMap = map[string]string{"pg_xact": filepath.Join(dir, "elsewhere")}
	o.Delta = true
	if _, err := r.stanzaAt(m, fixedClock).PlanRestore(t.Context(), o); !errors.Is(err, engine.ErrLinkInside) {
		t.Errorf("a link into the data directory by its real name: %v", err)
	}
}

// shallow leaves out what is below data.
func shallow(all map[string]string) map[string]string {
	for name := range all {
		if strings.HasPrefix(name, "data/") {
			delete(all, name)
		}
	}
	return all
}

// TestNoBackupWithoutControl: whatever keeps pg_control out of the list of files, there is no backup without it.
func TestNoBackupWithoutControl(t *testing.T) {
	r, m := newStore(t)
	_, err := r.backupWith(t.Context(), m, m, engine.BackupOptions{Exclude: []string{"global/"}})
	if err == nil || !strings.Contains(err.Error(), "pg_control") {
		t.Errorf("error: %v", err)
	}
	if got := r.labels(m); len(got) != 0 {
		t.Errorf("backups %v", got)
	}
}

// TestFileBecomesLink: what was a file when the manifest was built is a link when it is copied. PostgreSQL does not do that;
// who does may want to have something else read, for the backup may run as root.
func TestFileBecomesLink(t *testing.T) {
	r, m := newStore(t)
	secret := r.server.write(t, scratch(t)+"/secret", strings.Repeat("not yours", 10_000))
	file := filepath.Join(r.server.dir, "base/16384/2000")
	_, err := r.backupWith(t.Context(), &hooked{m, "backup.manifest.copy", func() {
		must(t, os.Remove(file))
		link(t, secret, file)
	}}, m, engine.BackupOptions{})
	if err == nil || !strings.Contains(err.Error(), "base/16384/2000") {
		t.Errorf("error: %v", err)
	}
}

// TestClockBackDuringBackup: the clock is put back an hour while a backup runs. It does not wait for it to come round again.
func TestClockBackDuringBackup(t *testing.T) {
	r := newRig(t, 15)
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	r.age(20 * time.Hour)
	now := time.Now().Round(0) // like a clock on the wall
	must(t, os.Chtimes(filepath.Join(r.server.dir, "base/16384/16385"), now, now))
	var copying atomic.Bool
	s, err := engine.New(engine.Options{Stanza: "demo", Storage: m, Pass: r.pass, Local: time.UTC, Events: func(e engine.Event) {
		if step, ok := e.(engine.Step); ok && step.Name == "copy" {
			copying.Store(true)
		}
	}, Now: func() time.Time {
		if copying.Load() {
			return time.Now().Round(0).Add(-time.Hour)
		}
		return time.Now().Round(0)
	}})
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	plan, err := s.PlanBackup(ctx, engine.BackupOptions{DataDir: r.server.dir, Offline: true, Compress: repo.None})
	must(t, err)
	res, err := plan.Run(ctx)
	must(t, err)
	r.holds(m, res.Label)
}

// TestRestoreWithoutArchive: the archive is lost with its info file, the backups are not. What needs no WAL of the archive can
// be restored: the files as they are, or up to the end of the backup with the WAL that is in it.
func TestRestoreWithoutArchive(t *testing.T) {
	r, m := newStore(t)
	res, _ := r.mustBackup(m, engine.BackupOptions{ArchiveCopy: true})
	for name := range contents(t, m) {
		if strings.HasPrefix(name, "archive/") {
			must(t, m.Remove(t.Context(), name))
		}
	}
	for typ, works := range map[engine.TargetType]bool{engine.TargetNone: true, engine.TargetImmediate: true, engine.TargetPreserve: true, engine.TargetDefault: false, engine.TargetStandby: false} {
		o := r.restoreOptions(filepath.Join(scratch(t), "data"), res.Label)
		o.Type = typ
		plan, err := r.stanzaAt(m, fixedClock).PlanRestore(t.Context(), o)
		if !works {
			if !errors.Is(err, engine.ErrStanzaMissing) || !strings.Contains(err.Error(), "--type=immediate") {
				t.Errorf("%s: %v", typ, err)
			}
			continue
		}
		must(t, err)
		if w := strings.Join(plan.Warnings, "\n"); !strings.Contains(w, "archive.info") {
			t.Errorf("%s: warnings %q", typ, w)
		}
		_, err = plan.Run(t.Context())
		must(t, err)
		if b, err := os.ReadFile(filepath.Join(o.DataDir, "base/16384/2000")); err != nil || len(b) != 80*8192 {
			t.Errorf("%s: %d bytes, %v", typ, len(b), err)
		}
	}
}

// TestNoBackupWithoutItsWAL: each segment that a backup needs has to be in the archive before the backup exists, the first one
// as well as the last.
func TestNoBackupWithoutItsWAL(t *testing.T) {
	for lost := 1; lost <= 2; lost++ {
		r, m := newStore(t)
		keeper, n := r.stanza(m), 0
		r.archiving = func(file string) error {
			if n++; n == lost {
				return nil // archive_command says that it has done it
			}
			_, err := keeper.Push(context.Background(), engine.PushOptions{Path: file, DataDir: r.server.dir, Compress: repo.LZ4})
			return err
		}
		_, err := r.backupWith(t.Context(), m, m, engine.BackupOptions{ArchiveTimeout: 300 * time.Millisecond})
		if !errors.Is(err, engine.ErrArchiveTimeout) {
			t.Errorf("without segment %d: %v", lost, err)
		}
		if got := r.labels(m); len(got) != 0 {
			t.Errorf("without segment %d: backups %v", lost, got)
		}
		must(t, r.server.waitIdle())
	}
}

// TestBackupBringsHistory: the history file of the timeline is in the archive after a backup, wherever it was; if it is nowhere
// there is no backup, for PostgreSQL would not find that timeline again.
func TestBackupBringsHistory(t *testing.T) {
	r, m := newStore(t)
	r.server.timeline = 0x1A
	must(t, r.server.checkpoint())
	if _, err := r.backupWith(t.Context(), m, m, engine.BackupOptions{}); err == nil || !strings.Contains(err.Error(), "timeline 26") {
		t.Errorf("without a history file: %v", err)
	}
	const text = "25\t0/1000000\tno recovery target specified\n"
	r.server.write(t, "pg_wal/0000001A.history", text)
	r.mustBackup(m, engine.BackupOptions{})
	dest := filepath.Join(scratch(t), "got")
	must(t, r.stanza(m).Get(t.Context(), engine.GetOptions{Name: "0000001A.history", Dest: dest}))
	if b, err := os.ReadFile(dest); string(b) != text {
		t.Errorf("the archive has %q, %v", b, err)
	}
	must(t, os.Remove(filepath.Join(r.server.dir, "pg_wal/0000001A.history")))
	r.mustBackup(m, engine.BackupOptions{Type: repo.Incr})
}

// TestTablespaceMapIsKept: what PostgreSQL hands over at the end of a backup is stored, tablespace_map as well as backup_label.
// A restore makes the links itself, but who copies an unbundled backup away by hand needs it.
func TestTablespaceMapIsKept(t *testing.T) {
	r, m := newStore(t)
	_, without := r.mustBackup(m, engine.BackupOptions{Compress: repo.None})
	if !without.HasFile("pg_data/backup_label") || without.HasFile("pg_data/tablespace_map") {
		t.Error("without tablespaces there is a tablespace_map, or no backup_label")
	}
	r.server.spaceMap = "24576 /srv/fast\n"
	res, man := r.mustBackup(m, engine.BackupOptions{Compress: repo.None, Bundle: true})
	f := man.File("pg_data/tablespace_map")
	if f == nil || f.Size != int64(len(r.server.spaceMap)) || f.BundleID != 0 {
		t.Fatalf("tablespace_map: %+v", f)
	}
	must(t, r.verified(m))
	dir := filepath.Join(scratch(t), "data")
	must(t, r.restore(t.Context(), m, dir, res.Label))
	if _, err := os.Lstat(filepath.Join(dir, "tablespace_map")); err == nil {
		t.Error("it is restored")
	}
}

// TestDataDirOfAnotherServer: a copy of the data directory has the same system identifier. That the server which answers works
// on another one shows in pg_control: it lacks the checkpoint with which the backup began, or is on another timeline.
func TestDataDirOfAnotherServer(t *testing.T) {
	for name, change := range map[string]func(f *fakeServer){
		"an old copy": func(f *fakeServer) { f.elsewhere = true },
		"another timeline": func(f *fakeServer) {
			f.position += segmentSize
			must(t, f.checkpoint())
			f.elsewhere, f.timeline = true, 2
			f.position -= segmentSize
		},
	} {
		r, m := newStore(t)
		change(r.server)
		_, err := r.backupWith(t.Context(), m, m, engine.BackupOptions{})
		if err == nil || !strings.Contains(err.Error(), "not that of the server") {
			t.Errorf("%s: %v", name, err)
		}
		must(t, r.server.waitIdle())
	}
}

// TestHistoryManifestIsMadeGood: a backup that died between its manifest and the copy of it that outlives the backup exists. The
// next backup, or expire, lists it and writes that copy; without it verify would find fault with the backup as long as it lives.
func TestHistoryManifestIsMadeGood(t *testing.T) {
	for name, next := range map[string]func(r *rig, m *storage.Mem) error{
		"backup": func(r *rig, m *storage.Mem) error {
			_, err := r.backupWith(t.Context(), m, m, engine.BackupOptions{})
			return err
		},
		"expire": func(r *rig, m *storage.Mem) error {
			_, err := r.expire(t.Context(), m, engine.ExpireOptions{Full: 5})
			return err
		},
		"annotate": func(r *rig, m *storage.Mem) error {
			l := repo.Label("")
			for d, err := range repo.Labels(t.Context(), m, "demo") {
				must(t, err)
				l = d.Label
			}
			return r.stanza(m).Annotate(t.Context(), l, map[string]string{"a": "b"})
		},
	} {
		r, m := newStore(t)
		faulty, err := storage.NewFaulty(m, storage.Fault{Op: storage.OpCreate, Name: "*.manifest.gz", Nth: 1, Kind: storage.Die})
		must(t, err)
		if _, err := r.backupWith(t.Context(), faulty, m, engine.BackupOptions{}); err == nil {
			t.Fatal("the fault was not felt")
		}
		must(t, next(r, m))
		if err := r.verified(m); err != nil {
			t.Errorf("after %s: %v", name, err)
		}
	}
}
