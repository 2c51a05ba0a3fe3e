package engine_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/test/tally"
)

// copyCase is a copy that is broken off at every call to storage.
type copyCase struct {
	name     string
	from, to repo.Secret
	backup   engine.BackupOptions
	o        engine.CopyOptions
	merge    bool // the target has a backup of its own, and the first of the source's chain
	every    int
}

var copyCases = []copyCase{
	{"as it is", "one", "one", engine.BackupOptions{Compress: repo.GZ}, engine.CopyOptions{}, false, 4},
	{"as it is, noted often", "one", "two", engine.BackupOptions{Compress: repo.GZ}, engine.CopyOptions{SaveThreshold: 1}, false, 5},
	{"as it is, merged", "one", "two", engine.BackupOptions{Bundle: true, BundleSize: 40_000, Compress: repo.LZ4}, engine.CopyOptions{}, true, 3},
	{"encrypted on the way, merged", "", "two", engine.BackupOptions{Bundle: true, Block: true, BundleSize: 40_000, Compress: repo.ZST}, engine.CopyOptions{SaveThreshold: 1}, true, 4},
	{"re-encrypted", "one", "two", engine.BackupOptions{Bundle: true, Block: true, BundleSize: 40_000, Compress: repo.ZST}, engine.CopyOptions{Reencrypt: true, SaveThreshold: 1}, false, 4},
}

// casesToRun are all, or with -short the first.
func casesToRun[T any](all []T) []T {
	if testing.Short() {
		return all[:1]
	}
	return all
}

// TestFaultsCopyTarget breaks a copy off at every call to the target, in every way, and runs it again: the target must then be
// what a copy without the fault makes, and must at no moment have listed a backup that is not whole.
func TestFaultsCopyTarget(t *testing.T) {
	for _, c := range casesToRun(copyCases) {
		t.Run(c.name, func(t *testing.T) {
			r, src, base, labels := c.prepare(t)
			want := c.wanted(t, r, src, base)
			own := contents(t, base)
			faultTest{base: base, calls: 30, every: c.every,
				run: func(ctx context.Context, st, _ storage.Storage) error {
					_, err := r.copyTo(ctx, r.on(src, c.from), r.on(st, c.to), c.o)
					return err
				},
				keep: func(left storage.Storage) error {
					return errors.Join(lost(t, own, left), c.wholeSoFar(t, r, left))
				},
				right: func(left storage.Storage) error {
					if got := c.meaning(t, r, left); !maps.Equal(got, want) {
						return fmt.Errorf("it is not what a copy without a fault makes: %s", differ(got, want))
					}
					var err error
					r.with(c.to, func() {
						var files map[string]string
						if files, err = r.restored(left, labels[len(labels)-1]); err == nil && len(files) == 0 {
							err = errors.New("nothing was restored")
						}
					})
					return err
				},
			}.each(t)
		})
	}
}

// TestFaultsCopySource: a source that fails to be read gives an error and never a wrong copy.
func TestFaultsCopySource(t *testing.T) {
	for _, c := range casesToRun(copyCases[1:]) {
		t.Run(c.name, func(t *testing.T) {
			r, src, base, _ := c.prepare(t)
			want := c.wanted(t, r, src, base)
			tested := 0
			for _, kind := range []storage.FaultKind{storage.FailBefore, storage.FailAfter, storage.ShortRead, storage.Cancel} {
				for n := 1 + int(kind); ; n += 4 {
					ctx, cancel := context.WithCancel(t.Context())
					fault := storage.Fault{Nth: n, Kind: kind, Cancel: cancel}
					if kind == storage.ShortRead {
						fault.Op = storage.OpRead
					}
					faulty, err := storage.NewFaulty(src, fault)
					must(t, err)
					dst := base.CrashClone()
					_, err = r.copyTo(ctx, r.on(faulty, c.from), r.on(dst, c.to), c.o)
					cancel()
					if !faulty.Fired() {
						must(t, err)
						break
					}
					tested++
					at := fmt.Sprintf("%v at call %d", kind, n)
					if err == nil && !maps.Equal(c.meaning(t, r, dst), want) {
						t.Fatalf("%s: it returned nil, but the copy is not right", at)
					}
					must(t, c.wholeSoFar(t, r, dst))
					if _, err := r.copyTo(t.Context(), r.on(src, c.from), r.on(dst, c.to), c.o); err != nil {
						t.Fatalf("%s: second run: %v", at, err)
					}
					if got := c.meaning(t, r, dst); !maps.Equal(got, want) {
						t.Fatalf("%s: the second run makes something else: %s", at, differ(got, want))
					}
				}
			}
			tally.Count(t, "fault positions of engine verbs", tested)
		})
	}
}

