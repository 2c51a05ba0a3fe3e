// Package durable replaces files so that a power cut, a full disk or a crash leaves the old content or the new one, never
// a part and never neither. It is named for its guarantee: what Commit, WriteFile, Rename or MkdirAll has acknowledged is
// on stable storage.
//
// A replacement goes through five steps, in this order:
//
//	.name.holdfast-tmp-XXXX   create exclusively, in the directory of name (a rename never leaves its file system)
//	write … write             the first error sticks, Commit then fails
//	fsync(file)               a failed fsync is final: the kernel may have dropped the pages it could not write
//	rename(temp, name)        the step that readers see
//	fsync(directory)          makes the rename itself survive
//
// If the last step fails the new content is visible but not acknowledged; the caller sees an error and may repeat.
// A crash in between leaves a temporary file; IsTemp recognises its name.
//
// Modes are set as asked, whatever the umask. A symbolic link under the final name is replaced, not followed.
// The functions take no context: none of them waits for anything but the disk. Callers check theirs between Flush and Commit.
//
// Source of the rules: the Linux manual pages fsync(2), rename(2), syncfs(2), flock(2).
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// TempMark is in the name of every temporary file that this package names itself: ".<name>.holdfast-tmp-<random>".
const TempMark = ".holdfast-tmp-"

// tempBaseMax cuts the readable part of a temporary name, in bytes, so that a name of the longest length that a file
// system takes (255) can still be replaced.
const tempBaseMax = 200

// ErrAborted is returned by Commit after Abort, and by Write after either.
var ErrAborted = errors.New("file is already committed or given up")

// Owner is who a new file or directory belongs to. A nil *Owner leaves it to the process.
type Owner struct{ UID, GID int }

// Options describes a file to be created.
type Options struct {
	Mode  fs.FileMode // permission bits, set regardless of the umask
	Owner *Owner      // nil: the process's own
	Temp  string      // name of the temporary file, in the same directory; "" = chosen here
	// Mount keeps to what file systems of other machines can do (CIFS): directories are not synced, and it is no error
	// that the mount decides on modes and owners itself.
	Mount bool
}

// IsTemp reports whether name (a last path element) is a temporary file of this package.
func IsTemp(name string) bool {
	return strings.HasPrefix(name, ".") && strings.Contains(name, TempMark)
}

// TempStem returns the part of a file's name that a temporary name may repeat without becoming too long.
func TempStem(name string) string {
	return name[:min(len(name), tempBaseMax)]
}

// File receives the new content of one file. Exactly one of Commit, CommitNoSync and Abort takes effect: after a commit,
// Abort does nothing and returns nil, so that "defer f.Abort()" is always right. A File is for one goroutine.
type File struct {
	dir       *os.File // directory of the file; owned
	f         *os.File
	temp      string // last elements, relative to dir
	base      string
	path      string // for messages
	mount     bool   // Options.Mount
	flushed   bool
	committed bool
	ended     bool  // dir and f are closed
	err       error // first error of Write or Flush
}

// Create begins to replace or make the file path, with mode regardless of the umask. The directory must exist.
func Create(path string, mode fs.FileMode) (*File, error) {
	return CreateWith(path, Options{Mode: mode})
}

// CreateOwned is Create for a file that is to belong to owner (nil: the process's own). Other owners need root.
func CreateOwned(path string, mode fs.FileMode, owner *Owner) (*File, error) {
	return CreateWith(path, Options{Mode: mode, Owner: owner})
}

// CreateWith is Create with all options.
func CreateWith(path string, o Options) (*File, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", path, err)
	}
	return CreateAt(dir, filepath.Base(path), o)
}

// CreateAt is Create below an open directory, for callers that confine what they write (os.Root). It takes dir over and
// closes it, also on error. A directory that has been removed meanwhile is fs.ErrNotExist.
func CreateAt(dir *os.File, base string, o Options) (*File, error) {
	d := &File{dir: dir, base: base, temp: o.Temp, path: filepath.Join(dir.Name(), base), mount: o.Mount}
	if err := d.open(o); err != nil {
		dir.Close() // opened for reading: nothing to lose
		return nil, fmt.Errorf("create %s: %w", d.path, err)
	}
	return d, nil
}

