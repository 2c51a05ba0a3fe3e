package tarball

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// merger walks trees and an index side by side; both are in the same order.
type merger struct {
	ix      *indexReader
	tree    int
	match   func(ctx context.Context, n *node, e *entry) error
	extra   func(n *node) error
	missing func(e *entry) error
	leaving func(n *node, e *entry) error
	failing func(n *node, err error) error
	open    []*entry // directories being visited
}

// run visits the trees of the index; each must have a directory in dest, and the reverse.
func (m *merger) run(ctx context.Context, dest map[string]string) error {
	for _, t := range m.ix.trees {
		if _, ok := dest[t]; !ok {
			return fmt.Errorf("tree %q of the index has no directory", t)
		}
	}
	if len(dest) != len(m.ix.trees) {
		return fmt.Errorf("the index has %d trees (%s), but %d directories are given", len(m.ix.trees), strings.Join(m.ix.trees, ", "), len(dest))
	}
	for i, t := range m.ix.trees {
		m.tree = i
		if err := walk(ctx, t, dest[t], m); err != nil {
			return err
		}
		if err := m.skipTo(nil); err != nil {
			return err
		}
	}
	return nil
}

// skipTo reports entries of this tree before n, all if n is nil, as missing.
func (m *merger) skipTo(n *node) error {
	for m.ix.next != nil && m.ix.tree == m.tree && (n == nil || comparePaths(string(m.ix.next.Path), n.rel) < 0) {
		if err := m.missing(m.ix.next); err != nil {
			return err
		}
		if err := m.ix.advance(); err != nil {
			return err
		}
	}
	return nil
}

func (m *merger) enter(ctx context.Context, n *node) (bool, error) {
	if err := m.skipTo(n); err != nil {
		return false, err
	}
	e := m.ix.next
	if e == nil || m.ix.tree != m.tree || string(e.Path) != n.rel {
		return false, m.extra(n)
	}
	if err := m.ix.advance(); err != nil {
		return false, err
	}
	if err := m.match(ctx, n, e); err != nil {
		return false, err
	}
	if n.format() != unix.S_IFDIR {
		return false, nil
	}
	if e.Skipped || e.Type != typeDir {
		return false, m.leaving(n, e)
	}
	m.open = append(m.open, e)
	return true, nil
}

func (m *merger) leave(n *node) error {
	e := m.open[len(m.open)-1]
	m.open = m.open[:len(m.open)-1]
	return m.leaving(n, e)
}

func (m *merger) failed(n *node, err error) error { return m.failing(n, err) }

