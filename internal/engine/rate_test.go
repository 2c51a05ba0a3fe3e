package engine_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// TestRateLimit: at one byte a second a backup or restore gets nowhere before its context ends; with a high limit it is done.
func TestRateLimit(t *testing.T) {
	r := newRig(t, 15)
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := r.backupWith(ctx, m, m, engine.BackupOptions{Compress: repo.LZ4, Level: 1, ProcessMax: 2, Rate: 1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a backup at one byte a second: %v", err)
	}
	for _, block := range []bool{false, true} {
		r.touch("base/16384/2000", scribble(1, 60_000), 9*time.Hour)
		res, _ := r.mustBackup(m, engine.BackupOptions{Rate: 1 << 30, Block: block})
		r.holds(m, res.Label)
		o := r.restoreOptions(filepath.Join(scratch(t), "slow"), res.Label)
		o.Rate = 1
		plan, err := r.stanza(m).PlanRestore(t.Context(), o)
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if _, err := plan.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a restore at one byte a second: %v", err)
		}
		cancel()
	}
}
