package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/action"
	"holdfast/internal/durable"
	"holdfast/internal/runlog"
)

// runLog appends lines to alation_backup.log, or a log beside PostgreSQL's, and the same as JSON to a file beside it. A log that can't be
// written never stops a backup: the first failure is said on standard error.
type runLog struct {
	env   *Env
	path  string
	owner *durable.Owner

	mu     sync.Mutex
	failed bool
}

func newRunLog(env *Env, dir string, owner *durable.Owner) *runLog {
	return &runLog{env: env, path: logPath(dir), owner: owner}
}

// logPath is the log of runs in a directory of logs.
func logPath(dir string) string { return filepath.Join(dir, "alation_backup.log") }

// jsonPath is the file with the same entries for programs that collect logs.
func jsonPath(log string) string { return strings.TrimSuffix(log, ".log") + ".jsonl" }

// newPGLogs are the logs beside the clusters' own, under var/lib/pgsql/<version>: what is done to PostgreSQL, for those who
// look there.
func newPGLogs(env *Env, clusters []action.Cluster, owner *durable.Owner) (logs []*runLog) {
	for _, c := range clusters {
		path := filepath.Join(filepath.Dir(c.LogFile), "backup.log")
		if !slices.ContainsFunc(logs, func(l *runLog) bool { return l.path == path }) {
			logs = append(logs, &runLog{env: env, path: path, owner: owner})
		}
	}
	return logs
}

// pgVerb reports whether a step with this verb is done to PostgreSQL, and not to the whole application.
func pgVerb(verb string) bool {
	return slices.Contains([]string{"backup", "expire", "stanza-create", "stanza-upgrade", "stanza-delete"}, verb)
}

// line writes one line with time and run.
func (l *runLog) line(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed {
		return
	}
	e := runlog.New(l.env.Now(), l.env.ExecID, text)
	path, err := l.path, l.append(l.path, []byte(e.Line()))
	if err == nil {
		path = jsonPath(l.path)
		err = l.append(path, e.JSON())
	}
	if err != nil {
		l.failed = true
		fmt.Fprintf(l.env.Stderr, "warning: the log %s can't be written: %v\n", path, err)
	}
}

// began writes that a verb begins.
func (l *runLog) began(verb string) { l.line(runlog.Began(verb)) }

// ended writes how a verb ended.
func (l *runLog) ended(verb string, err error) { l.endedWith(verb, err, 0, "") }

// endedWith is ended for a verb that made a set (empty: none) and gave warnings.
func (l *runLog) endedWith(verb string, err error, warned int, set string) {
	l.line(runlog.Ended(verb, err, errors.Is(err, context.Canceled), warned, set))
}

// append opens and closes each time: a restore may move the directory in between.
func (l *runLog) append(path string, text []byte) error {
	// The directory is the application's, which must not turn root's writing and chown to a file of its choice.
	const flags = os.O_APPEND | os.O_CREATE | os.O_WRONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
	f, err := os.OpenFile(path, flags, 0o640)
	if os.IsNotExist(err) {
		if err = durable.MkdirAllOwned(filepath.Dir(path), 0o755, l.owner); err == nil {
			f, err = os.OpenFile(path, flags, 0o640)
		}
	}
	if err != nil {
		return err
	}
	if l.owner != nil && os.Geteuid() == 0 {
		if err := f.Chown(l.owner.UID, l.owner.GID); err != nil {
			return fmt.Errorf("%w (and %v)", err, f.Close())
		}
	}
	if _, err := f.Write(text); err != nil {
		return fmt.Errorf("%w (and %v)", err, f.Close())
	}
	return f.Close()
}

// rotate begins new files: what there is gets the day before now in its name, and of such files the newest keep stay. It
// returns the name of the log's; empty: there was nothing to rotate. Writers open the files for each line and need not be told.
func (l *runLog) rotate(keep int) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	rotated, err1 := l.rotateOne(l.path, keep)
	_, err2 := l.rotateOne(jsonPath(l.path), keep)
	return rotated, errors.Join(err1, err2)
}

func (l *runLog) rotateOne(path string, keep int) (string, error) {
	info, err := os.Lstat(path)
	rotated := ""
	if err == nil && info.Mode().IsRegular() && info.Size() > 0 {
		day := path + "." + l.env.Now().UTC().Add(-time.Second).Format("2006-01-02")
		rotated = day
		for n := 2; ; n++ { // another process may rotate at the same moment, and the one of that name be compressed: no log is replaced
			if exists(rotated+".gz") || exists(rotated+".bz2") {
				err = fs.ErrExist
			} else {
				err = renameNew(path, rotated)
			}
			if !errors.Is(err, fs.ErrExist) {
				break
			}
			rotated = fmt.Sprintf("%s.%d", day, n)
		}
	}
	if err != nil && !os.IsNotExist(err) {
		return "", fmt.Errorf("rotate the log: %w", err)
	}
	old, err := runlog.RotatedOf(path)
	if err != nil {
		return rotated, fmt.Errorf("rotate the log: %w", err)
	}
	for len(old) > keep {
		if err := os.Remove(old[0].Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return rotated, fmt.Errorf("remove an old log: %w", err)
		}
		old = old[1:]
	}
	return rotated, nil
}

// renameNew renames a file to a name that is free; fs.ErrExist where it is not. A file system that can't do that at once is looked at first.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if exists(to) {
		return fs.ErrExist
	}
	return os.Rename(from, to)
}
