package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/durable"
)

// Default modes of what Posix makes; pgBackRest's own (design/pgbackrest-format.md, file names and modes).
const (
	defaultFileMode fs.FileMode = 0o640
	defaultDirMode  fs.FileMode = 0o750
)

// posixConnections is how many calls at once are useful on a local file system: enough to keep a disk's queue filled.
const posixConnections = 16

// raceTries is how often Create makes its directory again when another process keeps removing it while it is empty.
const raceTries = 16

// PosixOptions says what new files and directories look like.
type PosixOptions struct {
	FileMode fs.FileMode    // 0: 0640. Set regardless of the umask.
	DirMode  fs.FileMode    // 0: 0750. Set regardless of the umask.
	Owner    *durable.Owner // nil: the process's own; others need root. An empty root directory becomes theirs, too
	// Mount keeps to what file systems of other machines can do (CIFS; NFS whose server says no): no links of either kind,
	// no sync of directories and none of the whole file system (Deferred is ignored), and it is no error that the mount
	// decides on modes and owners itself. What Commit acknowledges is then as durable as the server's answer to fsync.
	Mount bool
}

// Posix keeps objects as files below one directory. It never leaves that directory: symbolic links that lead out of it
// are errors for every call (os.Root). Links inside that stay inside are followed for reading and for directories; a link
// under the name of an object is replaced, not followed.
//
// A new object is written to "<name>.<random>.pgbackrest.tmp" next to it, then fsync, rename, fsync of the directory.
// A Deferred one is only renamed; Sync then calls syncfs once for each file system that Deferred objects went to. Where
// the kernel does not report write errors from syncfs (before Linux 5.8), Deferred is ignored.
//
// Directories are not cached: every call walks down from the root again, so that a directory that another process removed
// or moved is noticed.
type Posix struct {
	path     string
	o        PosixOptions
	deferred bool // syncfs can be trusted

	// mu is held for writing while directories are made, and for reading while one is opened to write in it: what a
	// writer finds has then been synced, or is in unsynced.
	mu       sync.RWMutex
	root     *os.Root            // nil until first needed
	unsynced map[string]uint64   // directories whose entry in the parent is not yet durable, with the moment they were made
	made     uint64              // counts directories made
	devices  map[uint64]*os.File // one open directory per file system that Sync has to reach, kept to learn of all errors
	syncErr  error               // first error of Sync; stays

	adopted  sync.Once // see adopt
	adoptErr error
}

// NewPosix returns the storage in the directory root. It does not touch the disk: a root that is missing is an empty
// storage until something is created in it.
func NewPosix(root string, o PosixOptions) (*Posix, error) {
	if root == "" {
		return nil, errors.New("posix storage: no directory given")
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("posix storage %s: %w", root, err)
	}
	if o.FileMode == 0 {
		o.FileMode = defaultFileMode
	}
	if o.DirMode == 0 {
		o.DirMode = defaultDirMode
	}
	return &Posix{
		path: abs, o: o, deferred: !o.Mount && durable.ReliableSyncFS(),
		unsynced: map[string]uint64{}, devices: map[uint64]*os.File{},
	}, nil
}

// Root returns the absolute path of the directory that holds the objects.
func (p *Posix) Root() string { return p.path }

// Close gives back the open directories. It is needed only by programs that open many storages; nothing is lost without.
// No call may be in flight, none may follow.
func (p *Posix) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for dev, f := range p.devices {
		f.Close() // opened for reading: nothing to lose
		delete(p.devices, dev)
	}
	if p.root == nil {
		return nil
	}
	return p.root.Close()
}

// Abilities says that sweeping is offered, and links unless it is a Mount.
func (p *Posix) Abilities() Abilities {
	return Abilities{Connections: posixConnections, Links: !p.o.Mount, Sweeps: true}
}

// dirOptions are for the directories that are made.
func (p *Posix) dirOptions() durable.Options {
	return durable.Options{Mode: p.o.DirMode, Owner: p.o.Owner, Mount: p.o.Mount}
}