// prepare makes the source, and the target as it is before the copy.
func (c *copyCase) prepare(t *testing.T) (r *rig, src, base *storage.Mem, labels []repo.Label) {
	t.Helper()
	r = newRig(t, 15)
	r.pass = c.from
	src, base = storage.NewMem(nil), storage.NewMem(nil)
	must(t, r.create(t.Context(), src))
	for i, typ := range []repo.BackupType{repo.Full, repo.Incr} {
		r.server.churn(t, i)
		c.backup.Type = typ
		res, err := r.backupWith(t.Context(), src, src, c.backup)
		must(t, err)
		labels = append(labels, res.Label)
		if c.merge && i == 0 {
			r.with(c.to, func() {
				must(t, r.create(t.Context(), base))
				_, err := r.backupWith(t.Context(), base, base, engine.BackupOptions{Compress: repo.LZ4})
				must(t, err)
			})
			_, err := r.copyTo(t.Context(), r.on(src, c.from), r.on(base, c.to), engine.CopyOptions{All: true, Reencrypt: c.o.Reencrypt})
			must(t, err)
		}
	}
	c.o.All, c.o.WAL, c.o.ProcessMax = true, engine.WALAll, 1
	must(t, base.Sync(t.Context()))
	return r, src, base, labels
}

func (c *copyCase) wanted(t *testing.T, r *rig, src, base *storage.Mem) map[string]string {
	t.Helper()
	fresh := base.CrashClone()
	_, err := r.copyTo(t.Context(), r.on(src, c.from), r.on(fresh, c.to), c.o)
	must(t, err)
	return c.meaning(t, r, fresh)
}

// meaning is what a repository says, whatever its salts and passphrases are: its objects, the text of info files and manifests
// without what encryption makes of stored sizes and sums, and what every stored file decodes to.
func (c *copyCase) meaning(t *testing.T, r *rig, st storage.Storage) map[string]string {
	t.Helper()
	out := map[string]string{}
	for info, err := range st.List(t.Context(), "", storage.ListOptions{Recursive: true}) {
		must(t, err)
		out[info.Name] = fmt.Sprint(info.Size)
		if strings.HasPrefix(info.Name, "backup/demo/backup.history/") {
			out[info.Name] = "" // compressed, and the sums in it differ
		}
	}
	bi, err := repo.LoadBackupInfo(t.Context(), st, "demo", c.to)
	must(t, err)
	for _, l := range bi.Backups {
		b, err := (&repo.BackupInfo{Current: bi.Current, History: bi.History, Backups: []repo.BackupLine{l}}).Encode()
		must(t, err)
		out["line of "+string(l.Label)] = string(b)
	}
	r.with(c.to, func() {
		if err := r.verified(st); err != nil {
			out["verify"] = err.Error()
		}
	})
	return out
}

// wholeSoFar: every backup that backup.info lists, or that has a manifest, is whole.
func (c *copyCase) wholeSoFar(t *testing.T, r *rig, st storage.Storage) error {
	t.Helper()
	if _, err := repo.LoadBackupInfo(t.Context(), st, "demo", c.to); err != nil {
		return nil // the stanza is not there yet
	}
	if _, err := repo.LoadArchiveInfo(t.Context(), st, "demo", c.to); err != nil {
		return err
	}
	var errs []error
	r.with(c.to, func() {
		labels := r.labels(st)
		for d, err := range repo.Labels(t.Context(), st, "demo") {
			must(t, err)
			if d.Manifest && !slices.Contains(labels, d.Label) {
				bi, err := repo.LoadBackupInfo(t.Context(), st, "demo", c.to)
				must(t, err)
				changed, warnings, err := repo.Reconcile(t.Context(), st, "demo", bi, c.to)
				if err != nil || !changed || bi.Find(d.Label) == nil {
					errs = append(errs, fmt.Errorf("%s has a manifest and can't be listed: %v %v", d.Label, warnings, err))
				}
			}
		}
		for _, l := range labels {
			res, err := r.stanza(st).Verify(t.Context(), engine.VerifyOptions{Set: l})
			must(t, err)
			if res.Verdicts[0].Status != engine.VerdictValid {
				errs = append(errs, fmt.Errorf("%s is %s: %v", l, res.Verdicts[0].Status, res.Findings))
			}
		}
	})
	return errors.Join(errs...)
}
