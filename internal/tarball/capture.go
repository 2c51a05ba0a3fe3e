package tarball

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const maxListed = 1000 // issues kept of one kind; the rest is counted

// Tree is a directory whose contents are captured.
type Tree struct {
	Name string // one path element, stable from run to run: the tree is files/<Name>/ in the tarball
	Path string // directory; relative paths start at CaptureOptions.Root; may be a symbolic link to a directory
}

// Progress is what a pass has done so far.
type Progress struct {
	Final   bool
	Entries int64
	Bytes   int64 // content written
	Path    string
}

// CaptureOptions says what is captured.
type CaptureOptions struct {
	Root     string
	Trees    []Tree
	Exclude  []string // patterns of paths relative to their tree; see path.Match, "**" is any number of elements
	SkipDirs []string // absolute directories that are recorded but never entered
	SpoolDir string   // for the index between the passes: about 500 bytes a file, unlinked from the start
	Progress func(Progress)

	// UserName and GroupName name an owner, "" if it has no name. nil: those of the host.
	UserName, GroupName func(id uint32) string
	Now                 func() time.Time // nil: time.Now. Must be the clock that stamps the files.
}

// Issue is something to tell about one path.
type Issue struct {
	Path   string `json:"path"` // <tree>/<path>
	Reason string `json:"reason"`
}

// CaptureResult is what Final found and wrote.
type CaptureResult struct {
	Start, End  time.Time // of Final: the state in the index is of this interval
	Files       int64     // regular files, each inode once
	Dirs, Links int64     // Links: symbolic and hard
	Specials    int64     // FIFOs
	Bytes       int64     // content of the files in the index
	Rewritten   int64     // files that had changed since First, or were new
	IndexSHA256 string
	// Inconsistent names files that changed during each of three attempts to read them: what the tarball has of them is a
	// mixture. Skipped names what is not captured: sockets, devices, pseudo file systems. Each list stops at 1000;
	// the counts do not.
	Inconsistent                    []Issue
	Skipped                         []Issue
	InconsistentCount, SkippedCount int64
}

// Capture takes the files component in two passes. It is used by one goroutine.
type Capture struct {
	o     CaptureOptions
	x     excludes
	trees []string
	spool *os.File
	done  bool // First ended well
	buf   []byte
	users map[uint32]string
	group map[uint32]string
}

// NewCapture checks the options. The caller closes the Capture.
func NewCapture(o CaptureOptions) (*Capture, error) {
	c := &Capture{o: o, buf: make([]byte, smallFile), users: map[uint32]string{}, group: map[uint32]string{}}
	c.o.Trees = slices.Clone(o.Trees)
	for i, t := range c.o.Trees {
		if err := checkTreeName(t.Name); err != nil {
			return nil, fmt.Errorf("files: %w", err)
		}
		if slices.Contains(c.trees, t.Name) {
			return nil, fmt.Errorf("files: tree %q is given twice", t.Name)
		}
		c.trees = append(c.trees, t.Name)
		if !filepath.IsAbs(t.Path) {
			c.o.Trees[i].Path = filepath.Join(o.Root, t.Path)
		}
	}
	var err error
	if c.x, err = parseExcludes(o.Exclude); err != nil {
		return nil, fmt.Errorf("files: %w", err)
	}
	if o.UserName == nil {
		c.o.UserName = hostUserName
	}
	if o.GroupName == nil {
		c.o.GroupName = hostGroupName
	}
	if o.Now == nil {
		c.o.Now = time.Now
	}
	return c, nil
}

// Close gives up the spooled index. A second call does nothing.
func (c *Capture) Close() error {
	if c.spool == nil {
		return nil
	}
	f := c.spool
	c.spool = nil
	return f.Close()
}

// First writes every file. Files that cannot be read make it fail, with a list of them, after everything else was tried.
// A cancelled context ends it within one read; the tarball is then incomplete.
func (c *Capture) First(ctx context.Context, w *Writer) error {
	if c.spool != nil {
		return errors.New("capture files: the first pass was made already")
	}
	var err error
	if c.spool, err = c.newSpool(); err != nil {
		return err
	}
	out, err := newIndexWriter(c.spool, c.trees)
	if err != nil {
		return fmt.Errorf("spool index of files: %w", err)
	}
	p := &pass{c: c, w: w, out: out, res: &CaptureResult{}}
	if err := p.run(ctx); err != nil {
		return fmt.Errorf("capture files: %w", err)
	}
	if err := out.close(); err != nil {
		return fmt.Errorf("spool index of files: %w", err)
	}
	c.done = true
	return nil
}