func (x *Extractor) finish(ctx context.Context, index io.Reader) (*ExtractResult, error) {
	ix, err := newIndexReader(index)
	if err != nil {
		return nil, err
	}
	for _, c := range x.dests {
		c.forget(0)
	}
	x.res = ExtractResult{}
	res := &x.res
	m := &merger{
		ix:      ix,
		match:   func(ctx context.Context, n *node, e *entry) error { return x.settle(ctx, n, e, res) },
		leaving: func(n *node, e *entry) error { return inPath(n, x.apply(n, e)) },
		extra: func(n *node) error {
			res.Removed++
			if n.dirfd < 0 {
				return fmt.Errorf("%w: the index does not name tree %q itself", ErrDamaged, n.tree)
			}
			return inPath(n, removeAt(n.dirfd, n.name))
		},
		missing: func(e *entry) error {
			return fmt.Errorf("%w: %q is in the index but not in the tarball", ErrDamaged, e.Tree+"/"+string(e.Path))
		},
		failing: inPath,
	}
	if err := m.run(ctx, x.o.Dest); err != nil {
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	res.IndexSHA256 = ix.sha256hex()
	return res, x.sync()
}

func inPath(n *node, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%q: %w", n, err)
}

// settle checks one object and gives it its attributes; a directory gets them when it is left.
func (x *Extractor) settle(ctx context.Context, n *node, e *entry, res *ExtractResult) error {
	if got := typeOf(n); got != e.Type && (e.Type != typeHardlink || got != typeFile) {
		return inPath(n, fmt.Errorf("%w: the tarball has a %s, the index a %s", ErrDamaged, got, e.Type))
	}
	switch e.Type {
	case typeDir:
		res.Dirs++
		return nil
	case typeHardlink:
		res.Links++
		return inPath(n, x.checkLink(n, e))
	case typeSymlink:
		res.Links++
		target, err := readlinkat(n)
		if err == nil && target != string(e.Link) {
			err = fmt.Errorf("%w: the tarball has a link to %q, the index to %q", ErrDamaged, target, e.Link)
		}
		if err != nil {
			return inPath(n, err)
		}
	case typeFifo:
		res.Specials++
	case typeFile:
		res.Files++
		res.Bytes += e.Size
		if n.st.Size != e.Size {
			return inPath(n, fmt.Errorf("%w: %d bytes, the index says %d", ErrDamaged, n.st.Size, e.Size))
		}
		return inPath(n, x.settleFile(ctx, n, e))
	}
	return inPath(n, x.apply(n, e))
}

func (x *Extractor) settleFile(ctx context.Context, n *node, e *entry) error {
	f, _, err := openRegular(n)
	if err != nil {
		return err
	}
	defer f.Close() // open for reading: nothing to lose
	sum, err := hashReader(ctx, f)
	if err != nil {
		return err
	}
	if sum != e.SHA256 {
		return fmt.Errorf("%w: sha256 %s, the index says %s", ErrDamaged, sum, e.SHA256)
	}
	n.fd = int(f.Fd())
	defer func() { n.fd = -1 }()
	return x.apply(n, e)
}

// checkLink says whether n is the file that its entry names.
func (x *Extractor) checkLink(n *node, e *entry) error {
	c := x.dests[e.Tree]
	defer c.forget(0)
	dirfd, base, err := c.parent(string(e.Link))
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", e.Link, err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("hard link to %q: %w", e.Link, err)
	}
	if idOf(&st) != idOf(&n.st) {
		return fmt.Errorf("%w: is no hard link to %q, as the index says", ErrDamaged, e.Link)
	}
	return nil
}

// sync writes each file system that holds a destination, once.
func (x *Extractor) sync() error {
	done := map[uint64]bool{}
	for tree, c := range x.dests {
		var st unix.Stat_t
		if err := unix.Fstat(int(c.root.Fd()), &st); err != nil {
			return fmt.Errorf("stat tree %q: %w", tree, err)
		}
		if done[st.Dev] {
			continue
		}
		done[st.Dev] = true
		if err := x.syncFS(c.root); err != nil {
			return err
		}
	}
	return nil
}

func typeOf(n *node) string {
	switch n.format() {
	case unix.S_IFDIR:
		return typeDir
	case unix.S_IFREG:
		return typeFile
	case unix.S_IFLNK:
		return typeSymlink
	case unix.S_IFIFO:
		return typeFifo
	}
	return "special file"
}

