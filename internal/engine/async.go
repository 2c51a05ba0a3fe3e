package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/durable"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
)

// Asynchronous archiving (format page, section 12). archive_command only asks a spool directory whether its segment is in
// the archive already; one background process pushes all that waits. restore_command takes its segment from a directory
// that a background process fills ahead:
//
//	<spool>/archive/<stanza>/out/<file>.ok      pushed; a first line "0" is followed by a warning
//	<spool>/archive/<stanza>/out/<file>.error   "<code>\n<message>"; global.error stands for every file without its own
//	<spool>/archive/<stanza>/out/<file>.partly  in some repositories only: not read again before the others answer
//	<spool>/archive/<stanza>/in/<segment>       fetched, ready to be renamed
//	<spool>/archive/<stanza>/in/<segment>.ok    not in the archive
//	<spool>/archive/<stanza>/in/<segment>.error as above
//	<spool>/archive/<stanza>/in/taken           the segment that was handed over last; only a hint, ours alone
//
// Nothing in a spool is precious: without it everything is asked again.

// Spool is the spool directory of one stanza and how to start the background process.
type Spool struct {
	Dir     string        // <spool path>/archive/<stanza>
	Timeout time.Duration // how long the foreground waits for the background; 0: a minute

	WALDir      string // pg_wal, for archive-push: statuses older than PostgreSQL's request do not count; "": all do
	BootID      string // of this boot of the machine, for archive-get: what was fetched before does not count; "": not known
	SystemID    uint64 // of the cluster, for archive-get: other clusters' segments do not count; 0: not known
	SegmentSize uint32 // bytes, for archive-get; 0: not known

	// Start starts the background process, which outlives the caller: to push what waits, or to get the segments from first
	// on. ahead: the caller has what it wants, so that the process may leave at once where another is at work. It is called
	// at most once per verb.
	Start func(ctx context.Context, first string, ahead bool) error
	// Code turns an error into the number written into a status file; nil: always 125.
	Code   func(error) int
	Events func(Event)
}

// SpoolError is what a background process left in a status file.
type SpoolError struct {
	File    string // what it could not push or get
	Code    int    // as Spool.Code gave it
	Message string
}

func (e *SpoolError) Error() string { return e.Message }

const (
	globalStatus = "global"
	partlyMark   = ".partly"
)

func (s *Spool) complete() {
	if s.Timeout <= 0 {
		s.Timeout = time.Minute
	}
	if s.Code == nil {
		s.Code = func(error) int { return 125 }
	}
	if s.Events == nil {
		s.Events = func(Event) {}
	}
}

func (s *Spool) warn(format string, a ...any) { s.Events(Warning{fmt.Sprintf(format, a...)}) }

// put writes a status file so that a reader sees all of it or nothing.
func put(dir, name, text string) error {
	f, err := durable.Create(filepath.Join(dir, name), 0o640)
	if err != nil {
		return err
	}
	defer f.Abort() // after the commit it does nothing
	if _, err := f.Write([]byte(text)); err != nil {
		return err
	}
	return f.CommitNoSync() // a power cut may take it: the question is asked again
}

