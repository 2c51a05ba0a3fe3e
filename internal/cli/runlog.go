package cli

import (
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
)

// runLog appends lines to alation_backup.log, or a log beside PostgreSQL's. A log that can't be written never stops a backup: the first failure is said
// on standard error.
type runLog struct {
	env   *Env
	path  string
	owner *durable.Owner

	mu     sync.Mutex
	failed bool
}

func newRunLog(env *Env, dir string, owner *durable.Owner) *runLog {
	return &runLog{env: env, path: filepath.Join(dir, "alation_backup.log"), owner: owner}
}

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
	err := l.append(fmt.Sprintf("%s %s %s\n", l.env.Now().UTC().Format("2006-01-02T15:04:05.000Z"), l.env.ExecID, text))
	if err != nil {
		l.failed = true
		fmt.Fprintf(l.env.Stderr, "warning: the log %s can't be written: %v\n", l.path, err)
	}
}

// ended writes how a verb ended.
func (l *runLog) ended(verb string, err error) {
	if err != nil {
		l.line(verb + ": ended with an error: " + err.Error())
		return
	}
	l.line(verb + ": ended well")
}

// append opens and closes each time: a restore may move the directory in between.
func (l *runLog) append(text string) error {
	// The directory is the application's, which must not turn root's writing and chown to a file of its choice.
	const flags = os.O_APPEND | os.O_CREATE | os.O_WRONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
	f, err := os.OpenFile(l.path, flags, 0o640)
	if os.IsNotExist(err) {
		if err = durable.MkdirAllOwned(filepath.Dir(l.path), 0o755, l.owner); err == nil {
			f, err = os.OpenFile(l.path, flags, 0o640)
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
	if _, err := f.WriteString(text); err != nil {
		return fmt.Errorf("%w (and %v)", err, f.Close())
	}
	return f.Close()
}

// rotate begins a new log: what there is gets the day before now in its name, and of such files the newest keep stay. It
// returns the name; empty: there was nothing to rotate. Writers open the log for each line and need not be told.
func (l *runLog) rotate(keep int) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	info, err := os.Lstat(l.path)
	rotated := ""
	if err == nil && info.Mode().IsRegular() && info.Size() > 0 {
		day := l.path + "." + l.env.Now().UTC().Add(-time.Second).Format("2006-01-02")
		rotated = day
		for n := 2; ; n++ { // another process may rotate at the same moment: its log is not replaced
			if err = renameNew(l.path, rotated); !errors.Is(err, fs.ErrExist) {
				break
			}
			rotated = fmt.Sprintf("%s.%d", day, n)
		}
	}
	if err != nil && !os.IsNotExist(err) {
		return "", fmt.Errorf("rotate the log: %w", err)
	}
	old, err := filepath.Glob(globQuote.Replace(l.path) + ".[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*")
	if err != nil {
		return rotated, fmt.Errorf("rotate the log: %w", err)
	}
	slices.Sort(old) // by day; ten of one day do not matter
	for len(old) > keep {
		if err := os.Remove(old[0]); err != nil {
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

// globQuote takes the meaning from what filepath.Match would take for more than itself.
var globQuote = strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`)
