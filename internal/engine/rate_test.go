package engine_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// TestRateLimit: at one byte a second a backup gets nowhere before its context ends; with a high limit it is done.
func TestRateLimit(t *testing.T) {
	r := newRig(t, 15)
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := r.backupWith(ctx, m, m, engine.BackupOptions{Compress: repo.LZ4, Level: 1, ProcessMax: 2, Rate: 1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a backup at one byte a second: %v", err)
	}
	res, _ := r.mustBackup(m, engine.BackupOptions{Rate: 1 << 30})
	r.holds(m, res.Label)
}
