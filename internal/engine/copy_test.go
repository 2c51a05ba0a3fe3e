package engine_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/test/tally"
)

// on opens "demo" on another store, under another passphrase.
func (r *rig) on(st storage.Storage, pass repo.Secret) *engine.Stanza {
	r.t.Helper()
	s, err := engine.New(engine.Options{Stanza: "demo", Storage: st, Pass: pass, Local: time.UTC, Events: r.note})
	must(r.t, err)
	return s
}

// note keeps warnings.
func (r *rig) note(e engine.Event) {
	if w, ok := e.(engine.Warning); ok {
		r.mu.Lock()
		r.warnings = append(r.warnings, w.Text)
		r.mu.Unlock()
	}
}

// copyTo plans and runs a copy.
func (r *rig) copyTo(ctx context.Context, from, to *engine.Stanza, o engine.CopyOptions) (*engine.CopyResult, error) {
	plan, err := engine.PlanCopy(ctx, from, to, o)
	if err != nil {
		return nil, err
	}
	return plan.Run(ctx)
}

// with gives the rig another passphrase while f runs.
func (r *rig) with(pass repo.Secret, f func()) {
	was := r.pass
	r.pass = pass
	defer func() { r.pass = was }()
	f()
}

// sources are repositories with a chain of every way to store files; the last backup is built on all before it.
var sources = map[string]engine.BackupOptions{
	"files":          {Compress: repo.GZ},
	"no compression": {Compress: repo.None},
	"bundles":        {Bundle: true, Compress: repo.LZ4, BundleSize: 30_000},
	"blocks":         {Block: true, Compress: repo.ZST},
	"bundled blocks": {Bundle: true, Block: true, Compress: repo.ZST, BundleLimit: 100_000},
	"plain blocks":   {Bundle: true, Block: true, Compress: repo.None},
}

// chainOf makes a full, an incr, an incr and a diff, with changes in between.
func (r *rig) chainOf(st storage.Storage, o engine.BackupOptions) []repo.Label {
	r.t.Helper()
	r.touch("base/16384/2000", scribble(1, 300_000), 30*time.Hour)
	var labels []repo.Label
	for i, typ := range []repo.BackupType{repo.Full, repo.Incr, repo.Incr, repo.Diff} {
		r.server.churn(r.t, i)
		big := []byte(scribble(1, 300_000))
		copy(big[i*50_000:], fmt.Sprintf("page of turn %d", i))
		r.touch("base/16384/2000", string(big), time.Duration(20-i)*time.Hour)
		o.Type = typ
		res, err := r.backupWith(r.t.Context(), st, st, o)
		must(r.t, err)
		labels = append(labels, res.Label)
	}
	return labels
}

// TestCopyEmptiedInBundle: a file that the server truncated to nothing while pgbackrest copied it is in a bundle, with no byte of its
// own, at the place where the next file begins.
func TestCopyEmptiedInBundle(t *testing.T) {
	for _, to := range []repo.Secret{"", "two"} {
		r, ctx := newRig(t, 15), t.Context()
		r.pass = ""
		src, dst := storage.NewMem(nil), storage.NewMem(nil)
		must(t, r.create(ctx, src))
		r.touch("base/16384/9999", "", time.Hour)
		res, err := r.backupWith(ctx, src, src, engine.BackupOptions{Bundle: true, Compress: repo.None})
		must(t, err)
		m := r.manifest(src, res.Label)
		empty := m.File("pg_data/base/16384/9999")
		for i := range m.Files {
			if f := &m.Files[i]; f.BundleID != 0 && f.Size > 0 && f.Name < empty.Name {
				empty.BundleID, empty.BundleOffset = f.BundleID, f.BundleOffset
				break
			}
		}
		if empty.Size != 0 || empty.BundleID == 0 {
			t.Fatalf("%+v", empty)
		}
		must(t, src.Remove(ctx, repo.ManifestPath("demo", res.Label)))
		must(t, repo.PublishManifest(ctx, src, "demo", m, ""))
		must(t, r.verified(src))
		want, err := r.restored(src, res.Label)
		must(t, err)
		_, err = r.copyTo(ctx, r.on(src, ""), r.on(dst, to), engine.CopyOptions{All: true})
		must(t, err)
		if w := r.warned(); w != "" {
			t.Errorf("%s", w)
		}
		r.with(to, func() {
			got, err := r.restored(dst, res.Label)
			must(t, err)
			must(t, r.verified(dst))
			if !maps.Equal(got, want) {
				t.Error("the copy restores to something else")
			}
		})
	}
}

