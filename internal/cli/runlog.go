package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"holdfast/internal/durable"
)

// runLog appends lines to alation_backup.log. A log that can't be written never stops a backup: the first failure is said
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
