package engine_test

import (
	"errors"
	"strings"
	"testing"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// TestRebuild loses info files in every combination; what is written anew lists every backup, and the stanza goes on.
func TestRebuild(t *testing.T) {
	r := newRig(t, 15)
	r.pass = ""
	base, made := r.withBackups(2)
	for name, lose := range map[string][]string{
		"backup.info":  {"backup/demo/backup.info"},
		"archive.info": {"archive/demo/archive.info"},
		"both":         {"backup/demo/backup.info", "archive/demo/archive.info"},
		"neither":      nil,
	} {
		t.Run(name, func(t *testing.T) {
			m := base.CrashClone()
			for i, n := range lose {
				must(t, m.Remove(t.Context(), n))
				if i == 0 {
					must(t, storage.WriteAll(t.Context(), m, n+".copy", []byte("[torn")))
				} else {
					must(t, m.Remove(t.Context(), n+".copy"))
				}
			}
			res, err := r.stanza(m).Rebuild(t.Context(), r.control)
			must(t, err)
			if len(res.Files) != len(lose) || len(res.Backups) != 2 || len(res.History) != 1 {
				t.Errorf("result %+v", res)
			}
			must(t, r.verified(m))
			r.holds(m, made[1].Label)
			next, _ := r.mustBackup(m, engine.BackupOptions{Type: repo.Incr, Compress: repo.GZ, Level: 1})
			if next.Label.FullLabel() != made[1].Label {
				t.Errorf("the next incr is %s", next.Label)
			}
		})
	}
	m := base.CrashClone()
	must(t, m.Remove(t.Context(), "archive/demo/archive.info", "archive/demo/archive.info.copy"))
	other := r.control
	other.SystemID++
	if _, err := r.stanza(m).Rebuild(t.Context(), other); !errors.Is(err, engine.ErrStanzaMismatch) {
		t.Errorf("another cluster's data directory: %v", err)
	}
	if _, err := r.stanza(storage.NewMem(nil)).Rebuild(t.Context(), r.control); !errors.Is(err, engine.ErrStanzaMissing) {
		t.Errorf("an empty repository: %v", err)
	}
	r.pass = "sealed"
	if _, err := r.stanza(m).Rebuild(t.Context(), r.control); err == nil || !strings.Contains(err.Error(), "encrypted") {
		t.Errorf("an encrypted repository: %v", err)
	}
}

// TestRebuildFromWAL: a stanza that has WAL but no backup yet.
func TestRebuildFromWAL(t *testing.T) {
	r := newRig(t, 15)
	r.pass = ""
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	file, err := r.server.segment("0000000100000000000000AA")
	must(t, err)
	_, err = r.push(m, file, repo.ZST)
	must(t, err)
	for _, n := range []string{"backup/demo/backup.info", "archive/demo/archive.info"} {
		must(t, m.Remove(t.Context(), n, n+".copy"))
	}
	_, err = r.stanza(m).Rebuild(t.Context(), r.control)
	must(t, err)
	res, _ := r.mustBackup(m, engine.BackupOptions{})
	r.holds(m, res.Label)
}
