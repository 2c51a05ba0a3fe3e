package engine_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"holdfast/internal/engine"
)

// TestReadAheadLooksForWhatIsAskedFirst: workers that find the end of the archive early must not keep a segment before it
// from being fetched, or restore_command waits for an answer that nobody gives.
func TestReadAheadLooksForWhatIsAskedFirst(t *testing.T) {
	wanted := []string{"000000010000000000000001", "000000010000000000000002", "000000010000000000000003", "000000010000000000000004"}
	for round := range 300 {
		dir := t.TempDir()
		get := func(_ context.Context, name, dest string) error {
			if name != wanted[0] && name != wanted[1] {
				return fmt.Errorf("get %s: %w", name, engine.ErrWALMissing)
			}
			runtime.Gosched()
			return os.WriteFile(dest, nil, 0o600)
		}
		if err := (engine.Spool{Dir: dir}).GetQueue(t.Context(), wanted, len(wanted), get); err != nil {
			t.Fatal(err)
		}
		for _, name := range wanted[:2] {
			if _, err := os.Stat(filepath.Join(dir, "in", name)); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
	}
}
