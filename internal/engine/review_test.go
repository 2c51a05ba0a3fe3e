package engine_test

import (
	"os"
	"path/filepath"
	"strings"
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
			b[at+20_000] ^= 1
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
