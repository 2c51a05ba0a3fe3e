package engine_test

import (
	"path/filepath"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// TestLargeFilesInFrames: a file that is compressed in frames at the same time is stored as one stream that restores and
// verifies, with every type, encrypted and not; a failing store fails the backup.
func TestLargeFilesInFrames(t *testing.T) {
	for _, c := range []repo.CompressType{repo.None, repo.GZ, repo.LZ4, repo.ZST, repo.BZ2} {
		for _, pass := range []repo.Secret{"", "frames"} {
			t.Run(string(c)+"-"+string(pass), func(t *testing.T) {
				r := newRig(t, 15)
				r.pass = pass
				m := storage.NewMem(nil)
				must(t, r.create(t.Context(), m))
				text := scribble(1, 5_000)
				for len(text) < 9<<20 {
					text += text
				}
				r.touch("base/16384/2000", text[:9<<20+77], 9*time.Hour)
				o := engine.BackupOptions{Compress: c, Level: 1}
				res, got := r.mustBackup(m, o)
				f := got.File("pg_data/base/16384/2000")
				if c != repo.None && f.RepoSize > f.Size*9/10 {
					t.Errorf("%d bytes are stored as %d", f.Size, f.RepoSize)
				}
				r.holds(m, res.Label)
				must(t, r.verified(m))
				object := filepath.Join("backup/demo", string(res.Label), f.Name+c.Ext())
				b, err := storage.ReadAll(t.Context(), m, object, 32<<20)
				must(t, err)
				b[len(b)/2] ^= 1
				must(t, storage.WriteAll(t.Context(), m, object, b))
				if err := r.verified(m); err == nil {
					t.Error("a flipped bit goes unseen")
				}
			})
		}
	}
	r := newRig(t, 15)
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	r.touch("base/16384/2000", scribble(1, 9<<20), 9*time.Hour)
	for n := 20; n < 40; n += 5 {
		faulty, err := storage.NewFaulty(m.CrashClone(), storage.Fault{Op: storage.OpWrite, Nth: n, Kind: storage.FailBefore})
		must(t, err)
		if _, err := r.backupWith(t.Context(), faulty, faulty, engine.BackupOptions{Compress: repo.LZ4, Level: 1}); err == nil && faulty.Fired() {
			t.Errorf("write %d failed and the backup succeeded", n)
		}
	}
}