// TestCopyCiphers copies chains of every kind between repositories with and without passphrases, throws the source away, and
// wants the same back from the copy.
func TestCopyCiphers(t *testing.T) {
	proven := 0
	for name, o := range sources {
		for _, c := range casesToRun([]struct {
			from, to repo.Secret
			o        engine.CopyOptions
		}{
			{"one", "two", engine.CopyOptions{Reencrypt: true}},
			{"", "", engine.CopyOptions{}},
			{"one", "one", engine.CopyOptions{}},
			{"one", "two", engine.CopyOptions{}},
			{"", "two", engine.CopyOptions{}},
			{"one", "", engine.CopyOptions{Decrypt: true}},
		}) {
			t.Run(fmt.Sprintf("%s/%s to %s %t", name, string(c.from), string(c.to), c.o.Reencrypt), func(t *testing.T) {
				r := newRig(t, 15)
				r.pass = c.from
				src, dst := storage.NewMem(nil), storage.NewMem(nil)
				must(t, r.create(t.Context(), src))
				labels := r.chainOf(src, o)
				want := map[repo.Label]map[string]string{}
				for _, l := range labels {
					got, err := r.restored(src, l)
					must(t, err)
					want[l] = got
				}
				before := contents(t, src)
				c.o.All, c.o.WAL, c.o.ProcessMax = true, engine.WALAll, 4
				res, err := r.copyTo(t.Context(), r.on(src, c.from), r.on(dst, c.to), c.o)
				must(t, err)
				if !slices.Equal(res.Backups, labels) {
					t.Errorf("copied %v", res.Backups)
				}
				if !maps.Equal(before, contents(t, src)) {
					t.Error("the source changed")
				}
				if c.to != "" {
					plainTexts(t, dst)
				}
				must(t, src.Remove(t.Context(), src.Names()...))
				r.with(c.to, func() {
					must(t, r.verified(dst))
					for _, l := range labels {
						got, err := r.restored(dst, l)
						must(t, err)
						if !maps.Equal(got, want[l]) {
							t.Errorf("%s restores to other files from the copy", l)
						}
						proven++
					}
				})
				if c.o.Reencrypt {
					allDiffer(t, before, dst)
				}
			})
		}
	}
	tally.Count(t, "backups restored from a copy alone", proven)
}

// plainTexts fails when an object is there that is not encrypted.
func plainTexts(t *testing.T, st *storage.Mem) {
	t.Helper()
	for name, b := range contents(t, st) {
		if strings.Contains(b, "[backrest]") || strings.Contains(b, "page of turn") || strings.Contains(b, "START WAL LOCATION") {
			t.Errorf("%s is not encrypted", name)
		}
		if !strings.Contains(name, "/bundle/") && !strings.HasSuffix(name, ".pgbi") && !strings.HasPrefix(b, "Salted__") {
			t.Errorf("%s does not begin as an encrypted file", name)
		}
	}
}

// allDiffer: after re-encryption no object of the source is in the target as it was.
func allDiffer(t *testing.T, source map[string]string, dst *storage.Mem) {
	t.Helper()
	for name, b := range contents(t, dst) {
		if source[name] == b {
			t.Errorf("%s is as in the source", name)
		}
	}
}

// TestCopyTwice: a second copy copies nothing, and copies only what is new after another backup.
func TestCopyTwice(t *testing.T) {
	for _, to := range []repo.Secret{"rig-pass", "other"} {
		for _, again := range []bool{false, true} {
			r := newRig(t, 15)
			src, dst := storage.NewMem(nil), storage.NewMem(nil)
			must(t, r.create(t.Context(), src))
			o := engine.CopyOptions{All: true, WAL: engine.WALAll, Reencrypt: again, ProcessMax: 2}
			b := engine.BackupOptions{Bundle: true, Block: true, Compress: repo.ZST}
			labels := r.chainOf(src, b)
			_, err := r.copyTo(t.Context(), r.on(src, r.pass), r.on(dst, to), o)
			must(t, err)
			before := contents(t, dst)
			res, err := r.copyTo(t.Context(), r.on(src, r.pass), r.on(dst, to), o)
			must(t, err)
			if len(res.Backups) > 0 || res.Objects > 0 || len(res.There) != len(labels) || !maps.Equal(before, contents(t, dst)) {
				t.Errorf("the second copy did something: %+v", res)
			}
			b.Type = repo.Incr
			r.server.churn(t, 7)
			more, err := r.backupWith(t.Context(), src, src, b)
			must(t, err)
			plan, err := engine.PlanCopy(t.Context(), r.on(src, r.pass), r.on(dst, to), o)
			must(t, err)
			objects := plan.Objects
			res, err = plan.Run(t.Context())
			must(t, err)
			if !slices.Equal(res.Backups, []repo.Label{more.Label}) || res.Objects != objects || res.Objects == 0 {
				t.Errorf("the third copy: %+v, planned %d objects", res, objects)
			}
			must(t, lost(t, before, dst))
			r.with(to, func() {
				must(t, r.verified(dst))
				r.holds(dst, more.Label)
			})
		}
	}
}

