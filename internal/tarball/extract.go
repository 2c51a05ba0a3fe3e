package tarball

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"

	"holdfast/internal/durable"
)

const sparseBlock = 4096 // zeros of this length and alignment become holes in a sparse file

// ExtractOptions says where the trees go.
type ExtractOptions struct {
	Dest map[string]string // tree name → directory, new or empty; its parent exists

	// Owners: set all owners and attributes, which needs root; what is refused is an error. Without, what this user may set is
	// set: groups it is a member of, the set-uid bit of its own files, the set-gid bit with the right group. What is left is
	// in the result as Unkept.
	Owners bool

	// UserID and GroupID find the number of a name on the restored instance; where there is none, or name is empty, the
	// number from the backup is used. nil: those of the host.
	UserID, GroupID func(name string) (id uint32, ok bool)

	MaxBytes int64 // of content in all; 0: no bound. The size in the catalogue is a good one.
}

// ExtractResult counts what stands in the trees after Finish.
type ExtractResult struct {
	Files, Dirs, Links, Specials int64
	Bytes                        int64
	Removed                      int64 // members that the index does not name
	IndexSHA256                  string
	// Unkept names what only root could have restored: owners, groups, set-id bits, attributes. The list stops at 1000; the
	// count does not.
	Unkept      []Issue
	UnkeptCount int64
}

// Extractor restores the files component: Add each member under files/, then Finish with the index. Nothing is ever written
// through a symbolic link, or outside the destinations. Until Finish returns nil the trees are not a restored state; a
// caller that fails removes them. It is used by one goroutine.
type Extractor struct {
	o     ExtractOptions
	dests map[string]*confined
	total int64
	buf   []byte
	users map[string]owner
	group map[string]owner
	res   ExtractResult

	syncFS func(*os.File) error // durable.SyncFSFile, but for tests that restore thousands of trees
}

// NewExtractor creates the destination directories, mode 0700. One that exists must be empty.
func NewExtractor(o ExtractOptions) (*Extractor, error) {
	x := &Extractor{o: o, dests: map[string]*confined{}, buf: make([]byte, copyBuffer), users: map[string]owner{}, group: map[string]owner{},
		syncFS: durable.SyncFSFile}
	if o.UserID == nil {
		x.o.UserID = hostUserID
	}
	if o.GroupID == nil {
		x.o.GroupID = hostGroupID
	}
	for tree, dir := range o.Dest {
		c, err := newDest(dir)
		if err != nil {
			x.Close() // opened for reading only: nothing to lose
			return nil, fmt.Errorf("restore files of tree %q: %w", tree, err)
		}
		x.dests[tree] = c
	}
	return x, nil
}

func newDest(dir string) (*confined, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	c, err := openConfined(dir)
	if err != nil {
		return nil, err
	}
	_, err = c.root.Readdirnames(1)
	if !errors.Is(err, io.EOF) {
		c.close() // opened for reading only: nothing to lose
		if err == nil {
			err = fmt.Errorf("directory %s is not empty", dir)
		}
		return nil, err
	}
	return c, nil
}

// Close releases the destination directories. A second call does nothing.
func (x *Extractor) Close() error {
	var errs []error
	for tree, c := range x.dests {
		errs = append(errs, c.close())
		delete(x.dests, tree)
	}
	return errors.Join(errs...)
}

// Add restores one member. Owners, modes, times and attributes come from the index, in Finish. A later member of the same
// name replaces an earlier one, whatever their types. To cancel, cancel the reader below the tarball.
func (x *Extractor) Add(m *Member) error {
	if err := x.add(m); err != nil {
		return fmt.Errorf("restore %q: %w", m.Name, err)
	}
	return nil
}

func (x *Extractor) add(m *Member) error {
	tree, rel, ok := splitMember(m.Name)
	if !ok {
		return fmt.Errorf("%w: not a member of the files component", ErrUnsafe)
	}
	if err := checkName(m.Name); err != nil {
		return err
	}
	c := x.dests[tree]
	if c == nil {
		return fmt.Errorf("tree %q has no destination", tree)
	}
	if rel == "" {
		if m.Type != tar.TypeDir {
			return fmt.Errorf("%w: a tree must be a directory", ErrUnsafe)
		}
		return nil
	}
	switch m.Type {
	case tar.TypeDir:
		return c.addDir(rel)
	case tar.TypeReg:
		return x.addFile(c, rel, m)
	case tar.TypeSymlink:
		return c.create(rel, func(fd int, base string) error {
			return pathErr("make symbolic link", unix.Symlinkat(m.Linkname, fd, base))
		})
	case tar.TypeFifo:
		return c.create(rel, func(fd int, base string) error {
			return pathErr("make FIFO", unix.Mknodat(fd, base, unix.S_IFIFO|0o600, 0))
		})
	case tar.TypeLink:
		return c.addLink(tree, rel, m.Linkname)
	}
	return fmt.Errorf("%w: type %q", ErrUnsafe, string(m.Type))
}