func hashReader(ctx context.Context, f *os.File) (string, error) {
	h := sha256.New()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{&ctxReader{ctx: ctx, r: f}}, make([]byte, copyBuffer)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// CheckOptions says which directories CheckTree compares with an index.
type CheckOptions struct {
	Dest   map[string]string // tree name → directory
	Owners bool              // compare owners by number, and the set-uid and set-gid bits
}

// TreeReport lists the differences between directories and an index. Each list stops at 1000; the counts do not.
type TreeReport struct {
	Missing, Extra           []string // <tree>/<path>; what is in a missing or extra directory is not listed
	Differing                []Issue
	MissingCount, ExtraCount int64
	DifferingCount           int64
	Entries, Bytes           int64 // compared
	IndexSHA256              string
}

// Equal says whether there is no difference.
func (r *TreeReport) Equal() bool { return r.MissingCount+r.ExtraCount+r.DifferingCount == 0 }

// CheckTree compares directories with the index of a files component: what is there, types, contents, modes, times, links
// and attributes. It changes nothing. Differences are in the report; the error is for what prevented comparing.
func CheckTree(ctx context.Context, index io.Reader, o CheckOptions) (*TreeReport, error) {
	ix, err := newIndexReader(index)
	if err != nil {
		return nil, fmt.Errorf("check files: %w", err)
	}
	c := &checker{o: o, r: &TreeReport{}}
	m := &merger{
		ix: ix, match: c.match, failing: inPath,
		extra:   func(n *node) error { c.r.ExtraCount++; c.r.Extra = list(c.r.Extra, n.String()); return nil },
		missing: func(e *entry) error { c.gone(e); return nil },
		leaving: func(*node, *entry) error { return nil },
	}
	if err := m.run(ctx, o.Dest); err != nil {
		return nil, fmt.Errorf("check files: %w", err)
	}
	c.r.IndexSHA256 = ix.sha256hex()
	return c.r, nil
}

type checker struct {
	o     CheckOptions
	r     *TreeReport
	links map[string]fileID // of this tree: files that hard links name
	tree  string
	last  string // missing entry that stands for those below it
}

func list(l []string, s string) []string {
	if len(l) < maxListed {
		l = append(l, s)
	}
	return l
}

func (c *checker) gone(e *entry) {
	name := e.Tree + "/" + string(e.Path)
	if c.last != "" && strings.HasPrefix(name, c.last+"/") {
		return
	}
	c.last = name
	c.r.MissingCount++
	c.r.Missing = list(c.r.Missing, name)
}

func (c *checker) differs(n *node, format string, args ...any) {
	c.r.DifferingCount++
	if len(c.r.Differing) < maxListed {
		c.r.Differing = append(c.r.Differing, Issue{n.String(), fmt.Sprintf(format, args...)})
	}
}

func (c *checker) match(ctx context.Context, n *node, e *entry) error {
	c.r.Entries++
	if c.tree != n.tree {
		c.tree, c.links = n.tree, map[string]fileID{}
	}
	if got := typeOf(n); got != e.Type && (e.Type != typeHardlink || got != typeFile) {
		c.differs(n, "is a %s, was a %s", got, e.Type)
		return nil
	}
	mask := uint32(0o7777)
	if !c.o.Owners {
		mask = 0o1777
	}
	switch {
	case e.Type != typeSymlink && n.st.Mode&mask != e.Mode&mask:
		c.differs(n, "mode %o, was %o", n.st.Mode&mask, e.Mode&mask)
	case c.o.Owners && (n.st.Uid != e.UID || n.st.Gid != e.GID):
		c.differs(n, "owner %d:%d, was %d:%d", n.st.Uid, n.st.Gid, e.UID, e.GID)
	case mtimeOf(&n.st) != e.MTime:
		c.differs(n, "modification time differs")
	}
	switch e.Type {
	case typeFile:
		return c.file(ctx, n, e)
	case typeHardlink:
		if id, ok := c.links[string(e.Link)]; !ok || id != idOf(&n.st) {
			c.differs(n, "is no hard link to %q any more", e.Link)
		}
		return nil
	case typeSymlink:
		target, err := readlinkat(n)
		if err != nil {
			return inPath(n, err)
		}
		if target != string(e.Link) {
			c.differs(n, "link to %q, was to %q", target, e.Link)
		}
	}
	return c.xattrs(n, e, n.xattrs())
}

func (c *checker) file(ctx context.Context, n *node, e *entry) error {
	c.r.Bytes += n.st.Size
	if n.st.Nlink > 1 {
		c.links[n.rel] = idOf(&n.st)
	}
	f, _, err := openRegular(n)
	if errors.Is(err, unix.ENOENT) {
		c.gone(e)
		return nil
	}
	if err != nil {
		return inPath(n, err)
	}
	defer f.Close() // read only: nothing to lose
	if n.st.Size != e.Size {
		c.differs(n, "%d bytes, was %d", n.st.Size, e.Size)
	} else {
		sum, err := hashReader(ctx, f)
		if err != nil {
			return inPath(n, err)
		}
		if sum != e.SHA256 {
			c.differs(n, "sha256 %s, was %s", sum, e.SHA256)
		}
	}
	return c.xattrs(n, e, fdXattrs(int(f.Fd())))
}

// xattrs compares the attributes; those that only root may set only where owners are compared.
func (c *checker) xattrs(n *node, e *entry, calls xattrCalls) error {
	have, err := readXattrs(calls)
	if err != nil {
		return inPath(n, err)
	}
	if want := e.Xattrs; !equalXattrs(c.seen(have), c.seen(want)) {
		c.differs(n, "extended attributes differ")
	}
	return nil
}

func (c *checker) seen(all []xattr) []xattr {
	if c.o.Owners {
		return all
	}
	var some []xattr
	for _, x := range all {
		if !needsPrivilege(string(x.Name)) {
			some = append(some, x)
		}
	}
	return some
}
