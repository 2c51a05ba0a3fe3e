package engine_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast/internal/engine"
)

// TestPushSpooledDistrustsOldStatus: a status that is older than PostgreSQL's request is about another segment of that name,
// of before a snapshot was rolled back or the cluster made anew. Taken for an answer it would lose the segment.
func TestPushSpooledDistrustsOldStatus(t *testing.T) {
	for name, asked := range map[string]string{"asked for": segment(1), "in the queue": segment(2)} {
		r := newSpoolRig(t)
		r.spool.WALDir = r.wal
		r.background(engine.QueueOptions{ProcessMax: 1})
		out := filepath.Join(r.spool.Dir, "out")
		mkdir(t, out)
		stale := filepath.Join(out, segment(1)+".ok")
		must(t, os.WriteFile(stale, nil, 0o600))
		old := time.Now().Add(-time.Hour)
		must(t, os.Chtimes(stale, old, old))
		r.ready(segment(1), segment(2))
		must(t, r.spool.PushSpooled(t.Context(), asked))
		if !r.archive[segment(1)] || !r.archive[segment(2)] {
			t.Errorf("%s: archived %v", name, r.archive)
		}
		must(t, r.spool.PushSpooled(t.Context(), segment(1)))
		if r.started != 1 {
			t.Errorf("%s: the background process was started %d times", name, r.started)
		}
	}
}

// TestGetSpooledDistrustsWhatItFinds: what is left in the spool from before the machine went down (nothing there is synced),
// cut short, or from another cluster is fetched again.
func TestGetSpooledDistrustsWhatItFinds(t *testing.T) {
	server := newRig(t, 15).server
	file, err := server.segment("000000010000000000000001")
	must(t, err)
	right, err := os.ReadFile(file)
	must(t, err)
	foreign := append([]byte(nil), right...)
	binary.LittleEndian.PutUint64(foreign[24:], server.system+1)
	damaged := append(append([]byte(nil), right[:100_000]...), make([]byte, len(right)-100_000)...)
	for name, c := range map[string]struct {
		content []byte
		boot    string
		fetched int
	}{
		"right":           {right, "this", 0},
		"cut short":       {right[:100_000], "this", 1},
		"empty":           {nil, "this", 1},
		"another cluster": {foreign, "this", 1},
		"of last boot":    {damaged, "last", 1},
	} {
		r := newSpoolRig(t)
		r.spool.BootID, r.spool.SystemID, r.spool.SegmentSize = "this", server.system, segmentSize
		in := filepath.Join(r.spool.Dir, "in")
		mkdir(t, in)
		must(t, os.WriteFile(filepath.Join(in, "boot.id"), []byte(c.boot), 0o600))
		must(t, os.WriteFile(filepath.Join(in, segment(1)), c.content, 0o600))
		fetched := 0
		wanted := []string{segment(1)}
		s := r.spool
		s.Start = func(ctx context.Context, _ string, _ bool) error {
			return r.spool.GetQueue(ctx, wanted, 1, func(_ context.Context, _, dest string) error {
				fetched++
				return os.WriteFile(dest, right, 0o600)
			})
		}
		dest := filepath.Join(t.TempDir(), "RECOVERYXLOG")
		for range 2 { // the second time from scratch: the mark of this boot must not be in the way
			must(t, s.GetSpooled(t.Context(), wanted, dest, true))
			got, err := os.ReadFile(dest)
			must(t, err)
			if string(got) != string(right) {
				t.Errorf("%s: a wrong segment is delivered", name)
			}
		}
		if fetched != c.fetched+1 {
			t.Errorf("%s: fetched %d times", name, fetched)
		}
	}
}

// TestPushQueueCancelled: a background process that is told to end hands that on to the push at work, and leaves no error
// status behind: nothing failed, and PostgreSQL asks again.
func TestPushQueueCancelled(t *testing.T) {
	r := newSpoolRig(t)
	r.ready(segment(1), segment(2))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := r.spool.PushQueue(ctx, engine.QueueOptions{WALDir: r.wal, ProcessMax: 1, Push: func(ctx context.Context, _ string) error {
		cancel()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Second):
			return nil // it went on writing to the repository
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	left, err := os.ReadDir(filepath.Join(r.spool.Dir, "out"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("statuses left by a cancelled run: %v", left)
	}
}

// TestPushQueueClockBack: PostgreSQL's requests are of an hour from now, because the clock was put back. Statuses written now
// look older than what they answer; the background process must not push the same files for ever.
func TestPushQueueClockBack(t *testing.T) {
	for name, o := range map[string]engine.QueueOptions{"pushed": {ProcessMax: 1}, "dropped": {ProcessMax: 1, QueueMax: 1500}} {
		r := newSpoolRig(t)
		r.spool.WALDir = r.wal
		r.ready(segment(1), segment(2))
		later := time.Now().Add(time.Hour)
		for _, n := range []string{segment(1), segment(2)} {
			must(t, os.Chtimes(filepath.Join(r.wal, "archive_status", n+".ready"), later, later))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		pushed := 0
		o.WALDir, o.Push = r.wal, func(ctx context.Context, path string) error {
			if pushed++; pushed > 2 {
				cancel()
			}
			return r.push(ctx, path)
		}
		if err := r.spool.PushQueue(ctx, o); err != nil {
			t.Errorf("%s: %v after %d pushes", name, err, pushed)
		}
		r.spool.Start = func(context.Context, string, bool) error {
			t.Errorf("%s: asked again", name)
			return nil
		}
		for _, n := range []string{segment(1), segment(2)} { // PostgreSQL is told of both
			must(t, r.spool.PushSpooled(ctx, n))
		}
	}
}
