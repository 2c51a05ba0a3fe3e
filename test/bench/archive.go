package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// measureArchive pushes and gets the cluster's own full segments, one invocation each.
func (w *world) measureArchive(ctx context.Context) error {
	segments, err := w.fullSegments()
	if err != nil {
		return err
	}
	for round := range w.set.rounds {
		for _, t := range order(round, w.ours, w.theirs) {
			if err := w.freshStanza(ctx, t); err != nil {
				return err
			}
			if err := w.pushAndGet(ctx, t, round, segments, filepath.Join(w.dir, "fetched")); err != nil {
				return err
			}
		}
	}
	return nil
}

// pushAndGet measures the pushes of all segments together, then the gets.
func (w *world) pushAndGet(ctx context.Context, t tool, round int, segments []string, dest string, more ...string) error {
	how := w.set.types[0]
	if len(more) > 0 {
		how += " async"
	}
	opts := append(append(w.stanza(t), compression(w.set.types[0])...), more...)
	push, err := w.total(func() error { return w.pushAll(ctx, t, segments, opts) })
	if err != nil {
		return err
	}
	if _, push.Stored, err = measureTree(t.repo); err != nil {
		return err
	}
	w.record(fmt.Sprintf("push %d × %s", len(segments), how), t.name, round, push)

	opts = append(w.stanza(t), more...)
	get, err := w.total(func() error { return w.getAll(ctx, t, segments, dest, opts) })
	if err != nil {
		return err
	}
	w.record(fmt.Sprintf("get %d × %s", len(segments), how), t.name, round, get)
	return os.RemoveAll(t.repo)
}

func (w *world) pushAll(ctx context.Context, t tool, segments, opts []string) error {
	for _, name := range segments {
		if _, err := w.exec(ctx, t.command("archive-push", append(slices.Clone(opts), name)...)); err != nil {
			return err
		}
		ready := filepath.Join(filepath.Dir(name), "archive_status", filepath.Base(name))
		if err := os.Rename(ready+".ready", ready+".done"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (w *world) getAll(ctx context.Context, t tool, segments []string, dest string, opts []string) error {
	for _, name := range segments {
		if _, err := w.exec(ctx, t.command("archive-get", append(slices.Clone(opts), filepath.Base(name), dest)...)); err != nil {
			return err
		}
		if err := sameFile(name, dest); err != nil {
			return fmt.Errorf("what %s archive-get brought: %w", t.name, err)
		}
		if err := os.Remove(dest); err != nil {
			return err
		}
	}
	return nil
}

// total measures all processes that do starts, those included that outlive their parent: they become our children and are
// waited for. The wall time is that of the commands that were waited for in turn.
func (w *world) total(do func() error) (sample, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return sample{}, fmt.Errorf("become the parent of orphans: %w", err)
	}
	var before, after unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &before); err != nil {
		return sample{}, err
	}
	w.sum = sample{}
	if err := do(); err != nil {
		return sample{}, err
	}
	s := w.sum
	if err := w.reap(&s); err != nil {
		return sample{}, err
	}
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &after); err != nil {
		return sample{}, err
	}
	spent := func(u unix.Rusage) int64 { return u.Utime.Nano() + u.Stime.Nano() }
	s.CPU = time.Duration(spent(after) - spent(before))
	return s, nil
}

