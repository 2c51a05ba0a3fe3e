package engine_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/engine"
)

// spoolRig is a spool, a pg_wal and an archive that is a map.
type spoolRig struct {
	t     *testing.T
	wal   string
	spool engine.Spool

	mu      sync.Mutex
	archive map[string]bool
	failing map[string]error
	started int
	warned  []string
}

func newSpoolRig(t *testing.T) *spoolRig {
	r := &spoolRig{t: t, wal: filepath.Join(t.TempDir(), "pg_wal"), archive: map[string]bool{}, failing: map[string]error{}}
	mkdir(t, filepath.Join(r.wal, "archive_status"))
	r.spool = engine.Spool{Dir: filepath.Join(t.TempDir(), "spool", "archive", "demo"), Timeout: 5 * time.Second, Code: func(error) int { return 64 },
		Events: func(e engine.Event) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.warned = append(r.warned, e.String())
		}}
	return r
}

// ready makes segments that wait to be archived.
func (r *spoolRig) ready(names ...string) {
	r.t.Helper()
	for _, n := range names {
		must(r.t, os.WriteFile(filepath.Join(r.wal, n), make([]byte, 1000), 0o600))
		must(r.t, os.WriteFile(filepath.Join(r.wal, "archive_status", n+".ready"), nil, 0o600))
	}
}

func (r *spoolRig) archived(name string) {
	r.t.Helper()
	must(r.t, os.Remove(filepath.Join(r.wal, "archive_status", name+".ready")))
}

func (r *spoolRig) push(_ context.Context, path string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := filepath.Base(path)
	if err := r.failing[name]; err != nil {
		return err
	}
	r.archive[name] = true
	return nil
}

// background runs PushQueue when the foreground asks for it.
func (r *spoolRig) background(o engine.QueueOptions) {
	o.WALDir, o.Push = r.wal, r.push
	s := r.spool
	r.spool.Start = func(ctx context.Context, _ string, _ bool) error {
		r.started++
		err := s.PushQueue(ctx, o)
		if err != nil {
			r.t.Logf("background: %v", err)
		}
		return nil
	}
}

func segment(n int) string { return fmt.Sprintf("00000001%016X", n) }

func TestPushSpooled(t *testing.T) {
	r := newSpoolRig(t)
	r.background(engine.QueueOptions{ProcessMax: 3})
	var names []string
	for n := range 20 {
		names = append(names, segment(n))
	}
	r.ready(append(names, "00000002.history")...)
	for _, n := range names {
		must(t, r.spool.PushSpooled(t.Context(), n))
		if !r.archive[n] {
			t.Fatalf("%s: told to be archived, but it is not", n)
		}
		r.archived(n)
	}
	if r.started != 1 || !r.archive["00000002.history"] {
		t.Errorf("the background process was started %d times for one batch; history pushed: %t", r.started, r.archive["00000002.history"])
	}
	r.ready(segment(20))
	must(t, r.spool.PushSpooled(t.Context(), segment(20)))
	left, err := os.ReadDir(filepath.Join(r.spool.Dir, "out"))
	must(t, err)
	if len(left) != 2 { // segment 20 and the history file, which nobody asked for yet
		t.Errorf("statuses left: %v", left)
	}
}

func TestPushSpooledReportsErrors(t *testing.T) {
	r := newSpoolRig(t)
	r.background(engine.QueueOptions{ProcessMax: 1})
	r.ready(segment(1), segment(2))
	r.failing[segment(2)] = errors.New("the disk of the repository is full")
	must(t, r.spool.PushSpooled(t.Context(), segment(1)))
	for range 2 { // each call tries once more and then says why
		err := r.spool.PushSpooled(t.Context(), segment(2))
		var left *engine.SpoolError
		if !errors.As(err, &left) || left.Code != 64 || !strings.Contains(left.Message, "disk of the repository is full") {
			t.Fatalf("error: %v", err)
		}
	}
	r.failing = map[string]error{}
	must(t, r.spool.PushSpooled(t.Context(), segment(2)))
	if r.started != 4 {
		t.Errorf("started %d times", r.started)
	}
}

func TestPushQueueLimits(t *testing.T) {
	for _, c := range []struct {
		max     int64
		want    string
		dropped bool
	}{
		{0, "", false},
		{100_000, "", false},
		{15_000, "of WAL wait to be archived", false},
		{5000, "dropped WAL file", true},
	} {
		r := newSpoolRig(t)
		r.background(engine.QueueOptions{ProcessMax: 2, QueueMax: c.max})
		for n := range 10 {
			r.ready(segment(n))
		}
		must(t, r.spool.PushSpooled(t.Context(), segment(0)))
		if got := strings.Join(r.warned, "\n"); c.want == "" != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("limit %d: warned %q, want %q", c.max, got, c.want)
		}
		if r.archive[segment(0)] == c.dropped {
			t.Errorf("limit %d: archived %t", c.max, r.archive[segment(0)])
		}
	}
}