// status reads the status of a file: found with a warning to pass on, or the error left there.
func (s *Spool) status(dir, file string) (found bool, err error) {
	switch b, err := os.ReadFile(filepath.Join(dir, file+".ok")); {
	case err == nil:
		first, rest, _ := strings.Cut(string(b), "\n")
		if first != "" && first != "0" {
			s.warn("%s was skipped by hand: its status is %s\n%s", file, first, rest)
		} else if rest != "" {
			s.warn("%s", strings.TrimSpace(rest))
		}
		return true, nil
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	for _, name := range []string{file, globalStatus} {
		b, err := os.ReadFile(filepath.Join(dir, name+".error"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		first, rest, _ := strings.Cut(string(b), "\n")
		code, cerr := strconv.Atoi(first)
		if cerr != nil {
			code, rest = 125, string(b)
		}
		return false, &SpoolError{File: file, Code: code, Message: strings.TrimSpace(rest)}
	}
	return false, nil
}

func (s *Spool) fail(dir, file string, err error) error {
	return put(dir, file+".error", strconv.Itoa(s.Code(err))+"\n"+err.Error()+"\n")
}

func removeFiles(dir string, names ...string) error {
	for _, n := range names {
		if err := os.Remove(filepath.Join(dir, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// await asks ready until it is done, an error, or the time is over; the error then names what was waited for.
func (s *Spool) await(ctx context.Context, what string, ready func() (bool, error)) error {
	over := time.NewTimer(s.Timeout)
	defer over.Stop()
	for pause := 2 * time.Millisecond; ; pause = min(pause*2, 100*time.Millisecond) {
		if ok, err := ready(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-over.C:
			return fmt.Errorf("%w: %s after %s: the background process has not answered; see its log and the files in %s", ErrArchiveTimeout, what, s.Timeout, s.Dir)
		case <-time.After(pause):
		}
	}
}

// PushSpooled is archive_command with asynchronous archiving: it returns nil once the background process has put the file
// into every repository. An error left by an earlier run gets one more try. Cancelled: nothing was promised.
func (s Spool) PushSpooled(ctx context.Context, file string) error {
	s.complete()
	out := filepath.Join(s.Dir, "out")
	if outdated(s.WALDir, out, file) {
		if err := removeFiles(out, file+".ok"); err != nil {
			return fmt.Errorf("spool: %w", err)
		}
	}
	if done, err := s.status(out, file); done {
		return err
	}
	if err := os.MkdirAll(out, 0o750); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	if err := removeFiles(out, file+".error", file+partlyMark, globalStatus+".error"); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	if err := s.Start(ctx, file, false); err != nil {
		return fmt.Errorf("start the background process of archive-push: %w", err)
	}
	return s.await(ctx, "push of "+file, func() (bool, error) { return s.status(out, file) })
}

// QueueOptions is what the background process of archive-push works with.
type QueueOptions struct {
	WALDir     string // pg_wal
	ProcessMax int
	QueueMax   int64                // bytes of WAL that may wait before it is dropped; 0: it never is
	Begin      func(files []string) // told of each batch before the first of it is pushed; nil: nobody
	BatchSize  int64                // bytes of WAL pushed before it is looked again how much waits; 0: all that does
	// Push puts one file into every repository. ErrPartly: at least one has it, so that it makes sense to go on with the next
	// file although this one has to come again.
	Push func(ctx context.Context, path string) error
}

// dropWarnings are the shares of QueueMax at which the operator is warned before WAL is dropped.
var dropWarnings = []int64{80, 50}

// PushQueue is the background process of archive-push: it pushes what waits in archive_status until nothing is left or a
// push fails. ErrPartly: what waits is in some repositories and not in all. The caller holds the stanza's archive lock.
func (s Spool) PushQueue(ctx context.Context, o QueueOptions) error {
	s.complete()
	out := filepath.Join(s.Dir, "out")
	if err := os.MkdirAll(out, 0o750); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	for {
		all, err := readySegments(o.WALDir)
		ready := slices.Clone(all)
		if err == nil {
			ready, err = s.queue(out, o.WALDir, ready)
		}
		if err == nil && len(ready) == 0 {
			return nil
		}
		dropped := false
		notice := ""
		if err == nil {
			dropped, notice, err = s.overflow(out, all, ready, o)
		}
		if err == nil && !dropped {
			some := batch(o, ready)
			if o.Begin != nil {
				o.Begin(some)
			}
			err = s.pushBatch(ctx, out, some, notice, o)
		}
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrPartly): // each file has its own status
			return err
		default:
			return errors.Join(err, s.fail(out, globalStatus, err))
		}
	}
}

// readySegments lists what PostgreSQL wants archived, history files first, then in the order of WAL.
func readySegments(walDir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(walDir, "archive_status"))
	if err != nil {
		return nil, fmt.Errorf("look for WAL that waits: %w", err)
	}
	var ready []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".ready"); ok {
			ready = append(ready, name)
		}
	}
	slices.SortFunc(ready, func(a, b string) int {
		if ha, hb := pg.IsHistoryName(a), pg.IsHistoryName(b); ha != hb {
			if ha {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	return ready, nil
}

// queue clears statuses that nobody will ask for and leaves out what is done.
func (s *Spool) queue(out, walDir string, ready []string) ([]string, error) {
	waiting := map[string]bool{}
	for _, name := range ready {
		waiting[name] = true
	}
	entries, err := os.ReadDir(out)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".ok")
		if ok && waiting[name] && !outdated(walDir, out, name) {
			delete(waiting, name)
			continue
		}
		if name, partly := strings.CutSuffix(e.Name(), partlyMark); partly && waiting[name] {
			delete(waiting, name)
			continue
		}
		if err := removeFiles(out, e.Name()); err != nil {
			return nil, fmt.Errorf("spool: %w", err)
		}
	}
	return slices.DeleteFunc(ready, func(n string) bool { return !waiting[n] }), nil
}

// batch are the first files of ready, as many as BatchSize permits, one at least.
func batch(o QueueOptions, ready []string) []string {
	if o.BatchSize <= 0 {
		return ready
	}
	size := int64(0)
	for i, name := range ready {
		size += waitingBytes(o.WALDir, []string{name})
		if i > 0 && size > o.BatchSize {
			return ready[:i]
		}
	}
	return ready
}

// overflow drops what waits when it exceeds the limit: the operator chose a gap in the archive over a full disk. Long
// before that, notice is a warning that goes out with each file. What is in the archive already waits as well when it comes
// after a file that is not: PostgreSQL asks in their order, and removes none before the first is done.
func (s *Spool) overflow(out string, all, ready []string, o QueueOptions) (dropped bool, notice string, err error) {
	if o.QueueMax <= 0 {
		return false, "", nil
	}
	waiting := waitingBytes(o.WALDir, all[slices.Index(all, ready[0]):])
	if waiting > o.QueueMax {
		for _, name := range ready {
			text := fmt.Sprintf("0\ndropped WAL file '%s' because archive queue exceeded %s: the archive has a gap from here on; make a new backup\n", name, Size(o.QueueMax))
			if err := done(out, o.WALDir, name, text); err != nil {
				return false, "", fmt.Errorf("spool: %w", err)
			}
		}
		return true, "", nil
	}
	for _, share := range dropWarnings {
		if waiting > o.QueueMax/100*share {
			return false, fmt.Sprintf("0\n%s of WAL wait to be archived, %d %% of the limit at which WAL is dropped (archive-push-queue-max=%s)\n", Size(waiting), waiting*100/o.QueueMax, Size(o.QueueMax)), nil
		}
	}
	return false, "", nil
}

// QueueExceeds reports whether more than limit bytes of WAL wait to be archived: then archive-push gives WAL up instead of
// letting the disk fill. limit 0: never.
func QueueExceeds(walDir string, limit int64) (bool, error) {
	if limit <= 0 {
		return false, nil
	}
	ready, err := readySegments(walDir)
	return err == nil && waitingBytes(walDir, ready) > limit, err
}

func waitingBytes(walDir string, names []string) (n int64) {
	for _, name := range names {
		if info, err := os.Stat(filepath.Join(walDir, name)); err == nil {
			n += info.Size()
		}
	}
	return n
}

// pushBatch pushes files with several workers; after the first failure nothing new is begun. A file that only some
// repositories have does not keep those waiting; ErrPartly when that is all that was reached. Where one got through, the
// repositories are back: then those files are looked at again.
func (s *Spool) pushBatch(ctx context.Context, out string, ready []string, notice string, o QueueOptions) error {
	var mu sync.Mutex
	var partly []error
	through := 0
	g, all := errgroup.WithContext(ctx)
	g.SetLimit(max(o.ProcessMax, 1))
	for _, name := range ready {
		if all.Err() != nil {
			break
		}
		g.Go(func() error {
			if all.Err() != nil { // begun after another one failed
				return all.Err()
			}
			// One that was begun is finished, whatever happens to the others; only the caller ends it.
			err := o.Push(ctx, filepath.Join(o.WALDir, name))
			if ctx.Err() != nil {
				return ctx.Err()
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, ErrPartly):
				partly = append(partly, err)
				return errors.Join(put(out, name+partlyMark, ""), s.fail(out, name, err))
			case err != nil:
				return errors.Join(err, s.fail(out, name, err))
			}
			through++
			return done(out, o.WALDir, name, notice)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if through == 0 {
		return errors.Join(partly...)
	}
	return forgetPartly(out)
}

// forgetPartly lets files that some repositories have be pushed again.
func forgetPartly(out string) error {
	entries, err := os.ReadDir(out)
	if err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), partlyMark) {
			if err := removeFiles(out, e.Name()); err != nil {
				return fmt.Errorf("spool: %w", err)
			}
		}
	}
	return nil
}

// GetSpooled is restore_command with read-ahead, for segments only; the file appears at dest. wanted are the segments that
// will be asked for next, beginning with this one. ErrWALMissing: the archive does not hold it. retry: a mark "not there"
// that an earlier run left does not count.
func (s Spool) GetSpooled(ctx context.Context, wanted []string, dest string, retry bool) error {
	s.complete()
	in := filepath.Join(s.Dir, "in")
	if err := os.MkdirAll(in, 0o750); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	if err := s.sinceBoot(in); err != nil {
		return err
	}
	name := wanted[0]
	if found, err := s.usable(in, name); err != nil {
		return err
	} else if found {
		if err := s.take(in, name, dest); err != nil {
			return err
		}
		return s.refill(ctx, in, wanted[1:])
	}
	if _, err := os.Stat(filepath.Join(in, name+".ok")); err == nil && !retry {
		return fmt.Errorf("get %s: %w", name, errors.Join(ErrWALMissing, removeFiles(in, name+".ok")))
	}
	if err := removeFiles(in, name+".ok", name+".error", globalStatus+".error"); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	if wasTaken(in, name) { // recovery began again before it
		if err := removeFiles(in, takenName); err != nil {
			return fmt.Errorf("spool: %w", err)
		}
	}
	if err := s.tidy(in, wanted); err != nil {
		return err
	}
	if err := s.Start(ctx, name, false); err != nil {
		return fmt.Errorf("start the background process of archive-get: %w", err)
	}
	missing := false
	err := s.await(ctx, "get of "+name, func() (bool, error) {
		if _, err := os.Stat(filepath.Join(in, name)); err == nil {
			return true, nil
		}
		found, err := s.status(in, name)
		missing = found
		return found, err
	})
	switch {
	case err != nil:
		return err
	case missing:
		return fmt.Errorf("get %s: %w", name, errors.Join(ErrWALMissing, removeFiles(in, name+".ok")))
	}
	return s.take(in, name, dest)
}

// take hands a segment over: by rename, or by a copy where the spool is on another file system.
func (s *Spool) take(in, name, dest string) error {
	from := filepath.Join(in, name)
	if err := os.Rename(from, dest); err == nil {
		s.took(in, name)
		return removeFiles(in, name+".ok")
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close() // opened for reading: nothing to lose
	dst, err := durable.Create(dest, 0o600)
	if err != nil {
		return err
	}
	defer dst.Abort() // after the commit it does nothing
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	if err := dst.CommitNoSync(); err != nil {
		return err
	}
	s.took(in, name)
	return removeFiles(in, name, name+".ok")
}

// refill starts the background process when half of the read-ahead is used up.
func (s *Spool) refill(ctx context.Context, in string, next []string) error {
	if len(next) == 0 {
		return nil
	}
	have := 0
	for _, n := range next {
		_, err1 := os.Stat(filepath.Join(in, n))
		_, err2 := os.Stat(filepath.Join(in, n+".ok"))
		if err2 == nil {
			return nil // the end of the archive is in sight
		}
		if err1 == nil {
			have++
		}
	}
	if have > len(next)/2 {
		return nil
	}
	if err := s.tidy(in, next); err != nil {
		return err
	}
	if err := s.Start(ctx, next[0], true); err != nil {
		s.warn("the read-ahead of WAL could not be started: %v", err) // this segment is there
	}
	return nil
}

// tidy removes what is not wanted any more: recovery went on to another timeline, or began again.
func (s *Spool) tidy(in string, wanted []string) error {
	entries, err := os.ReadDir(in)
	if err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	keep := map[string]bool{bootName: true, takenName: true}
	for _, n := range wanted {
		keep[n], keep[n+".ok"], keep[n+fetchTemp] = true, true, true // a background process may be at work
	}
	for _, e := range entries {
		if !keep[e.Name()] {
			if err := removeFiles(in, e.Name()); err != nil {
				return fmt.Errorf("spool: %w", err)
			}
		}
	}
	return nil
}

// GetQueue is the background process of archive-get: it fetches the segments that are not in the spool yet. get brings one
// segment to a path, or ErrWALMissing; segments after a missing one are not asked for. The caller holds the stanza's
// archive lock.
func (s Spool) GetQueue(ctx context.Context, wanted []string, workers int, get func(ctx context.Context, name, dest string) error) error {
	s.complete()
	in := filepath.Join(s.Dir, "in")
	if err := os.MkdirAll(in, 0o750); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	var mu sync.Mutex
	end := len(wanted) // the first segment that was missing: those before it are still looked for
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(workers, 1))
	for i, name := range wanted {
		g.Go(func() error {
			if found, err := s.usable(in, name); found || err != nil || i > 0 && wasTaken(in, name) { // the first may be waited for by another cluster of this spool
				return err
			}
			mu.Lock()
			skip := i > end
			mu.Unlock()
			if skip || ctx.Err() != nil {
				return ctx.Err()
			}
			err := get(ctx, name, filepath.Join(in, name)) // under a temporary name until it is whole
			switch {
			case errors.Is(err, ErrWALMissing):
				mu.Lock()
				end = min(end, i)
				mu.Unlock()
				return put(in, name+".ok", "")
			case err != nil && ctx.Err() == nil:
				return s.fail(in, name, err)
			}
			return err
		})
	}
	return g.Wait()
}

// NextSegments names the segment and those that follow it on its timeline, as many as fit into queueMax bytes, two at
// least.
func NextSegments(name string, segmentSize uint32, queueMax int64) ([]string, error) {
	tli, lsn, err := pg.ParseSegmentName(name, segmentSize)
	if err != nil {
		return nil, err
	}
	n := max(queueMax/int64(segmentSize), 2)
	list := make([]string, 0, n)
	for i := range n {
		at := lsn + pg.LSN(uint64(i)*uint64(segmentSize))
		if at < lsn {
			break // the end of all WAL
		}
		list = append(list, pg.SegmentName(tli, at, segmentSize))
	}
	return list, nil
}

// Locked runs do while holding the stanza's archive lock; it returns repo.ErrLocked when another process has it, which for
// a background process means that its work is being done.
func (s *Stanza) Locked(do func() error) error {
	if err := s.stopped(); err != nil {
		return err
	}
	release, err := s.lock(repo.LockArchive)
	if err != nil {
		return err
	}
	return errors.Join(do(), release())
}