// reap waits for the orphans.
func (w *world) reap(s *sample) error {
	for deadline := time.Now().Add(time.Minute); ; {
		var usage syscall.Rusage
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, &usage)
		switch {
		case err == syscall.ECHILD:
			return nil
		case err != nil && err != syscall.EINTR:
			return fmt.Errorf("wait for a background process: %w", err)
		case pid > 0:
			s.Memory = max(s.Memory, usage.Maxrss*1024)
		case time.Now().After(deadline):
			return errors.New("a background process still runs a minute after the last command")
		default:
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// measureAsync pushes and gets the segments of a directory that looks like a server's, where all of them are waiting.
func (w *world) measureAsync(ctx context.Context) error {
	segments, err := w.fullSegments()
	if err != nil {
		return err
	}
	spool := filepath.Join(w.dir, "spool")
	for round := range w.set.rounds {
		for _, t := range order(round, w.ours, w.theirs) {
			data := filepath.Join(w.dir, "server")
			waiting, err := w.waitingSegments(data, segments)
			if err != nil {
				return err
			}
			if err := w.fresh(spool); err != nil {
				return err
			}
			if err := w.freshStanza(ctx, t); err != nil {
				return err
			}
			t.data = data
			err = w.pushAndGet(ctx, t, round, waiting, filepath.Join(data, "pg_wal", "RECOVERYXLOG"),
				"--archive-async", "--spool-path="+spool, w.locks, w.processes())
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// waitingSegments makes a data directory of the control file alone and links the segments into its pg_wal with the mark
// that says they are to be archived.
func (w *world) waitingSegments(data string, segments []string) ([]string, error) {
	wal, global := filepath.Join(data, "pg_wal"), filepath.Join(data, "global")
	status := filepath.Join(wal, "archive_status")
	if err := errors.Join(w.fresh(data), w.fresh(global), w.fresh(wal), w.fresh(status)); err != nil {
		return nil, err
	}
	for _, name := range []string{"PG_VERSION", "global/pg_control"} {
		content, err := os.ReadFile(filepath.Join(w.data, name))
		if err == nil {
			err = w.write(filepath.Join(data, name), content)
		}
		if err != nil {
			return nil, err
		}
	}
	var waiting []string
	for _, from := range segments {
		to := filepath.Join(wal, filepath.Base(from))
		if err := os.Link(from, to); err != nil {
			return nil, err
		}
		if err := w.write(filepath.Join(status, filepath.Base(from)+".ready"), nil); err != nil {
			return nil, err
		}
		waiting = append(waiting, to)
	}
	return waiting, nil
}

// write makes a file of the bench user's.
func (w *world) write(name string, content []byte) error {
	return errors.Join(os.WriteFile(name, content, 0o600), w.own(name))
}

// startRuns is how often a short invocation is repeated in one sample.
const startRuns = 20

// measureStart runs what is over before it began, where starting the program is most of the time.
func (w *world) measureStart(ctx context.Context) error {
	own := tool{name: "holdfast pg", argv: []string{w.native, "pg"}, repo: w.ours.repo + "-pg"}
	all, err := w.segmentFiles()
	if err != nil {
		return err
	}
	short := all[0] // cut off by the switch: zeros for the most part
	for round := range w.set.rounds {
		for _, t := range order(round, own, w.ours, w.theirs) {
			version := []string{t.argv[0], "version"}
			if err := w.repeat(ctx, "start (version)", t, round, version, 0, nil); err != nil {
				return err
			}
			if err := w.freshStanza(ctx, t); err != nil {
				return err
			}
			missing := t.command("archive-get", append(w.stanza(t), "0000000100000FFF000000AA", filepath.Join(w.dir, "fetched"))...)
			if err := w.repeat(ctx, "get of a missing segment", t, round, missing, 1, nil); err != nil {
				return err
			}
			push := t.command("archive-push", append(append(w.stanza(t), compression(w.set.types[0])...), short)...)
			again := func() error { return removeSegments(t.repo) }
			if err := w.repeat(ctx, "push of an empty segment", t, round, push, 0, again); err != nil {
				return err
			}
			if err := os.RemoveAll(t.repo); err != nil {
				return err
			}
		}
	}
	return nil
}

// repeat measures startRuns runs of one command line; after (may be nil) follows each of them, unmeasured.
func (w *world) repeat(ctx context.Context, what string, t tool, round int, argv []string, code int, after func() error) error {
	var sum sample
	for range startRuns {
		s, err := w.exec(ctx, argv, code)
		if err != nil {
			return err
		}
		sum.add(s)
		if after != nil {
			if err := after(); err != nil {
				return err
			}
		}
	}
	w.record(fmt.Sprintf("%s × %d", what, startRuns), t.name, round, sum)
	return nil
}

func removeSegments(repo string) error {
	dirs, err := filepath.Glob(filepath.Join(repo, "archive", "bench", "*-1", "*"))
	for _, d := range dirs {
		err = errors.Join(err, os.RemoveAll(d))
	}
	return err
}