// Final writes what changed since First, and then the index. Files that cannot be read make it fail as in First.
func (c *Capture) Final(ctx context.Context, w *Writer) (*CaptureResult, error) {
	if !c.done {
		return nil, errors.New("capture files: the final pass needs a complete first one")
	}
	if _, err := c.spool.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read spooled index of files: %w", err)
	}
	old, err := newIndexReader(c.spool)
	if err != nil {
		return nil, fmt.Errorf("read what was spooled: %w", err)
	}
	spool, err := c.newSpool()
	if err != nil {
		return nil, err
	}
	defer spool.Close() // unlinked: nothing to lose
	out, err := newIndexWriter(spool, c.trees)
	if err != nil {
		return nil, fmt.Errorf("spool index of files: %w", err)
	}
	p := &pass{c: c, w: w, out: out, old: old, final: true, res: &CaptureResult{Start: c.o.Now().UTC()}}
	if err := p.run(ctx); err != nil {
		return nil, fmt.Errorf("capture files: %w", err)
	}
	p.res.End = c.o.Now().UTC()
	if err := out.close(); err != nil {
		return nil, fmt.Errorf("spool index of files: %w", err)
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read spooled index of files: %w", err)
	}
	size, sum := out.sum.sums()
	p.res.IndexSHA256 = sum
	if err := w.addIndex(spool, size, p.res.End); err != nil {
		return nil, err
	}
	return p.res, nil
}

// newSpool returns a file that goes away with its descriptor, so that a killed run leaves nothing behind.
func (c *Capture) newSpool() (*os.File, error) {
	f, err := os.CreateTemp(c.o.SpoolDir, "holdfast-files-*.jsonl")
	if err != nil {
		return nil, fmt.Errorf("spool index of files: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close() // empty: nothing to lose
		return nil, fmt.Errorf("spool index of files: %w", err)
	}
	return f, nil
}

// pass is one walk over all trees.
type pass struct {
	c     *Capture
	w     *Writer
	out   *indexWriter
	old   *indexReader // what the first pass wrote; nil in the first
	final bool
	res   *CaptureResult
	tree  int
	skip  map[fileID]bool
	links map[fileID]linked // per tree: files with several names
	bad   []Issue
	nbad  int64
	prog  Progress
}

type fileID struct{ dev, ino uint64 }

// linked is the first name met of a file with several.
type linked struct {
	path  rawString
	wrote bool // in this pass: links to it must be written again too
}

func (p *pass) run(ctx context.Context) error {
	p.prog.Final = p.final
	p.skip = map[fileID]bool{}
	for _, dir := range p.c.o.SkipDirs {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err == nil { // one that is not there cannot be entered
			p.skip[idOf(&st)] = true
		} else if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			return fmt.Errorf("stat %s, which is to be left out: %w", dir, err)
		}
	}
	for i, t := range p.c.o.Trees {
		p.tree, p.links = i, map[fileID]linked{}
		if err := walk(ctx, t.Name, t.Path, p); err != nil {
			return err
		}
	}
	if p.nbad == 0 {
		return nil
	}
	var b strings.Builder
	for _, i := range p.bad {
		fmt.Fprintf(&b, "\n  %s: %s", i.Path, i.Reason)
	}
	if more := p.nbad - int64(len(p.bad)); more > 0 {
		fmt.Fprintf(&b, "\n  and %d more", more)
	}
	return fmt.Errorf("%d paths below %s cannot be read; make them readable, or leave them out with files.exclude:%s",
		p.nbad, p.c.o.Root, b.String())
}

func (p *pass) enter(ctx context.Context, n *node) (bool, error) {
	if p.c.x.match(n.rel) {
		return false, nil
	}
	switch n.format() {
	case unix.S_IFDIR:
		return p.dir(n)
	case unix.S_IFREG:
		return false, p.file(ctx, n)
	case unix.S_IFLNK:
		return false, p.symlink(n)
	case unix.S_IFIFO:
		return false, p.fifo(n)
	case unix.S_IFSOCK:
		p.leftOut(n, "is a socket: its server makes it again")
	default:
		p.leftOut(n, "is a device: devices are not captured")
	}
	return false, nil
}

func (p *pass) leave(*node) error { return nil }

func (p *pass) failed(n *node, err error) error {
	if p.c.x.match(n.rel) {
		return nil
	}
	if n.format() == unix.S_IFDIR && p.skip[idOf(&n.st)] {
		_, err := p.dir(n)
		return err
	}
	p.nbad++
	if len(p.bad) < 100 {
		p.bad = append(p.bad, Issue{n.String(), err.Error()})
	}
	return nil
}

func (p *pass) leftOut(n *node, why string) {
	p.res.SkippedCount++
	if len(p.res.Skipped) < maxListed {
		p.res.Skipped = append(p.res.Skipped, Issue{n.String(), why})
	}
}

