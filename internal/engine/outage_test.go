package engine_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/test/tally"
)

// TestOutage has the storage fail every call of a verb in turn, as one that is away does. The verb says that and nothing of the
// backups: no finding, nothing refused as damaged, nothing concluded from what could not be read.
func TestOutage(t *testing.T) {
	r := newRig(t, 15)
	base := r.mutationRepo(engine.BackupOptions{Compress: repo.ZST, Level: 1, Bundle: true, BundleLimit: 64 << 10, Block: true})
	labels := r.labels(base)
	last := labels[len(labels)-1]
	forgotten := base.CrashClone()
	bi, err := repo.LoadBackupInfo(t.Context(), forgotten, "demo", r.pass)
	must(t, err)
	bi.Backups = bi.Backups[:1]
	must(t, repo.SaveBackupInfo(t.Context(), forgotten, "demo", bi, r.pass))
	verify := func(set repo.Label) func(context.Context, storage.Storage) error {
		return func(ctx context.Context, st storage.Storage) error {
			res, err := r.stanza(st).Verify(ctx, engine.VerifyOptions{Set: set, ProcessMax: 2})
			if err == nil && len(res.Findings) > 0 {
				err = fmt.Errorf("findings: %v", res.Findings)
			}
			return err
		}
	}
	dirs := 0
	verbs := map[string]struct {
		on  *storage.Mem
		run func(context.Context, storage.Storage) error
	}{
		"verify":     {base, verify("")},
		"verify set": {base, verify(last)},
		"restore": {base, func(ctx context.Context, st storage.Storage) error {
			dirs++
			return r.restore(ctx, st, filepath.Join(scratch(t), fmt.Sprint("restored", dirs)), last)
		}},
		"copy": {base, func(ctx context.Context, st storage.Storage) error {
			dst := storage.NewMem(nil)
			_, err := r.copyTo(ctx, r.on(st, r.pass), r.on(dst, "two"), engine.CopyOptions{All: true, WAL: engine.WALAll, ProcessMax: 2})
			return err
		}},
		"plan of expire": {forgotten, func(ctx context.Context, st storage.Storage) error {
			plan, err := r.stanza(st).PlanExpire(ctx, engine.ExpireOptions{Full: 2})
			if err == nil && len(plan.Warnings) != len(labels)-1 {
				err = fmt.Errorf("warnings: %q", plan.Warnings)
			}
			return err
		}},
	}
	cases := 0
	for name, v := range verbs {
		t.Run(name, func(t *testing.T) {
			before := contents(t, v.on)
			for n := 1; ; n++ {
				away := storage.Temporary(errors.New("503 SlowDown"))
				if n%2 == 0 {
					away = storage.Unavailable(errors.New("403 AccessDenied"))
				}
				st, err := storage.NewFaulty(v.on, storage.Fault{Nth: n, Err: away})
				must(t, err)
				err = v.run(t.Context(), st)
				if !st.Fired() {
					must(t, err)
					if n < 8 {
						t.Errorf("only %d calls", n)
					}
					break
				}
				cases++
				if !errors.Is(err, storage.ErrUnavailable) || errors.Is(err, engine.ErrCorrupt) || errors.Is(err, engine.ErrNotClosed) ||
					!strings.Contains(err.Error(), away.Error()) {
					t.Fatalf("call %d, %v: %v", n, st.Calls()[n-1], err)
				}
			}
			if !maps.Equal(before, contents(t, v.on)) {
				t.Error("the repository has changed")
			}
		})
	}
	tally.Count(t, "calls of reading verbs that met a storage which is away, all reported as that", cases)
}
