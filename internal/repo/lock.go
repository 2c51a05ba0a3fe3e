package repo

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Locks and stop files (format page, section 17). A lock is flock(2) on a file in the lock path of this host, so it guards
// against other processes on the host only, of ours and of pgbackrest alike:
//
//	<stanza>-<type>.lock         what pgbackrest up to 2.52 locks
//	<stanza>-<type>-<key>.lock   what pgbackrest from 2.53 on locks, one per repository key
//	<stanza>.stop, all.stop      an empty file: do not start anything that writes
//
// We take both lock files, so that every version keeps out; that also keeps two of our own apart that would use different
// repositories of one stanza.

// The lock types.
const (
	LockArchive = "archive"
	LockBackup  = "backup"
	LockRestore = "restore"
)

// ErrLocked says that another process holds the lock; the error that wraps it is a *LockedError.
var ErrLocked = errors.New("locked by another process")

// LockedError names the lock file and who holds it.
type LockedError struct {
	Path string // of the lock file
	PID  int    // of the holder, as it wrote it into the file; 0 = it did not (yet)
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("lock %s: %v (it has not written its process id): is a backup, restore or expire running?", e.Path, ErrLocked)
	}
	return fmt.Sprintf("lock %s: %v, process id %d: wait for it to end, or see what it does with ps -fp %d", e.Path, ErrLocked, e.PID, e.PID)
}

// Unwrap makes errors.Is(err, ErrLocked) hold.
func (e *LockedError) Unwrap() error { return ErrLocked }

// LockContent is what a lock file says of its holder, in one line of JSON.
type LockContent struct {
	ExecID       string `json:"execId,omitempty"`  // <pid>-<8 hex digits>
	PercentDone  *int   `json:"pctCplt,omitempty"` // 0 to 10000
	PID          int    `json:"pid,omitempty"`     //
	Size         *int64 `json:"sz,omitempty"`      // bytes in total
	SizeComplete *int64 `json:"szCplt,omitempty"`  // bytes done
}

// Encode renders the content for AcquireLock and Update.
func (c LockContent) Encode() ([]byte, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode lock content: %w", err)
	}
	return append(b, '\n'), nil
}

// maxLockContent bounds what is read of a lock file.
const maxLockContent = 4096

// ParseLockContent reads the first line of a lock file.
func ParseLockContent(b []byte) (LockContent, error) {
	var c LockContent
	line, _, _ := strings.Cut(string(b), "\n")
	if err := json.Unmarshal([]byte(line), &c); err != nil {
		return LockContent{}, fmt.Errorf("parse lock content: %w", err)
	}
	return c, nil
}

// LockPaths gives both lock files of a stanza, in the order in which they are taken.
func LockPaths(dir, stanza, typ string, repoKey int) []string {
	return []string{
		filepath.Join(dir, fmt.Sprintf("%s-%s.lock", stanza, typ)),
		filepath.Join(dir, fmt.Sprintf("%s-%s-%d.lock", stanza, typ, repoKey)),
	}
}

// checkLockName keeps a stanza from naming a file outside the lock path.
func checkLockName(stanza string) error {
	if stanza == "" || stanza == "." || stanza == ".." || strings.ContainsAny(stanza, "/\x00") {
		return fmt.Errorf("stanza name %q cannot name a lock file", stanza)
	}
	return nil
}

// Lock is a held lock. It is held until Release or the end of the process; children do not inherit it.
type Lock struct {
	files []*os.File
}

// AcquireLock takes the locks of typ (LockArchive, LockBackup or LockRestore) for one repository of a stanza, without
// waiting, and writes content into both files. dir is made (mode 0770) when missing. When another process holds one, the
// error is a *LockedError, and nothing is held.
func AcquireLock(dir, stanza, typ string, repoKey int, content []byte) (*Lock, error) {
	if err := checkLockName(stanza); err != nil {
		return nil, err
	}
	if typ != LockArchive && typ != LockBackup && typ != LockRestore {
		return nil, fmt.Errorf("unknown lock type %q", typ)
	}
	if err := os.MkdirAll(dir, 0o770); err != nil {
		return nil, fmt.Errorf("make lock path: %w", err)
	}
	l := new(Lock)
	for _, path := range LockPaths(dir, stanza, typ, repoKey) {
		f, err := lockFile(path)
		if err != nil {
			return nil, errors.Join(err, l.Release())
		}
		l.files = append(l.files, f)
	}
	if err := l.Update(content); err != nil {
		return nil, errors.Join(err, l.Release())
	}
	return l, nil
}

// lockFile opens and locks path. A holder removes its file before it lets go, so the file that was opened may be gone from
// the directory when the lock is got; then another process can lock a new file of the name, and we try that one.
func lockFile(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o640)
		if err != nil {
			return nil, fmt.Errorf("open lock file: %w", err)
		}
		held, err := tryFlock(f, syscall.LOCK_EX)
		if err == nil && !held {
			err = &LockedError{Path: path, PID: holder(f)}
		}
		if err != nil {
			f.Close() // nothing was written
			return nil, err
		}
		same, err := stillNamed(f, path)
		if err == nil && same {
			if err = handOver(f); err == nil {
				return f, nil
			}
		}
		f.Close() // nothing was written
		if err != nil {
			return nil, err
		}
	}
}