// open makes the temporary file and gives it its owner and mode.
func (d *File) open(o Options) error {
	if d.base == "" || d.base == "." || d.base == ".." || strings.ContainsRune(d.base, '/') {
		return fs.ErrInvalid
	}
	for try := 0; ; try++ {
		if o.Temp == "" {
			d.temp = fmt.Sprintf(".%s%s%016x", TempStem(d.base), TempMark, rand.Uint64())
		}
		fd, err := openat(d.dir, d.temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
		if errors.Is(err, unix.EEXIST) && o.Temp == "" && try < 10 {
			continue
		}
		if err != nil {
			return err
		}
		d.f = os.NewFile(uintptr(fd), filepath.Join(d.dir.Name(), d.temp))
		break
	}
	err := own(d.f, o)
	if err != nil {
		d.f.Close() // the error above is the one to report
		unix.Unlinkat(int(d.dir.Fd()), d.temp, 0)
	}
	return err
}

// own sets owner and mode; the owner first, because chown clears set-id bits.
func own(f *os.File, o Options) error {
	refused := func(err error) bool {
		return err != nil && !(o.Mount && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOSYS)))
	}
	if o.Owner != nil {
		if err := f.Chown(o.Owner.UID, o.Owner.GID); refused(err) {
			return err
		}
	}
	if err := f.Chmod(o.Mode); refused(err) {
		return err
	}
	return nil
}

// Write appends to the new content. The first error sticks.
func (d *File) Write(p []byte) (int, error) {
	if d.ended {
		return 0, fmt.Errorf("write %s: %w", d.path, ErrAborted)
	}
	if d.err != nil {
		return 0, d.err
	}
	d.flushed = false
	n, err := d.f.Write(p)
	if err != nil {
		d.err = fmt.Errorf("write %s: %w", d.path, err)
	}
	return n, d.err
}

// Flush brings what has been written to stable storage (fsync) without publishing it. Commit does it as well; calling it
// first lets the caller look at its context once more before the file changes for readers. A failure is final.
func (d *File) Flush() error {
	if d.ended {
		return fmt.Errorf("flush %s: %w", d.path, ErrAborted)
	}
	if d.err != nil || d.flushed {
		return d.err
	}
	if err := d.f.Sync(); err != nil {
		d.err = fmt.Errorf("flush %s: %w", d.path, err)
	}
	d.flushed = d.err == nil
	return d.err
}

// Commit publishes the new content durably. On an error before the rename the old content stays and the temporary file is
// gone. If only the last step (fsync of the directory) fails, readers see the new content, but a power cut may undo it.
// A second Commit after a successful one does nothing.
func (d *File) Commit() error {
	if d.committed {
		return nil
	}
	if err := d.Flush(); err != nil {
		d.Abort() // best effort: a leftover temporary file is recognised by its name
		return err
	}
	return d.publish(true)
}

// CommitNoSync publishes by rename only. Until SyncFS has succeeded a power cut may leave the old content, the new, a part
// of it or an empty file. For many files that are made durable together.
func (d *File) CommitNoSync() error {
	if d.committed {
		return nil
	}
	if d.ended {
		return fmt.Errorf("commit %s: %w", d.path, ErrAborted)
	}
	if d.err != nil {
		d.Abort() // best effort, as in Commit
		return d.err
	}
	return d.publish(false)
}

// ModTime is the time stamp of the unfinished file: the clock of whoever stamps files there, a server's on a mount.
func (d *File) ModTime() (time.Time, error) {
	info, err := d.f.Stat()
	if err != nil {
		return time.Time{}, err
	}
	return info.ModTime(), nil
}

// Committed reports whether a commit has succeeded.
func (d *File) Committed() bool { return d.committed }

// publish closes the file (network file systems report their last write errors there), renames it and ends the File.
func (d *File) publish(sync bool) error {
	err := d.f.Close()
	if err == nil {
		err = unix.Renameat(int(d.dir.Fd()), d.temp, int(d.dir.Fd()), d.base)
	}
	d.ended = true
	if err != nil {
		unix.Unlinkat(int(d.dir.Fd()), d.temp, 0) // best effort: the rename's error is the one to report
		d.dir.Close()
		d.err = fmt.Errorf("commit %s: %w", d.path, err)
		return d.err
	}
	if sync && !d.mount {
		err = d.dir.Sync()
	}
	d.dir.Close() // opened for reading: nothing to lose
	if err != nil {
		d.err = fmt.Errorf("commit %s: its directory did not sync, a power cut may undo the change: %w", d.path, err)
		return d.err
	}
	d.committed = true
	return nil
}

