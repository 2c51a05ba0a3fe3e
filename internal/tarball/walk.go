package tarball

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// node is an object met by a walk. It is reached through its directory's descriptor, never through its path, so that
// nothing another process renames can lead the walk elsewhere.
type node struct {
	tree  string
	rel   string // path in the tree, "" for the tree itself
	dirfd int    // of the directory that holds it; -1 for the tree itself
	name  string
	fd    int // descriptor of a directory that is being entered, else -1
	st    unix.Stat_t
}

func (n *node) String() string { return memberName(n.tree, n.rel)[len(filesPrefix):] }

func (n *node) format() uint32 { return n.st.Mode & unix.S_IFMT }

// procPath names the object for system calls that take no descriptor of a directory. Its last element is not followed by
// the l* calls.
func (n *node) procPath() string { return fmt.Sprintf("/proc/self/fd/%d/%s", n.dirfd, n.name) }

// visitor is told of every object of a tree: a directory before its contents (enter) and after them (leave), names in byte
// order. The list of names of each directory on the way is held in memory.
type visitor interface {
	// enter returns whether to go into a directory. For a directory n.fd is open during the call.
	enter(ctx context.Context, n *node) (descend bool, err error)
	// leave is called for each directory for which enter returned true.
	leave(n *node) error
	// failed is told what could not be read; returning nil goes on without it. An object that vanished is not reported.
	failed(n *node, err error) error
}

// walk visits the tree at dir, whose own path may be a symbolic link. It stops at the first error of the visitor, and with
// the context's cause when that is cancelled.
func walk(ctx context.Context, tree, dir string, v visitor) error {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open tree %q: %w", tree, err)
	}
	defer f.Close() // read only: nothing to lose
	n := &node{tree: tree, dirfd: -1, fd: int(f.Fd())}
	if err := unix.Fstat(n.fd, &n.st); err != nil {
		return fmt.Errorf("stat tree %q: %w", tree, err)
	}
	return walkDir(ctx, n, f, v)
}

// walkDir visits the directory n, open as f, and what is in it.
func walkDir(ctx context.Context, n *node, f *os.File, v visitor) error {
	descend, err := v.enter(ctx, n)
	if err != nil || !descend {
		return err
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		if err := v.failed(n, err); err != nil {
			return err
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		child := &node{tree: n.tree, rel: joinRel(n.rel, name), dirfd: n.fd, name: name, fd: -1}
		if err := walkChild(ctx, child, v); err != nil {
			return err
		}
	}
	return v.leave(n)
}

func walkChild(ctx context.Context, n *node, v visitor) error {
	if err := unix.Fstatat(n.dirfd, n.name, &n.st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return reportUnless(n, err, v)
	}
	if n.format() != unix.S_IFDIR {
		_, err := v.enter(ctx, n)
		return err
	}
	fd, err := openat(n.dirfd, n.name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return nil // it was a directory a moment ago: vanished
		}
		return reportUnless(n, err, v)
	}
	f := os.NewFile(uintptr(fd), n.rel)
	defer f.Close() // read only: nothing to lose
	n.fd = fd
	if err := unix.Fstat(fd, &n.st); err != nil {
		return v.failed(n, err)
	}
	return walkDir(ctx, n, f, v)
}

// reportUnless passes err on, unless it says that the object vanished.
func reportUnless(n *node, err error, v visitor) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return v.failed(n, err)
}

// openat never follows a symbolic link in name and never waits for the other end of a FIFO.
func openat(dirfd int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dirfd, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// openRegular opens a regular file for reading and stats it.
func openRegular(n *node) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := openat(n.dirfd, n.name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, st, err
	}
	f := os.NewFile(uintptr(fd), n.rel)
	if err := unix.Fstat(fd, &st); err != nil {
		f.Close() // read only: nothing to lose
		return nil, st, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close() // as above
		return nil, st, errReplaced
	}
	return f, st, nil
}

// errReplaced says that a path stopped being a regular file between two looks at it.
var errReplaced = errors.New("replaced by something else while being read")

// vanished says that an object went away, or became something else, while it was being looked at.
func vanished(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) || errors.Is(err, errReplaced)
}

func mtimeOf(st *unix.Stat_t) stamp { return stamp{int64(st.Mtim.Sec), int64(st.Mtim.Nsec)} }
func ctimeOf(st *unix.Stat_t) stamp { return stamp{int64(st.Ctim.Sec), int64(st.Ctim.Nsec)} }

// sameState says whether nothing that stat shows of a file's identity and content differs.
func sameState(a, b *unix.Stat_t) bool {
	return a.Dev == b.Dev && a.Ino == b.Ino && a.Size == b.Size && a.Mtim == b.Mtim && a.Ctim == b.Ctim
}