// TestCopySelections: what is chosen comes with what it is built on, and with no more.
func TestCopySelections(t *testing.T) {
	r := newRig(t, 15)
	src := storage.NewMem(nil)
	must(t, r.create(t.Context(), src))
	first := r.chainOf(src, engine.BackupOptions{})
	r.server.churn(t, 9)
	second := r.chainOf(src, engine.BackupOptions{})
	bi, err := repo.LoadBackupInfo(t.Context(), src, "demo", r.pass)
	must(t, err)
	stop := func(l repo.Label) time.Time { return time.Unix(bi.Find(l).TimeStop, 0) }
	for name, c := range map[string]struct {
		o    engine.CopyOptions
		want []repo.Label
	}{
		"a full":                {engine.CopyOptions{Sets: first[:1]}, first[:1]},
		"an incr":               {engine.CopyOptions{Sets: first[2:3]}, first[:3]},
		"a diff":                {engine.CopyOptions{Sets: first[3:]}, []repo.Label{first[0], first[3]}},
		"a set":                 {engine.CopyOptions{Sets: second[:1], Dependents: true}, second},
		"all":                   {engine.CopyOptions{All: true}, slices.Concat(first, second)},
		"from the second on":    {engine.CopyOptions{Since: stop(second[0])}, second},
		"a window in the first": {engine.CopyOptions{Since: stop(first[1]), Until: stop(first[2])}, first[:3]},
	} {
		t.Run(name, func(t *testing.T) {
			dst := storage.NewMem(nil)
			c.o.ProcessMax = 4
			_, err := r.copyTo(t.Context(), r.on(src, r.pass), r.on(dst, r.pass), c.o)
			must(t, err)
			if got := r.labels(dst); !slices.Equal(got, c.want) {
				t.Errorf("copied %v, want %v", got, c.want)
			}
			must(t, r.verified(dst))
		})
	}
	for name, o := range map[string]engine.CopyOptions{
		"nothing": {}, "two ways": {All: true, Sets: first}, "dependents of all": {All: true, Dependents: true}, "no beginning": {Until: time.Now()},
		"backwards": {Since: time.Now(), Until: time.Now().Add(-time.Hour)}, "WAL": {All: true, WAL: "some"}, "no such backup": {Sets: []repo.Label{"20200101-000000F"}},
	} {
		if _, err := engine.PlanCopy(t.Context(), r.on(src, r.pass), r.on(storage.NewMem(nil), r.pass), o); err == nil {
			t.Errorf("%s: is not refused", name)
		}
	}
}

// TestCopyPosix: on a file system the copy has the directories and links that a full backup there has.
func TestCopyPosix(t *testing.T) {
	r := newRig(t, 15)
	src, err := storage.NewPosix(filepath.Join(scratch(t), "src"), storage.PosixOptions{})
	must(t, err)
	must(t, r.create(t.Context(), src))
	r.chainOf(src, engine.BackupOptions{Hardlink: true})
	dir := filepath.Join(scratch(t), "dst")
	dst, err := storage.NewPosix(dir, storage.PosixOptions{})
	must(t, err)
	_, err = r.copyTo(t.Context(), r.on(src, r.pass), r.on(dst, r.pass), engine.CopyOptions{All: true, WAL: engine.WALAll})
	must(t, err)
	want, got := tree(t, src.Root()), tree(t, dir)
	if !slices.Equal(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got))) {
		t.Error(differ(want, got))
	}
	links := 0
	must(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
			links++
		}
		return err
	}))
	if links == 0 {
		t.Error("no hard links in the copy")
	}
	must(t, r.verify(dst, ""))
}