// Abort gives the new content up and removes the temporary file. After a commit, or a second time, it does nothing.
func (d *File) Abort() error {
	if d.ended {
		return nil
	}
	d.ended = true
	d.f.Close() // the content is unwanted, so is its error
	err := unix.Unlinkat(int(d.dir.Fd()), d.temp, 0)
	d.dir.Close() // opened for reading: nothing to lose
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove temporary file of %s: %w", d.path, err)
	}
	return nil
}

// WriteFile replaces or makes the file path with data in one durable step.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	return WriteFileOwned(path, data, mode, nil)
}

// WriteFileOwned is WriteFile for a file that is to belong to owner (nil: the process's own).
func WriteFileOwned(path string, data []byte, mode fs.FileMode, owner *Owner) error {
	f, err := CreateOwned(path, mode, owner)
	if err != nil {
		return err
	}
	defer f.Abort() // after Commit it does nothing
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Commit()
}

// Rename renames a file or directory and makes it durable in both directories. The content itself is not synced.
func Rename(oldPath, newPath string) error {
	if err := os.Rename(oldPath, newPath); err != nil {
		return err
	}
	newDir, oldDir := filepath.Dir(newPath), filepath.Dir(oldPath)
	if err := SyncDir(newDir); err != nil || newDir == oldDir {
		return err
	}
	return SyncDir(oldDir)
}

// SyncDir makes the entries of one directory durable: files created, renamed or removed in it.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer d.Close() // opened for reading: nothing to lose
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// MkdirAll makes a directory and its missing parents, with mode regardless of the umask, durably: the parent of every
// directory made is synced. Directories that exist are left as they are. Something else in the way is an error.
func MkdirAll(path string, mode fs.FileMode) error {
	return MkdirAllOwned(path, mode, nil)
}

// MkdirAllOwned is MkdirAll for directories that are to belong to owner (nil: the process's own).
func MkdirAllOwned(path string, mode fs.FileMode, owner *Owner) error {
	return MkdirAllWith(path, Options{Mode: mode, Owner: owner})
}

// MkdirAllWith is MkdirAll with the options that are for directories too: Mode, Owner and Mount.
func MkdirAllWith(path string, o Options) error {
	path = filepath.Clean(path)
	if fi, err := os.Stat(path); err == nil {
		if !fi.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: path, Err: unix.ENOTDIR}
		}
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := MkdirAllWith(parent, o); err != nil {
			return err
		}
	}
	if err := mkdir(path, o); err != nil || o.Mount {
		return err
	}
	return SyncDir(parent)
}

// mkdir makes one directory. Losing a race against another maker is success.
func mkdir(path string, o Options) error {
	err := os.Mkdir(path, o.Mode)
	if errors.Is(err, fs.ErrExist) {
		if fi, serr := os.Stat(path); serr == nil && fi.IsDir() {
			return nil
		}
	}
	if err != nil {
		return err
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close() // opened for reading: nothing to lose
	return own(d, o)
}

// MkdirAt makes one directory below an open one, with the mode regardless of the umask, and reports whether it was made
// (false: it, or something else of that name, exists). It does not sync. Temp is not used.
func MkdirAt(dir *os.File, base string, o Options) (bool, error) {
	err := unix.Mkdirat(int(dir.Fd()), base, uint32(o.Mode.Perm()))
	if errors.Is(err, unix.EEXIST) {
		return false, nil
	}
	name := filepath.Join(dir.Name(), base)
	if err != nil {
		return false, &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	fd, err := openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return true, &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	d := os.NewFile(uintptr(fd), name)
	defer d.Close() // opened for reading: nothing to lose
	return true, own(d, o)
}

// openat opens relative to dir, never leaks into a child process, and repeats when a signal interrupts it.
func openat(dir *os.File, base string, flags int, perm uint32) (int, error) {
	for {
		fd, err := unix.Openat(int(dir.Fd()), base, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, perm)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