func pathErr(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (c *confined) addDir(rel string) error {
	dirfd, base, err := c.parent(rel)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstatat(dirfd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	return c.create(rel, func(fd int, base string) error { return pathErr("make directory", unix.Mkdirat(fd, base, 0o700)) })
}

// addLink links to a regular file of the same tree, never to what a symbolic link there points at.
func (c *confined) addLink(tree, rel, target string) error {
	t, to, ok := splitMember(target)
	if !ok || t != tree || to == "" {
		return fmt.Errorf("%w: hard link to %q, outside its tree", ErrUnsafe, target)
	}
	if err := checkName(to); err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	if to == rel {
		return fmt.Errorf("%w: hard link to itself", ErrUnsafe)
	}
	dirfd, from, err := c.parent(to)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, from, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%w: hard link to %q, which is no regular file", ErrUnsafe, target)
	}
	src, err := unix.Dup(dirfd) // parent() for the new name closes the other
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	defer unix.Close(src) // a directory open for reading: nothing to lose
	return c.create(rel, func(fd int, base string) error {
		return pathErr("hard link to "+target, unix.Linkat(src, from, fd, base, 0))
	})
}

func (x *Extractor) addFile(c *confined, rel string, m *Member) error {
	var f *os.File
	err := c.create(rel, func(dirfd int, base string) error {
		fd, err := openat(dirfd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
		if err != nil {
			return pathErr("create", err)
		}
		f = os.NewFile(uintptr(fd), rel)
		return nil
	})
	if err != nil {
		return err
	}
	n, err := x.copyContent(f, m)
	if err == nil && n != m.Size {
		err = fmt.Errorf("%w: %d of %d bytes", ErrDamaged, n, m.Size)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// copyContent writes m to f; in a sparse file blocks of zeros become holes.
func (x *Extractor) copyContent(f *os.File, m *Member) (off int64, err error) {
	for {
		n, err := io.ReadFull(m, x.buf)
		end := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && (!end || errors.Is(err, ErrDamaged)) {
			return off, err
		}
		wrote, werr := writeBlocks(f, x.buf[:n], off, m.Sparse)
		if werr != nil {
			return off, werr
		}
		off += int64(n)
		if x.total += wrote; x.o.MaxBytes > 0 && x.total > x.o.MaxBytes {
			return off, fmt.Errorf("%w: the files hold more than the %d bytes allowed", ErrUnsafe, x.o.MaxBytes)
		}
		if end {
			break
		}
	}
	if m.Sparse {
		return off, f.Truncate(off)
	}
	return off, nil
}

var zeroBlock [sparseBlock]byte

// writeBlocks writes b at off and returns how much of it was not left out as a hole.
func writeBlocks(f *os.File, b []byte, off int64, sparse bool) (int64, error) {
	if !sparse {
		n, err := f.WriteAt(b, off)
		return int64(n), err
	}
	wrote := int64(0)
	isHole := func(i int) bool {
		return bytes.Equal(b[i:min(i+sparseBlock, len(b))], zeroBlock[:min(sparseBlock, len(b)-i)])
	}
	for i := 0; i < len(b); {
		if isHole(i) {
			i += sparseBlock
			continue
		}
		from := i
		for i < len(b) && !isHole(i) {
			i += sparseBlock
		}
		n, err := f.WriteAt(b[from:min(i, len(b))], off+int64(from))
		wrote += int64(n)
		if err != nil {
			return wrote, err
		}
	}
	return wrote, nil
}

type owner struct {
	id uint32
	ok bool
}

// ownerID returns the number that name has here, or else the number that it had.
func ownerID(m map[string]owner, name string, id uint32, find func(string) (uint32, bool)) uint32 {
	if name == "" {
		return id
	}
	o, ok := m[name]
	if !ok {
		o.id, o.ok = find(name)
		m[name] = o
	}
	if o.ok {
		return o.id
	}
	return id
}

func hostUserID(name string) (uint32, bool) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, false // the number from the backup is used
	}
	id, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(id), err == nil
}

func hostGroupID(name string) (uint32, bool) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, false // as above
	}
	id, err := strconv.ParseUint(g.Gid, 10, 32)
	return uint32(id), err == nil
}

// Finish makes the trees what the index says: removes what it does not name, sets owners, attributes, modes and times,
// checks that all is there with the right content, and writes everything to disk (one syncfs for each file system). Every
// tree of the index must have a destination and the reverse. After an error or a cancelled context the trees are unfinished.
func (x *Extractor) Finish(ctx context.Context, index io.Reader) (*ExtractResult, error) {
	res, err := x.finish(ctx, index)
	if err != nil {
		return nil, fmt.Errorf("finish restored files: %w", err)
	}
	return res, nil
}