// TestCopyGoesOn: a copy that dies goes on with what it had noted, and does not send it again.
func TestCopyGoesOn(t *testing.T) {
	for _, o := range []engine.CopyOptions{{}, {Reencrypt: true}} {
		r := newRig(t, 15)
		src := storage.NewMem(nil)
		must(t, r.create(t.Context(), src))
		labels := r.chainOf(src, engine.BackupOptions{Compress: repo.GZ})
		o.Sets, o.SaveThreshold = labels[:1], 1
		dst := storage.NewMem(nil)
		whole, err := engine.PlanCopy(t.Context(), r.on(src, r.pass), r.on(dst, "other"), o)
		must(t, err)
		for round := 0; ; round++ {
			// One object, and the note of it, at a time; what was not noted does not survive the power cut.
			faulty, err := storage.NewFaulty(dst, storage.Fault{Op: storage.OpCommit, Name: "backup.manifest.copy", Nth: 3, Kind: storage.Die})
			must(t, err)
			plan, err := engine.PlanCopy(t.Context(), r.on(src, r.pass), r.on(faulty, "other"), o)
			must(t, err)
			b := plan.Backups[0]
			if round > 0 && (b.State != engine.CopyUnfinished || b.Done != round || b.Objects != whole.Backups[0].Objects-round) {
				t.Fatalf("round %d: %+v, in the beginning %d objects", round, b, whole.Backups[0].Objects)
			}
			if _, err := plan.Run(t.Context()); err == nil {
				break
			}
			dst = dst.CrashCloneTorn()
		}
		r.with("other", func() {
			must(t, r.verified(dst))
			if got, err := r.restored(dst, labels[0]); err != nil || len(got) == 0 {
				t.Error(err)
			}
		})
	}
}

// TestCopyWAL: how much WAL goes along.
func TestCopyWAL(t *testing.T) {
	r := newRig(t, 15)
	src := storage.NewMem(nil)
	must(t, r.create(t.Context(), src))
	labels := r.chainOf(src, engine.BackupOptions{})
	r.server.mu.Lock()
	for range 3 {
		must(t, r.server.switchWAL())
	}
	r.server.mu.Unlock()
	bi, err := repo.LoadBackupInfo(t.Context(), src, "demo", r.pass)
	must(t, err)
	has := func(st *storage.Mem) (segments []string) {
		for _, name := range st.Names() {
			if seg, _, _, ok := repo.ParseSegmentObject(filepath.Base(name)); ok {
				segments = append(segments, seg)
			}
		}
		return segments
	}
	all := has(src)
	at := func(seg string) int { return slices.Index(all, seg) }
	for name, c := range map[string]struct {
		o    engine.CopyOptions
		want []string
	}{
		"needed":             {engine.CopyOptions{Sets: labels[:1]}, all[at(bi.Backups[0].ArchiveStart) : at(bi.Backups[0].ArchiveStop)+1]},
		"all":                {engine.CopyOptions{Sets: labels[1:2], WAL: engine.WALAll}, all[at(bi.Backups[0].ArchiveStart):]},
		"until":              {engine.CopyOptions{Sets: labels[:1], WAL: engine.WALAll, WALUntil: time.Unix(bi.Backups[1].TimeStop, 0)}, all[at(bi.Backups[0].ArchiveStart) : at(bi.Find(labels[2]).ArchiveStart)+1]},
		"until far":          {engine.CopyOptions{Sets: labels[:1], WAL: engine.WALAll, WALUntil: time.Unix(bi.Backups[3].TimeStop, 0)}, all[at(bi.Backups[0].ArchiveStart):]},
		"of a later set too": {engine.CopyOptions{Sets: []repo.Label{labels[3]}, WAL: engine.WALAll}, all[at(bi.Backups[0].ArchiveStart):]},
	} {
		dst := storage.NewMem(nil)
		_, err := r.copyTo(t.Context(), r.on(src, r.pass), r.on(dst, r.pass), c.o)
		must(t, err)
		if got := has(dst); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		must(t, r.verified(dst))
	}
}