func TestPushSpooledTimesOut(t *testing.T) {
	r := newSpoolRig(t)
	r.spool.Timeout = 20 * time.Millisecond
	r.spool.Start = func(context.Context, string, bool) error { return nil }
	r.ready(segment(1))
	if err := r.spool.PushSpooled(t.Context(), segment(1)); !errors.Is(err, engine.ErrArchiveTimeout) || !strings.Contains(err.Error(), segment(1)) {
		t.Errorf("error: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(r.spool.Dir, "out", segment(1)+".ok"), []byte("44\nleft out\n"), 0o600))
	must(t, r.spool.PushSpooled(t.Context(), segment(1)))
	if len(r.warned) != 1 || !strings.Contains(r.warned[0], "skipped by hand") {
		t.Errorf("warned %q", r.warned)
	}
}

func TestGetSpooled(t *testing.T) {
	r := newSpoolRig(t)
	asked := []string{}
	fetch := func(_ context.Context, name, dest string) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		asked = append(asked, name)
		if err := r.failing[name]; err != nil {
			return err
		}
		if name > segment(12) {
			return fmt.Errorf("get %s: %w", name, engine.ErrWALMissing)
		}
		return os.WriteFile(dest, []byte(name), 0o600)
	}
	dest := filepath.Join(t.TempDir(), "RECOVERYXLOG")
	get := func(n int, retry bool) error {
		wanted, err := engine.NextSegments(segment(n), 16<<20, 6*16<<20)
		must(t, err)
		s := r.spool
		s.Start = func(ctx context.Context, _ string, _ bool) error {
			r.started++
			return r.spool.GetQueue(ctx, wanted, 2, fetch)
		}
		if err := s.GetSpooled(t.Context(), wanted, dest, retry); err != nil {
			return err
		}
		b, err := os.ReadFile(dest)
		must(t, err)
		if string(b) != segment(n) {
			t.Fatalf("segment %d: got %s", n, b)
		}
		return os.Remove(dest)
	}
	for n := range 13 {
		must(t, get(n, true))
	}
	if err := get(13, false); !errors.Is(err, engine.ErrWALMissing) {
		t.Errorf("the end of the archive: %v", err)
	}
	if r.started > 6 {
		t.Errorf("started %d times for 13 segments", r.started)
	}
	slices.Sort(asked)
	if n := len(slices.Compact(slices.Clone(asked))); n < len(asked)-4 {
		t.Errorf("asked %d times for %d segments: %v", len(asked), n, asked)
	}
	r.failing[segment(5)] = errors.New("no connection")
	var left *engine.SpoolError
	if err := get(5, true); !errors.As(err, &left) || !strings.Contains(err.Error(), "no connection") {
		t.Errorf("error: %v", err)
	}
	r.failing = map[string]error{}
	must(t, get(5, true)) // recovery began again, behind what is in the spool
	entries, err := os.ReadDir(filepath.Join(r.spool.Dir, "in"))
	must(t, err)
	for _, e := range entries {
		if e.Name() > segment(11) && e.Name() != "taken" {
			t.Errorf("left in the spool: %s", e.Name())
		}
	}
}

// TestPushQueueOneRepositoryAway: one of several repositories does not answer. The others get all WAL that waits, once; the one
// that was away gets it in one go when it is back.
func TestPushQueueOneRepositoryAway(t *testing.T) {
	r := newSpoolRig(t)
	r.spool.WALDir = r.wal
	r.background(engine.QueueOptions{ProcessMax: 2})
	near, tried, away := map[string]bool{}, 0, true
	s := r.spool
	r.spool.Start = func(ctx context.Context, _ string, _ bool) error {
		r.started++
		err := s.PushQueue(ctx, engine.QueueOptions{WALDir: r.wal, ProcessMax: 2, Push: func(ctx context.Context, path string) error {
			r.mu.Lock()
			near[filepath.Base(path)] = true
			tried++
			r.mu.Unlock()
			if away {
				return fmt.Errorf("repo2: no route to host: %w", engine.ErrPartly)
			}
			return r.push(ctx, path)
		}})
		if (err == nil) == away || err != nil && !errors.Is(err, engine.ErrPartly) {
			t.Errorf("background: %v", err)
		}
		return nil
	}
	fails := func(n, more int) {
		t.Helper()
		before := tried
		var left *engine.SpoolError
		if err := r.spool.PushSpooled(t.Context(), segment(n)); !errors.As(err, &left) || left.Code != 64 || !strings.Contains(left.Message, "no route") {
			t.Errorf("segment %d: %v", n, err)
		}
		if tried-before != more {
			t.Errorf("%d files were read, not %d", tried-before, more)
		}
	}
	r.ready(segment(1), segment(2), segment(3), segment(4), segment(5))
	fails(1, 5)
	fails(1, 1) // PostgreSQL asks again for the one; the others need not be read again
	r.ready(segment(6), segment(7))
	fails(1, 3)
	if len(near) != 7 {
		t.Errorf("the repository that answers has %v", near)
	}
	away, r.started = false, 0
	for n := 1; n <= 7; n++ {
		must(t, r.spool.PushSpooled(t.Context(), segment(n)))
		if !r.archive[segment(n)] {
			t.Errorf("segment %d is not everywhere", n)
		}
		r.archived(segment(n))
	}
	if r.started != 1 {
		t.Errorf("the background process was started %d times", r.started)
	}
	r.ready(segment(8))
	must(t, r.spool.PushSpooled(t.Context(), segment(8)))
	left, err := os.ReadDir(filepath.Join(r.spool.Dir, "out"))
	must(t, err)
	if len(left) != 1 {
		t.Errorf("statuses left: %v", left)
	}
}