func (p *pass) dir(n *node) (bool, error) {
	e := p.entry(n, &n.st, typeDir)
	e.Size = 0
	e.Skipped = p.skip[idOf(&n.st)]
	if n.fd >= 0 {
		if pseudo(n.fd) {
			e.Skipped = true
			p.leftOut(n, "is on a pseudo file system of the kernel")
		}
		var err error
		if e.Xattrs, err = readXattrs(fdXattrs(n.fd)); err != nil {
			return false, p.failed(n, err)
		}
	}
	old, err := p.lookup(n)
	if err != nil {
		return false, err
	}
	if !sameAttributes(old, e) {
		if err := p.w.addEntry(e, nil, packed); err != nil {
			return false, err
		}
	}
	p.res.Dirs++
	return !e.Skipped, p.emit(e)
}

func (p *pass) symlink(n *node) error {
	e := p.entry(n, &n.st, typeSymlink)
	target, err := readlinkat(n)
	if errors.Is(err, unix.EINVAL) || vanished(err) {
		return nil
	}
	if err != nil {
		return p.failed(n, err)
	}
	e.Link, e.Size = rawString(target), 0
	return p.small(n, e, &p.res.Links)
}

func (p *pass) fifo(n *node) error {
	return p.small(n, p.entry(n, &n.st, typeFifo), &p.res.Specials)
}

// small writes an entry without content, if it is new or changed.
func (p *pass) small(n *node, e *entry, count *int64) error {
	var err error
	if e.Xattrs, err = readXattrs(n.xattrs()); err != nil {
		var st unix.Stat_t
		if errors.Is(unix.Fstatat(n.dirfd, n.name, &st, unix.AT_SYMLINK_NOFOLLOW), unix.ENOENT) {
			return nil // vanished
		}
		return p.failed(n, fmt.Errorf("%w (this needs /proc to be mounted)", err))
	}
	old, err := p.lookup(n)
	if err != nil {
		return err
	}
	if !sameAttributes(old, e) {
		if err := p.w.addEntry(e, nil, packed); err != nil {
			return err
		}
	}
	*count++
	return p.emit(e)
}

// lookup returns the first pass's entry for the path of n, or nil. Walks and indexes go in the same order.
func (p *pass) lookup(n *node) (*entry, error) {
	if p.old == nil {
		return nil, nil
	}
	for p.old.next != nil {
		c := p.old.tree - p.tree
		if c == 0 {
			c = comparePaths(string(p.old.next.Path), n.rel)
		}
		if c == 0 {
			return p.old.next, nil
		}
		if c > 0 {
			return nil, nil
		}
		if err := p.old.advance(); err != nil {
			return nil, fmt.Errorf("read what was spooled: %w", err)
		}
	}
	return nil, nil
}

// emit puts e into the index.
func (p *pass) emit(e *entry) error {
	if err := p.out.add(e); err != nil {
		return fmt.Errorf("spool index of files: %w", err)
	}
	p.prog.Entries++
	p.prog.Path = e.Tree + "/" + string(e.Path)
	p.report()
	return nil
}

func (p *pass) report() {
	if p.c.o.Progress != nil {
		p.c.o.Progress(p.prog)
	}
}

// entry fills in what stat tells.
func (p *pass) entry(n *node, st *unix.Stat_t, typ string) *entry {
	return &entry{
		Tree: n.tree, Path: rawString(n.rel), Type: typ, Mode: st.Mode & 0o7777,
		UID: st.Uid, GID: st.Gid,
		User:  cached(p.c.users, st.Uid, p.c.o.UserName),
		Group: cached(p.c.group, st.Gid, p.c.o.GroupName),
		Size:  st.Size, MTime: mtimeOf(st), CTime: ctimeOf(st), Dev: st.Dev, Inode: st.Ino,
	}
}

// sameAttributes compares all that a member without content carries.
func sameAttributes(a, b *entry) bool {
	return a != nil && a.Type == b.Type && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.MTime == b.MTime &&
		a.Link == b.Link && equalXattrs(a.Xattrs, b.Xattrs)
}

func idOf(st *unix.Stat_t) fileID { return fileID{st.Dev, st.Ino} }

func cached(m map[uint32]string, id uint32, f func(uint32) string) string {
	s, ok := m[id]
	if !ok {
		s = f(id)
		m[id] = s
	}
	return s
}

func hostUserName(id uint32) string {
	u, err := user.LookupId(strconv.FormatUint(uint64(id), 10))
	if err != nil {
		return "" // the number, which is kept too, is all there is
	}
	return u.Username
}

func hostGroupName(id uint32) string {
	g, err := user.LookupGroupId(strconv.FormatUint(uint64(id), 10))
	if err != nil {
		return "" // as above
	}
	return g.Name
}

// pseudo says whether fd is on a file system that only shows the kernel's state.
func pseudo(fd int) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil {
		return false // it is then captured like any other
	}
	switch uint32(st.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.PSTOREFS_MAGIC:
		return true
	}
	return false
}

func readlinkat(n *node) (string, error) {
	for size := 256; ; size *= 2 {
		buf := make([]byte, size)
		k, err := unix.Readlinkat(n.dirfd, n.name, buf)
		if err != nil {
			return "", err
		}
		if k < size {
			return string(buf[:k]), nil
		}
	}
}