// TestCopyDamaged: a backup with a damaged object, or whose WAL is damaged or gone, is left out with what is built on it; the rest
// is copied.
func TestCopyDamaged(t *testing.T) {
	for name, c := range map[string]struct {
		harm func(t *testing.T, src *storage.Mem, first, second []repo.Label)
		lost int // of the eight backups
		plan bool
	}{
		"an object of a full": {func(t *testing.T, src *storage.Mem, first, _ []repo.Label) {
			flip(t, src, "backup/demo/"+string(first[0])+"/pg_data/base")
		}, 4, false},
		"an object of a diff": {func(t *testing.T, src *storage.Mem, first, _ []repo.Label) {
			flip(t, src, "backup/demo/"+string(first[3])+"/pg_data/base")
		}, 1, false},
		"a missing object": {func(t *testing.T, src *storage.Mem, _, second []repo.Label) {
			must(t, src.Remove(t.Context(), find(t, src, "backup/demo/"+string(second[1])+"/pg_data/base")))
		}, 2, false},
		"a manifest": {func(t *testing.T, src *storage.Mem, first, _ []repo.Label) {
			flip(t, src, "backup/demo/"+string(first[1])+"/backup.manifest")
			flip(t, src, "backup/demo/"+string(first[1])+"/backup.manifest.copy")
		}, 2, true},
		"a missing segment": {func(t *testing.T, src *storage.Mem, _, second []repo.Label) {
			must(t, src.Remove(t.Context(), find(t, src, "archive/demo/15-1/0000000100000000/"+segmentOf(t, src, second[3]))))
		}, 1, true},
		"a damaged segment": {func(t *testing.T, src *storage.Mem, _, second []repo.Label) {
			flip(t, src, "archive/demo/15-1/0000000100000000/"+segmentOf(t, src, second[0]))
		}, 4, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 15)
			r.pass = ""
			src, dst := storage.NewMem(nil), storage.NewMem(nil)
			must(t, r.create(t.Context(), src))
			first := r.chainOf(src, engine.BackupOptions{Compress: repo.ZST})
			r.server.churn(t, 8)
			second := r.chainOf(src, engine.BackupOptions{Compress: repo.ZST})
			c.harm(t, src, first, second)
			plan, err := engine.PlanCopy(t.Context(), r.on(src, ""), r.on(dst, "two"), engine.CopyOptions{All: true, WAL: engine.WALAll, ProcessMax: 3})
			must(t, err)
			refused := 0
			for _, b := range plan.Backups {
				if b.State == engine.CopyRefused && b.Reason != "" {
					refused++
				}
			}
			if c.plan && refused != c.lost || !c.plan && refused != 0 {
				t.Errorf("the plan refuses %d", refused)
			}
			res, err := plan.Run(t.Context())
			if !errors.Is(err, engine.ErrNotClosed) || res == nil {
				t.Fatalf("it says %v", err)
			}
			labels := 0
			for _, f := range res.Failed {
				if f.Label != "" {
					labels++
				}
			}
			if len(res.Backups) != 8-c.lost || labels != c.lost {
				t.Errorf("copied %v, failed %v", res.Backups, res.Failed)
			}
			r.with("two", func() {
				if got := r.labels(dst); !slices.Equal(got, res.Backups) {
					t.Errorf("the target lists %v", got)
				}
				for _, l := range res.Backups {
					must(t, r.verify(dst, l))
				}
			})
		})
	}
}

func find(t *testing.T, st *storage.Mem, prefix string) string {
	t.Helper()
	for _, name := range st.Names() {
		if strings.HasPrefix(name, prefix) {
			return name
		}
	}
	t.Fatalf("no object %s…", prefix)
	return ""
}

// flip damages the middle of an object.
func flip(t *testing.T, st *storage.Mem, prefix string) {
	t.Helper()
	name := find(t, st, prefix)
	b, err := storage.ReadAll(t.Context(), st, name, 8<<20)
	must(t, err)
	b = slices.Clone(b)
	b[len(b)/2] ^= 0x20
	must(t, storage.WriteAll(t.Context(), st, name, b))
}

func segmentOf(t *testing.T, st *storage.Mem, l repo.Label) string {
	t.Helper()
	bi, err := repo.LoadBackupInfo(t.Context(), st, "demo", "")
	must(t, err)
	return bi.Find(l).ArchiveStart
}