// fail describes an error with the full path and without the inner one.
func (p *Posix) fail(op, name string, err error) error {
	var inner *fs.PathError
	if errors.As(err, &inner) {
		err = inner.Err
	}
	if errors.Is(err, unix.ENOTDIR) { // an object stands where a directory would: nothing can be below it
		err = fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	return &fs.PathError{Op: op, Path: filepath.Join(p.path, filepath.FromSlash(name)), Err: err}
}

// open returns the root, made first if make is true.
func (p *Posix) open(make bool) (*os.Root, error) {
	p.mu.RLock()
	root := p.root
	p.mu.RUnlock()
	if root != nil {
		return root, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.root != nil {
		return p.root, nil
	}
	root, err := os.OpenRoot(p.path)
	if make && errors.Is(err, fs.ErrNotExist) {
		if err := durable.MkdirAllWith(p.path, p.dirOptions()); err != nil {
			return nil, err
		}
		root, err = os.OpenRoot(p.path)
	}
	if err != nil {
		return nil, err
	}
	p.root = root
	return root, nil
}

// openDir opens one directory below the root ("" = root itself), links that stay inside followed.
func (p *Posix) openDir(root *os.Root, dir string) (*os.File, error) {
	if dir == "" {
		dir = "."
	}
	return root.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
}

// Open implements Storage.
func (p *Posix) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := check(ctx, name); err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, p.fail("open", name, errNegativeOffset)
	}
	root, err := p.open(false)
	if err != nil {
		return nil, p.fail("open", name, err)
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not make us wait for its writer
	if err != nil {
		return nil, p.fail("open", name, err)
	}
	r := &posixReader{p: p, ctx: ctx, name: name, f: f}
	if err := r.seek(offset, length); err != nil {
		f.Close() // opened for reading: nothing to lose
		return nil, p.fail("open", name, err)
	}
	return r, nil
}

// posixReader reads one range of one file.
type posixReader struct {
	p    *Posix
	ctx  context.Context
	name string
	f    *os.File
	left int64 // bytes still to come
	eof  error // what Read returns when left is 0: io.EOF, or io.ErrUnexpectedEOF for an offset after the end
}

// seek checks that the file is an object and goes to the offset.
func (r *posixReader) seek(offset, length int64) error {
	fi, err := r.f.Stat()
	if err != nil {
		return err
	}
	if fi.IsDir() {
		return fs.ErrNotExist
	}
	if !fi.Mode().IsRegular() {
		return errNotRegular
	}
	r.left, r.eof = length, io.EOF
	if length < 0 {
		r.left = max(fi.Size()-offset, 0)
	}
	if offset > fi.Size() {
		r.left, r.eof = 0, io.ErrUnexpectedEOF
	}
	if offset > 0 {
		_, err = r.f.Seek(offset, io.SeekStart)
	}
	return err
}

// Read implements io.Reader.
func (r *posixReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	if r.left == 0 {
		return 0, r.eof
	}
	n, err := r.f.Read(b[:min(int64(len(b)), r.left)])
	r.left -= int64(n)
	switch {
	case err == io.EOF:
		return n, io.ErrUnexpectedEOF
	case err != nil:
		return n, r.p.fail("read", r.name, err)
	}
	return n, nil
}

// Close implements io.Closer.
func (r *posixReader) Close() error { return r.f.Close() }

// Create implements Storage.
func (p *Posix) Create(ctx context.Context, name string, opts CreateOptions) (Writer, error) {
	if err := check(ctx, name); err != nil {
		return nil, err
	}
	dir, base := split(name)
	w := &posixWriter{p: p, dir: dir, name: name, deferred: opts.Deferred && p.deferred}
	err := p.inDir(dir, w.deferred, func(d *os.File) error {
		temp := fmt.Sprintf("%s.%016x%s", durable.TempStem(base), rand.Uint64(), tempSuffix)
		f, err := durable.CreateAt(d, base, durable.Options{Mode: p.o.FileMode, Owner: p.o.Owner, Temp: temp, Mount: p.o.Mount})
		w.f = f
		return err
	})
	if err != nil {
		return nil, p.fail("create", name, err)
	}
	return w, nil
}

// adopt gives an empty root, which somebody made for us, to Owner, once: it is that user who has to open it later.
func (p *Posix) adopt(root *os.Root) error {
	if p.o.Owner == nil || p.o.Mount { // a mount may know no owners
		return nil
	}
	p.adopted.Do(func() {
		d, err := p.openDir(root, "")
		if err != nil {
			p.adoptErr = err
			return
		}
		defer d.Close() // opened for reading: nothing to lose
		if _, err := d.Readdirnames(1); err == io.EOF {
			p.adoptErr = d.Chown(p.o.Owner.UID, p.o.Owner.GID)
		} else {
			p.adoptErr = err
		}
	})
	return p.adoptErr
}

// inDir calls do with an open directory, which do takes over. The directory is made as needed, again if it vanishes
// before do could put something into it.
func (p *Posix) inDir(dir string, deferred bool, do func(*os.File) error) error {
	root, err := p.open(true)
	if err != nil {
		return err
	}
	if err := p.adopt(root); err != nil {
		return err
	}
	for try := 0; ; try++ {
		var d *os.File
		p.mu.RLock()
		d, err = p.openDir(root, dir)
		p.mu.RUnlock()
		if err == nil && deferred {
			if err = p.reach(d); err != nil {
				d.Close() // opened for reading: nothing to lose
				return err
			}
		}
		if err == nil {
			err = do(d)
		}
		if err == nil || !errors.Is(err, fs.ErrNotExist) || try == raceTries {
			return err
		}
		if err := p.makeDirs(root, dir, deferred); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
}

// makeDirs makes dir and its missing parents. Unless deferred, what it makes is durable when it returns.
func (p *Posix) makeDirs(root *os.Root, dir string, deferred bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at := range prefixes(dir) {
		parent, base := split(at)
		d, err := p.openDir(root, parent)
		if err != nil {
			return err
		}
		made, err := durable.MkdirAt(d, base, p.dirOptions())
		if made && !deferred && err == nil && !p.o.Mount {
			err = d.Sync()
		}
		if made && deferred {
			p.made++
			p.unsynced[at] = p.made
		}
		d.Close() // opened for reading: nothing to lose
		if err != nil {
			return err
		}
	}
	return nil
}

// syncParents makes the way down to dir durable where Deferred writers of this value have made it.
func (p *Posix) syncParents(dir string) error {
	p.mu.RLock()
	var pending []string
	for at := range prefixes(dir) {
		if _, ok := p.unsynced[at]; ok {
			pending = append(pending, at)
		}
	}
	p.mu.RUnlock()
	for _, at := range pending {
		p.mu.RLock()
		gen := p.unsynced[at]
		p.mu.RUnlock()
		parent, _ := split(at)
		if err := p.syncDir(parent); err != nil {
			return err
		}
		p.mu.Lock()
		if p.unsynced[at] == gen {
			delete(p.unsynced, at)
		}
		p.mu.Unlock()
	}
	return nil
}

// syncDir makes the entries of one directory durable, where that can be asked for.
func (p *Posix) syncDir(dir string) error {
	if p.o.Mount {
		return nil
	}
	root, err := p.open(false)
	if err != nil {
		return err
	}
	d, err := p.openDir(root, dir)
	if err != nil {
		return err
	}
	defer d.Close() // opened for reading: nothing to lose
	return d.Sync()
}

// reach notes the file system of an open directory for Sync: a repository may be spread over several.
func (p *Posix) reach(d *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return err
	}
	p.mu.RLock()
	_, known := p.devices[st.Dev]
	p.mu.RUnlock()
	if known {
		return nil
	}
	fd, err := unix.FcntlInt(d.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), d.Name())
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.devices[st.Dev]; known {
		return f.Close()
	}
	p.devices[st.Dev] = f
	return nil
}

