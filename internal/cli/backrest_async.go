package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
)

// asyncChild in the environment makes a process the background one of archive-push or archive-get. It has the same
// command line, so that what the operator configured is parsed once and by one program.
const asyncChild = "HOLDFAST_ARCHIVE_ASYNC"

// What a background process does that finds another one at work.
const (
	childWaits  = "wait"  // the foreground waits for what this one was started for
	childLeaves = "leave" // it only reads ahead
)

// archiveAsync does archive-push or archive-get through the spool when the configuration asks for it; done: there is
// nothing left to do. path is the file to push or where the file goes, absolute.
func (r *backrestRun) archiveAsync(ctx context.Context, path string) (done bool, err error) {
	if !r.c.Bool("archive-async", 0) {
		return false, nil
	}
	dataDir := r.dataDir()
	if dataDir == "" {
		return false, coded(codeRequired, fmt.Sprintf("command %s with archive-async requires option: pg1-path\nHINT: does this stanza exist?", r.c.Command))
	}
	spool := r.spool()
	if r.c.Command.String() == "archive-push" {
		name, walDir := filepath.Base(path), filepath.Dir(path)
		if r.env.Getenv(asyncChild) != "" {
			return true, r.pushQueue(ctx, spool, dataDir, walDir)
		}
		if !exists(filepath.Join(walDir, "archive_status", name+".ready")) {
			return false, nil // nobody but PostgreSQL asks the background process: this is somebody with a file of his own
		}
		spool.WALDir = walDir
		if err := asyncError(spool.PushSpooled(ctx, name)); err != nil {
			return true, err
		}
		r.log.logf(logInfo, "pushed WAL file '%s' to the archive asynchronously", name)
		return true, nil
	}
	name := r.c.Params[0]
	if !pg.IsSegmentName(name) { // history files are few, and asked for when they may not exist
		return false, nil
	}
	control, _, err := pg.ReadControlAs(ctx, dataDir, r.version)
	if err != nil {
		return true, err
	}
	wanted, err := engine.NextSegments(name, control.WALSegmentSize, r.c.Int("archive-get-queue-max", 0))
	if err != nil {
		return true, &codeError{codeParam, err}
	}
	spool.SystemID, spool.SegmentSize = control.SystemID, control.WALSegmentSize
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil { // otherwise what is found is trusted
		spool.BootID = string(b)
	}
	if r.env.Getenv(asyncChild) != "" {
		return true, r.getQueue(ctx, spool, wanted)
	}
	err = spool.GetSpooled(ctx, wanted, path, r.c.Bool("archive-missing-retry", 0))
	switch {
	case errors.Is(err, engine.ErrWALMissing):
		return true, &quietExit{1, errors.New("unable to find " + name + " in the archive asynchronously")}
	case ctx.Err() != nil:
		return true, err
	case err != nil:
		// PostgreSQL takes a failure for the end of the archive, so that the background process must not have the last word.
		r.log.logf(logWarn, "%v: %s is looked for without the read-ahead", err, name)
		return false, nil
	}
	r.log.logf(logInfo, "found %s in the archive asynchronously", name)
	return true, nil
}

// spool is the stanza's spool directory.
func (r *backrestRun) spool() engine.Spool {
	return engine.Spool{Dir: r.spoolDir(), Timeout: r.c.Duration("archive-timeout", 0), Start: r.startChild,
		Code: backrestCode, Events: r.log.on}
}

func (r *backrestRun) spoolDir() string {
	return filepath.Join(r.c.String("spool-path", 0), "archive", r.c.String("stanza", 0))
}

// startChild starts the background process in a session of its own: it outlives this one, which PostgreSQL waits for.
func (r *backrestRun) startChild(_ context.Context, first string, ahead bool) error {
	cmd := exec.Command(r.env.Exe, r.env.Args[1:]...)
	cmd.Args[0] = r.env.Args[0]
	cmd.Dir = "/"
	for i, a := range cmd.Args {
		switch {
		case i == 0 || strings.HasPrefix(a, "-"):
		case a == r.c.Params[0] && r.c.Command.String() == "archive-get":
			cmd.Args[i] = first
		case strings.Contains(a, "/"): // it works elsewhere
			cmd.Args[i] = absolute(r.dataDir(), a)
		}
	}
	mode := childWaits
	if ahead {
		mode = childLeaves
	}
	cmd.Env = append(r.env.Environ(), asyncChild+"="+mode, "PGBACKREST_LOG_LEVEL_CONSOLE=off", "PGBACKREST_LOG_LEVEL_STDERR=off")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Release()
}

