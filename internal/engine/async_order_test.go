package engine_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
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

// TestBatchSize: after that much WAL the background process looks again what waits, so that a history file that came meanwhile
// is not kept waiting by a long queue; one segment at least is pushed at a time.
func TestBatchSize(t *testing.T) {
	const size = 4096
	for _, c := range []struct {
		batch int64
		want  string
	}{
		{0, "1 2 3 4 5 | h"}, {2 * size, "1 2 | h 3 | 4 5"}, {2*size + 1, "1 2 | h 3 | 4 5"}, {size, "1 | h | 2 | 3 | 4 | 5"}, {1, "1 | h | 2 | 3 | 4 | 5"},
	} {
		dir := t.TempDir()
		wal := filepath.Join(dir, "pg_wal")
		add := func(name string, bytes int) {
			t.Helper()
			for file, content := range map[string][]byte{filepath.Join(wal, name): make([]byte, bytes), filepath.Join(wal, "archive_status", name+".ready"): nil} {
				if err := os.WriteFile(file, content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := os.MkdirAll(filepath.Join(wal, "archive_status"), 0o700); err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			add(fmt.Sprintf("00000001000000000000000%d", i+1), size)
		}
		const history = "00000002.history"
		var batches, told []string
		err := (engine.Spool{Dir: filepath.Join(dir, "spool")}).PushQueue(t.Context(), engine.QueueOptions{WALDir: wal, ProcessMax: 1, BatchSize: c.batch,
			Begin: func(files []string) { batches = append(batches, ""); told = append(told, files...) },
			Push: func(_ context.Context, path string) error {
				name := filepath.Base(path)
				if len(told) > 0 && len(batches) == 1 && batches[0] == "" {
					add(history, 1024)
				}
				short := name[len(name)-1:]
				if name == history {
					short = "h"
				}
				batches[len(batches)-1] = strings.TrimSpace(batches[len(batches)-1] + " " + short)
				return nil
			}})
		if got := strings.Join(batches, " | "); err != nil || got != c.want || len(told) != 6 {
			t.Errorf("batches of %d bytes: %s, want %s; %v", c.batch, got, c.want, err)
		}
	}
}

// TestReadAheadLeavesWhatWasTaken: a background process that had to wait for another one does not fetch again what recovery
// has taken meanwhile; when recovery begins again before that, it gets everything once more.
func TestReadAheadLeavesWhatWasTaken(t *testing.T) {
	r := newSpoolRig(t)
	var mu sync.Mutex
	var asked []string
	fetch := func(_ context.Context, name, dest string) error {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, name)
		return os.WriteFile(dest, []byte(name), 0o600)
	}
	dest := filepath.Join(t.TempDir(), "RECOVERYXLOG")
	first, err := engine.NextSegments(segment(0), 16<<20, 4*16<<20)
	must(t, err)
	get := func(n int) {
		t.Helper()
		wanted, err := engine.NextSegments(segment(n), 16<<20, 4*16<<20)
		must(t, err)
		s := r.spool
		s.Start = func(ctx context.Context, _ string, _ bool) error { return r.spool.GetQueue(ctx, wanted, 2, fetch) }
		must(t, s.GetSpooled(t.Context(), wanted, dest, true))
		b, err := os.ReadFile(dest)
		must(t, err)
		if string(b) != segment(n) {
			t.Fatalf("segment %d: got %s", n, b)
		}
	}
	for n := range 6 {
		get(n)
	}
	asked = nil
	must(t, r.spool.GetQueue(t.Context(), first, 2, fetch)) // the one that waited: it was started for segment 0
	if !slices.Equal(asked, first[:1]) {                    // which another cluster of the spool may wait for
		t.Errorf("fetched again: %v", asked)
	}
	for _, n := range []int{1, 2, 3, 4, 5, 6, 7, 8, 0} {
		get(n)
	}
}