// posixWriter writes one new file.
type posixWriter struct {
	p        *Posix
	f        *durable.File
	dir      string
	name     string
	deferred bool
}

// Write implements io.Writer.
func (w *posixWriter) Write(b []byte) (int, error) { return w.f.Write(b) }

// Abort implements Writer.
func (w *posixWriter) Abort() error { return w.f.Abort() }

// Commit implements Writer. The context is looked at before the slow step (fsync) and again before the one that readers
// see (rename).
func (w *posixWriter) Commit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.deferred {
		return w.f.CommitNoSync()
	}
	if w.f.Committed() {
		return nil
	}
	if err := w.f.Flush(); err != nil {
		return err
	}
	if err := w.p.syncParents(w.dir); err != nil {
		return w.p.fail("sync directories of", w.name, err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return w.f.Commit()
}

// Stat implements Storage.
func (p *Posix) Stat(ctx context.Context, name string) (Info, error) {
	if err := check(ctx, name); err != nil {
		return Info{}, err
	}
	root, err := p.open(false)
	if err != nil {
		return Info{}, p.fail("stat", name, err)
	}
	fi, err := root.Stat(name)
	if err == nil && fi.IsDir() {
		err = fs.ErrNotExist
	}
	if err == nil && !fi.Mode().IsRegular() {
		err = errNotRegular
	}
	if err != nil {
		return Info{}, p.fail("stat", name, err)
	}
	return Info{Name: name, Size: fi.Size(), ModTime: fi.ModTime()}, nil
}

// List implements Storage. Memory is bounded by one directory's entries per level.
func (p *Posix) List(ctx context.Context, dir string, opts ListOptions) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := checkDir(dir); err != nil {
			yield(Info{}, err)
			return
		}
		skip := 0 // bytes of a name before what Prefix is about
		if dir != "" {
			skip = len(dir) + 1
		}
		p.walk(ctx, dir, skip, opts, yield)
	}
}