// pushQueue is the background process of archive-push.
func (r *backrestRun) pushQueue(ctx context.Context, spool engine.Spool, dataDir, walDir string) error {
	compress, level, err := r.compression()
	if err != nil {
		return err
	}
	stanzas, err := r.stanzas()
	if err != nil {
		return err
	}
	o := engine.QueueOptions{WALDir: walDir, ProcessMax: int(r.c.Int("process-max", 0)), QueueMax: r.c.Int("archive-push-queue-max", 0),
		BatchSize: r.c.Int("archive-push-batch-size", 0),
		Begin:     func(files []string) { r.logQueue("push", "to", files) },
		Push: func(ctx context.Context, path string) error {
			var errs []error
			for i, s := range stanzas { // every repository has its turn; PostgreSQL asks again until all have the file
				_, err := s.Push(ctx, engine.PushOptions{Path: path, DataDir: dataDir, Compress: compress, Level: level, HeaderCheck: r.c.Bool("archive-header-check", 0), Again: !r.c.Bool("archive-mode-check", 0)})
				if err != nil {
					errs = append(errs, fmt.Errorf("repo%d: %w", repoKeys(r.c)[i], err))
				}
			}
			if len(errs) > 0 && len(errs) < len(stanzas) && !splitArchive(errs) {
				errs = append(errs, engine.ErrPartly)
			}
			if err := errors.Join(errs...); err != nil {
				r.log.logf(logWarn, "could not push WAL file '%s' to the archive (will be retried): [%d] %v", filepath.Base(path), backrestCode(err), err)
				return err
			}
			r.log.logf(logDetail, "pushed WAL file '%s' to the archive", filepath.Base(path))
			return nil
		}}
	return r.whenFree(ctx, func() error { return stanzas[0].Locked(func() error { return spool.PushQueue(ctx, o) }) })
}

// logQueue says what a background process is about to move.
func (r *backrestRun) logQueue(verb, direction string, files []string) {
	if len(files) == 0 {
		return
	}
	names := files[0]
	if len(files) > 1 {
		names += "..." + files[len(files)-1]
	}
	r.log.logf(logInfo, "%s %d WAL file(s) %s archive: %s", verb, len(files), direction, names)
}

// splitArchive: an error that is about the WAL and not about the repository. Nothing more of such WAL is pushed anywhere.
func splitArchive(errs []error) bool {
	err := errors.Join(errs...)
	return errors.Is(err, engine.ErrArchiveConflict) || errors.Is(err, engine.ErrArchiveMismatch)
}

// getQueue is the background process of archive-get.
func (r *backrestRun) getQueue(ctx context.Context, spool engine.Spool, wanted []string) error {
	stanzas, err := r.stanzas()
	if err != nil {
		return err
	}
	get := func(ctx context.Context, name, dest string) error {
		var errs []error
		for i, s := range stanzas {
			err := s.Get(ctx, engine.GetOptions{Name: name, Dest: dest, DataDir: r.dataDir()})
			if err == nil {
				r.log.logf(logDetail, "found %s in the repo%d archive", name, repoKeys(r.c)[i])
				return nil
			}
			if !errors.Is(err, engine.ErrWALMissing) {
				errs = append(errs, err)
			}
		}
		if err := errors.Join(errs...); err != nil {
			r.log.logf(logWarn, "[%d] %v", backrestCode(err), err)
			return err
		}
		r.log.logf(logDetail, "unable to find %s in the archive", name)
		return fmt.Errorf("get %s: %w", name, engine.ErrWALMissing)
	}
	return r.whenFree(ctx, func() error {
		return stanzas[0].Locked(func() error {
			r.logQueue("get", "from", slices.DeleteFunc(slices.Clone(wanted), func(name string) bool { return exists(filepath.Join(spool.Dir, "in", name)) }))
			return spool.GetQueue(ctx, wanted, int(r.c.Int("process-max", 0)), get)
		})
	})
}

// whenFree does the work of a background process as soon as no other one is at it. The other one may have passed the file
// that this one was started for, and the foreground would wait for it in vain; so this one waits as long as that does.
func (r *backrestRun) whenFree(ctx context.Context, work func() error) error {
	end := r.env.Now().Add(r.c.Duration("archive-timeout", 0))
	for {
		err := work()
		if !errors.Is(err, repo.ErrLocked) {
			return err
		}
		if r.env.Getenv(asyncChild) == childLeaves {
			return nil
		}
		if r.env.Now().After(end) {
			return nil // that one is at work all the same
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stanzas opens the stanza on every repository of the command.
func (r *backrestRun) stanzas() ([]*engine.Stanza, error) {
	var list []*engine.Stanza
	for _, key := range repoKeys(r.c) {
		s, err := r.stanza(r.c.String("stanza", 0), key)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

// asyncError gives what a background process left in the spool its exit code back.
func asyncError(err error) error {
	var left *engine.SpoolError
	if errors.As(err, &left) {
		return &codeError{left.Code, err}
	}
	return err
}
