package engine_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"strings"
	"testing"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// TestBase: what there is to build on, newest first, and of which cluster.
func TestBase(t *testing.T) {
	r := newRig(t, 15)
	m := r.mutationRepo(engine.BackupOptions{Compress: repo.ZST})
	labels := r.labels(m)
	b, err := r.stanza(m).Base(t.Context(), r.server.dir)
	must(t, err)
	if len(b.Backups) != 4 || b.Others != 0 || b.Control.SystemID != r.control.SystemID || len(b.SinceFull()) != 4 {
		t.Errorf("%+v", b)
	}
	if incr, diff := b.Prior(repo.Incr), b.Prior(repo.Diff); incr == nil || incr.Label != labels[3] || diff == nil || diff.Label != labels[0] {
		t.Errorf("%+v %+v", incr, diff)
	}
	bi, err := repo.LoadBackupInfo(t.Context(), m, "demo", r.pass)
	must(t, err)
	bi.History = append(bi.History, repo.DB{ID: 2, SystemID: r.control.SystemID, Version: "15", CatalogVersion: bi.History[0].CatalogVersion, ControlVersion: bi.History[0].ControlVersion})
	bi.Current = 2
	must(t, repo.SaveBackupInfo(t.Context(), m, "demo", bi, r.pass))
	if b, err = r.stanza(m).Base(t.Context(), r.server.dir); err != nil || len(b.Backups) != 0 || b.Others != 4 || b.Prior(repo.Incr) != nil || b.SinceFull() != nil {
		t.Errorf("after an upgrade: %v %+v", err, b)
	}
}

// TestLookAtPrior: every object of the whole chain that is missing or cut is found, and a store that is away is not taken for one.
func TestLookAtPrior(t *testing.T) {
	for name, o := range map[string]engine.BackupOptions{"files": {Compress: repo.ZST}, "blocks": {Compress: repo.ZST, Bundle: true, BundleLimit: 64 << 10, Block: true}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 15)
			m := r.mutationRepo(o)
			s := r.stanza(m)
			b, err := s.Base(t.Context(), r.server.dir)
			must(t, err)
			line := b.Prior(repo.Incr) // full, diff, incr: the incr between is nothing to it
			f, err := s.LookAtPrior(t.Context(), line)
			if err != nil || f.Damage != "" || f.Compress != repo.ZST || f.Block != o.Block || f.ChecksumPage != (r.control.DataChecksumVersion != 0) {
				t.Fatalf("%v %+v", err, f)
			}
			chain := map[string]bool{string(line.Label): true}
			for _, l := range line.References {
				chain[string(l)] = true
			}
			tested := 0
			for object, content := range contents(t, m) {
				parts := strings.Split(object, "/")
				if len(parts) < 4 || parts[0] != "backup" || !chain[parts[2]] || strings.HasPrefix(path.Base(object), "backup.manifest") || content == "" {
					continue
				}
				if own := r.manifest(m, repo.Label(parts[2])); !holds(own, object) {
					continue // an empty file, of which compression makes some bytes
				}
				tested++
				for _, bad := range []string{"", content[:len(content)-1]} {
					left := m.CrashClone()
					if bad == "" {
						must(t, left.Remove(t.Context(), object))
					} else {
						must(t, storage.WriteAll(t.Context(), left, object, []byte(bad)))
					}
					if f, err := r.stanza(left).LookAtPrior(t.Context(), line); err != nil || !strings.Contains(f.Damage, object) {
						t.Errorf("%s with %d bytes: %v %+v", object, len(bad), err, f)
					}
				}
			}
			if tested < 5 {
				t.Errorf("only %d objects", tested)
			}
			for label := range chain {
				left := m.CrashClone()
				for _, n := range []string{"", ".copy"} {
					must(t, storage.WriteAll(t.Context(), left, repo.ManifestPath("demo", repo.Label(label))+n, []byte("nonsense")))
				}
				if _, err := r.stanza(left).LookAtPrior(t.Context(), line); !errors.Is(err, engine.ErrNoPrior) {
					t.Errorf("manifest of %s: %v", label, err)
				}
			}
			for n := 1; ; n++ {
				away := storage.Temporary(errors.New("503 SlowDown"))
				faulty, err := storage.NewFaulty(m, storage.Fault{Nth: n, Err: away})
				must(t, err)
				f, err := r.stanza(faulty).LookAtPrior(t.Context(), line)
				if !faulty.Fired() {
					if n < 5 {
						t.Errorf("only %d calls", n)
					}
					break
				}
				if !errors.Is(err, storage.ErrUnavailable) || errors.Is(err, engine.ErrNoPrior) {
					t.Errorf("call %d: %v %+v", n, err, f)
				}
			}
		})
	}
}

// holds says whether a backup stores content of a file in an object.
func holds(m *repo.Manifest, object string) bool {
	for i := range m.Files {
		if f := &m.Files[i]; f.Size > 0 && f.Reference == "" {
			if name, _, _, _ := m.Object("demo", f); name == object {
				return true
			}
		}
	}
	return false
}

// TestTrimWALAround: what lies before the newest backup goes, but for what each backup needs to become consistent; broken off at any
// call, a second run completes it, and nothing more is gone.
func TestTrimWALAround(t *testing.T) {
	r := newRig(t, 15)
	base, made := r.withBackups(3)
	for range 2 { // WAL between the backups, which a chain does not need
		must(t, r.server.switchWAL())
	}
	last, err := r.backup(t.Context(), base, base)
	must(t, err)
	keep := last.ArchiveStart
	needed := func(seg string) bool {
		for _, b := range made {
			if b.ArchiveStart <= seg && seg <= b.ArchiveStop {
				return true
			}
		}
		return seg >= keep
	}
	between := 0
	stays := contents(t, base)
	maps.DeleteFunc(stays, func(name, _ string) bool {
		seg, _, _, isSegment := repo.ParseSegmentObject(path.Base(name))
		if isSegment && !needed(seg) {
			between++
			return true
		}
		return false
	})
	if between == 0 {
		t.Fatal("nothing is to go")
	}
	faultTest{base: base, calls: 4, keep: r.keeps(stays, base, last.Label),
		run: func(ctx context.Context, st, _ storage.Storage) error {
			return r.stanza(st).TrimWALAround(ctx, last.DB, keep)
		},
		right: func(st storage.Storage) error {
			for name := range contents(t, st) {
				if seg, _, _, isSegment := repo.ParseSegmentObject(path.Base(name)); isSegment && !needed(seg) {
					return fmt.Errorf("%s stayed", name)
				}
			}
			return errors.Join(lost(t, stays, st), r.verified(st))
		},
	}.each(t)
	failsWith(t, "no segment", r.stanza(base).TrimWALAround(t.Context(), last.DB, "x"), nil, "WAL segment")
}