// walk yields one directory and, if recursive, those below, as far as their names fit the prefix; false ends the walk.
func (p *Posix) walk(ctx context.Context, dir string, skip int, opts ListOptions, yield func(Info, error) bool) bool {
	entries, err := p.readDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		yield(Info{}, err)
		return false
	}
	entries = slices.DeleteFunc(entries, func(e Info) bool {
		rest := e.Name[skip:]
		below := opts.Recursive && e.Dir && strings.HasPrefix(opts.Prefix, rest+"/")
		return !below && !strings.HasPrefix(rest, opts.Prefix)
	})
	sortInfos(entries, opts.Recursive)
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			yield(Info{}, err)
			return false
		}
		if IsTemp(e.Name) && !e.Dir {
			continue
		}
		more := true
		if opts.Recursive && e.Dir {
			more = p.walk(ctx, e.Name, skip, opts, yield)
		} else {
			more = yield(e, nil)
		}
		if !more {
			return false
		}
	}
	return true
}

// readDir returns the regular files, links to such inside the root, and directories of one directory, unsorted,
// temporary files included.
func (p *Posix) readDir(dir string) ([]Info, error) {
	root, err := p.open(false)
	if err != nil {
		return nil, p.fail("list", dir, err)
	}
	d, err := p.openDir(root, dir)
	if err != nil {
		return nil, p.fail("list", dir, err)
	}
	defer d.Close() // opened for reading: nothing to lose
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, p.fail("list", dir, err)
	}
	infos := make([]Info, 0, len(names))
	for _, base := range names {
		if p.o.Mount && removedOpen(base) {
			continue
		}
		var st unix.Stat_t
		err := unix.Fstatat(int(d.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == unix.ENOENT {
			continue // removed while we looked
		}
		if err != nil {
			return nil, p.fail("list", path.Join(dir, base), err)
		}
		in := Info{Name: path.Join(dir, base), Size: st.Size, ModTime: time.Unix(st.Mtim.Unix())}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
		case unix.S_IFDIR:
			in.Dir, in.Size = true, 0
		case unix.S_IFLNK:
			fi, err := root.Stat(in.Name)
			if err != nil || !fi.Mode().IsRegular() {
				continue // dangling, to a directory or out of the storage: not an object (see Storage.List)
			}
			in.Size, in.ModTime = fi.Size(), fi.ModTime()
		default:
			continue // a socket, pipe or device is not an object
		}
		infos = append(infos, in)
	}
	return infos, nil
}

// Sync implements Storage.
func (p *Posix) Sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p.mu.RLock()
	devices := make([]*os.File, 0, len(p.devices))
	for _, f := range p.devices {
		devices = append(devices, f)
	}
	upTo, err := p.made, p.syncErr
	p.mu.RUnlock()
	if err != nil {
		return err
	}
	for _, f := range devices {
		if err = durable.SyncFSFile(f); err != nil {
			err = fmt.Errorf("%w: objects written without waiting for the disk may be lost", err)
			break
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.syncErr = err
		return err
	}
	for dir, gen := range p.unsynced {
		if gen <= upTo {
			delete(p.unsynced, dir)
		}
	}
	return p.syncErr
}

// check is what every call with a name begins with.
func check(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return CheckName(name)
}

// split returns the directory ("" = root) and the last element of a name.
func split(name string) (dir, base string) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return "", name
	}
	return name[:i], name[i+1:]
}

// prefixes yields the directories on the way down to dir, dir included: for "a/b" "a", "a/b".
func prefixes(dir string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := 0; i < len(dir); i++ {
			if dir[i] == '/' && !yield(dir[:i]) {
				return
			}
		}
		if dir != "" {
			yield(dir)
		}
	}
}