// TestCopyFixtures copies repositories of the real pgbackrest, of both versions, and restores the copy: every file has the
// content that the real one's restore had.
func TestCopyFixtures(t *testing.T) {
	proven := 0
	for _, name := range []string{"v245-gz-pg15", "v245-lz4-bundle-aes-pg15", "v2591-zst-bundle-block-pg15", "v2591-zst-bundle-block-aes-pg18"} {
		for _, to := range casesToRun([]repo.Secret{"other", "fixture-pass", ""}) {
			for _, again := range casesToRun([]bool{true, false}) {
				t.Run(fmt.Sprintf("%s to %q %t", name, string(to), again), func(t *testing.T) {
					src, pass := fixture(t, name)
					dst := storage.NewMem(nil)
					r := &rig{t: t, pass: to}
					_, err := r.copyTo(t.Context(), r.on(src, pass), r.on(dst, to),
						engine.CopyOptions{All: true, WAL: engine.WALAll, Reencrypt: again, Decrypt: true, ProcessMax: 4})
					must(t, err)
					if to == "" && pass == "" || pass == to && !again { // nothing of it had to change
						was := contents(t, src)
						for object, b := range contents(t, dst) {
							if strings.HasPrefix(object, "archive/demo/") && was[object] != b && !strings.Contains(object, "archive.info") {
								t.Errorf("%s changed", object)
							}
						}
					}
					must(t, r.verify(dst, ""))
					for _, l := range r.labels(dst) {
						want := sums(t, filepath.Join(fixturesDir(t), name, "expected-"+string(l)+".sha256"))
						dir := filepath.Join(scratch(t), "pg")
						plan, err := r.on(dst, to).PlanRestore(t.Context(), engine.RestoreOptions{Set: l, DataDir: dir, Type: engine.TargetNone, LinkAll: true, TablespaceMapAll: dir + "-spaces"})
						must(t, err)
						_, err = plan.Run(t.Context())
						must(t, err)
						for file, sum := range want {
							switch {
							case strings.HasPrefix(file, "TS/"), file == "recovery.signal", file == "postgresql.auto.conf":
								continue // elsewhere, and what restores write of their own
							case file == "global/pg_control": // made unusable until recovery has read backup_label
								continue
							}
							b, err := os.ReadFile(filepath.Join(dir, file))
							if got := fmt.Sprintf("%x", sha256.Sum256(b)); err != nil || got != sum {
								t.Errorf("%s: %s is not as the real restore had it (%v)", l, file, err)
							}
						}
						proven++
					}
				})
			}
		}
	}
	tally.Count(t, "backups restored from a copy alone", proven)
}

// sums reads a file of sha256sum.
func sums(t *testing.T, file string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		sum, name, ok := strings.Cut(strings.TrimSpace(line), "  ")
		if !ok {
			t.Fatalf("%s: %q", file, line)
		}
		out[strings.TrimPrefix(name, "./")] = sum
	}
	if len(out) == 0 {
		t.Fatalf("%s is empty", file)
	}
	return out
}

// TestCopyRecheck: objects that were lost in the target, or are shorter there, are found when they are looked for, and copied again
// where that is possible; nothing else is.
func TestCopyRecheck(t *testing.T) {
	for _, o := range []engine.CopyOptions{{}, {Reencrypt: true}} {
		r := newRig(t, 15)
		src, dst := storage.NewMem(nil), storage.NewMem(nil)
		must(t, r.create(t.Context(), src))
		labels := r.chainOf(src, engine.BackupOptions{Compress: repo.GZ})
		o.All, o.WAL, o.ProcessMax = true, engine.WALAll, 2
		copies := func(recheck bool) (*engine.CopyResult, error) {
			o.Recheck = recheck
			return r.copyTo(t.Context(), r.on(src, r.pass), r.on(dst, "two"), o)
		}
		_, err := copies(false)
		must(t, err)
		before := contents(t, dst)
		res, err := copies(true)
		must(t, err)
		if res.Objects > 0 || len(res.Backups) > 0 {
			t.Errorf("nothing is missing, and it copied %+v", res)
		}
		gone := find(t, dst, "backup/demo/"+string(labels[0])+"/pg_data/base")
		must(t, dst.Remove(t.Context(), gone))
		short := find(t, dst, "backup/demo/"+string(labels[1])+"/pg_data/base")
		must(t, storage.WriteAll(t.Context(), dst, short, []byte(before[short])[:20]))
		if res, err := copies(false); err != nil || res.Objects > 0 {
			t.Errorf("%v %+v", err, res)
		}
		res, err = copies(true)
		if o.Reencrypt {
			if !errors.Is(err, engine.ErrNotClosed) || len(res.Failed) != 2 {
				t.Errorf("%v %+v", err, res)
			}
			continue
		}
		must(t, err)
		if res.Objects != 2 || len(res.Backups) != 2 {
			t.Errorf("copied %+v", res)
		}
		must(t, lost(t, map[string]string{gone: before[gone], short: before[short]}, dst))
		r.with("two", func() { must(t, r.verified(dst)) })
	}
}