// handOver gives a lock file that root made to the owner of the lock path: should we be killed it stays, and the server's
// user, whom pgbackrest runs as, must still be able to open it. Another link to the file could be anything: it is left alone.
func handOver(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var file, dir syscall.Stat_t
	if err := errors.Join(syscall.Fstat(int(f.Fd()), &file), syscall.Stat(filepath.Dir(f.Name()), &dir)); err != nil {
		return fmt.Errorf("look at lock file: %w", err)
	}
	if file.Uid != 0 || file.Nlink != 1 || dir.Uid == 0 {
		return nil
	}
	if err := f.Chown(int(dir.Uid), int(dir.Gid)); err != nil {
		return fmt.Errorf("lock file: %w", err)
	}
	return nil
}

// tryFlock locks f and reports false when another process has it.
func tryFlock(f *os.File, how int) (bool, error) {
	for {
		switch err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB); err {
		case nil:
			return true, nil
		case syscall.EWOULDBLOCK:
			return false, nil
		case syscall.EINTR:
		default:
			return false, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

func stillNamed(f *os.File, path string) (bool, error) {
	opened, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("look at lock file: %w", err)
	}
	named, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at lock file: %w", err)
	}
	return os.SameFile(opened, named), nil
}

// holder reads the process id from a lock file; 0 when it says none, because it only serves the error message.
func holder(f *os.File) int {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxLockContent))
	if err != nil {
		return 0
	}
	c, err := ParseLockContent(b)
	if err != nil {
		return 0
	}
	return c.PID
}

// Update replaces the content of the lock files, to publish progress. It is not synced to disk: after a crash the content
// means nothing. A reader at the same moment may see it half written.
func (l *Lock) Update(content []byte) error {
	for _, f := range l.files {
		if err := f.Truncate(int64(len(content))); err != nil {
			return fmt.Errorf("write lock file: %w", err)
		}
		if _, err := f.WriteAt(content, 0); err != nil {
			return fmt.Errorf("write lock file: %w", err)
		}
	}
	return nil
}

// Release removes the lock files and lets go. A second call does nothing. The lock is let go even when it returns an error
// (a file that could not be removed is stale and harmless).
func (l *Lock) Release() error {
	var errs []error
	for i := len(l.files) - 1; i >= 0; i-- {
		f := l.files[i]
		// Someone may have removed the file by hand, and another process locked a new one of its name: that one stays.
		if same, err := stillNamed(f, f.Name()); err != nil {
			errs = append(errs, err)
		} else if same {
			if err := os.Remove(f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove lock file: %w", err))
			}
		}
		if err := f.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close lock file: %w", err))
		}
	}
	l.files = nil
	return errors.Join(errs...)
}

// ReadLock tells whether a process holds a lock of typ for the repository, in either naming scheme, and what it wrote. It
// tests by taking a shared lock for a moment; an AcquireLock in that moment is refused.
func ReadLock(dir, stanza, typ string, repoKey int) (content LockContent, held bool, err error) {
	if err := checkLockName(stanza); err != nil {
		return LockContent{}, false, err
	}
	paths := LockPaths(dir, stanza, typ, repoKey)
	for i := len(paths) - 1; i >= 0; i-- { // the file with the key is the more exact
		content, held, err = readLock(paths[i])
		if err != nil || held {
			return content, held, err
		}
	}
	return LockContent{}, false, nil
}

func readLock(path string) (LockContent, bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return LockContent{}, false, nil
	}
	if err != nil {
		return LockContent{}, false, fmt.Errorf("open lock file: %w", err)
	}
	defer f.Close() // only read; lets go of the shared lock
	free, err := tryFlock(f, syscall.LOCK_SH)
	if err != nil || free {
		return LockContent{}, false, err
	}
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxLockContent))
	if err != nil {
		return LockContent{}, false, fmt.Errorf("read lock file: %w", err)
	}
	// A holder that has not written yet, or is just writing, is a holder all the same.
	c, _ := ParseLockContent(b)
	return c, true, nil
}

// StopPath is the stop file of a stanza, or of all stanzas when stanza is empty.
func StopPath(dir, stanza string) string {
	if stanza == "" {
		stanza = "all"
	}
	return filepath.Join(dir, stanza+".stop")
}

// Stopped tells whether a stop file forbids work on the stanza, and which: its own or that for all. That one cannot be
// looked for is an error, not an absence.
func Stopped(dir, stanza string) (path string, stopped bool, err error) {
	if err := checkLockName(stanza); err != nil {
		return "", false, err
	}
	for _, path := range []string{StopPath(dir, stanza), StopPath(dir, "")} {
		_, err := os.Lstat(path)
		if err == nil {
			return path, true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", false, fmt.Errorf("look for stop file: %w", err)
		}
	}
	return "", false, nil
}
