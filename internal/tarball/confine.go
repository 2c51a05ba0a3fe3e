package tarball

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// confined reaches paths below one directory without ever following a symbolic link: each element is opened by itself,
// relative to the descriptor of the one before (open(2), O_NOFOLLOW). The directories on the way to the path used last stay
// open.
type confined struct {
	root  *os.File
	names []string
	fds   []int
}

func openConfined(dir string) (*confined, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &confined{root: f}, nil
}

func (c *confined) close() error {
	c.forget(0)
	return c.root.Close()
}

// forget closes the open directories from the given depth on.
func (c *confined) forget(depth int) {
	for _, fd := range c.fds[depth:] {
		unix.Close(fd) // a directory open for reading: nothing to lose
	}
	c.names, c.fds = c.names[:depth], c.fds[:depth]
}

// parent returns the descriptor, valid until the next call, of the directory that holds rel, and its last element.
func (c *confined) parent(rel string) (int, string, error) {
	parts := strings.Split(rel, "/")
	dirs, base := parts[:len(parts)-1], parts[len(parts)-1]
	same := 0
	for same < len(dirs) && same < len(c.names) && dirs[same] == c.names[same] {
		same++
	}
	c.forget(same)
	for _, d := range dirs[same:] {
		fd, err := openat(c.fd(), d, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return -1, "", fmt.Errorf("%w: %q is a link or file, and nothing is written through it", ErrUnsafe, d)
		}
		if errors.Is(err, unix.ENOENT) {
			return -1, "", fmt.Errorf("%w: its directory %q is missing", ErrDamaged, d)
		}
		if err != nil {
			return -1, "", fmt.Errorf("open directory %q: %w", d, err)
		}
		c.names, c.fds = append(c.names, d), append(c.fds, fd)
	}
	return c.fd(), base, nil
}

func (c *confined) fd() int {
	if len(c.fds) == 0 {
		return int(c.root.Fd())
	}
	return c.fds[len(c.fds)-1]
}

// create calls do, which makes the object base in dirfd and fails if something is there; that is then removed first.
func (c *confined) create(rel string, do func(dirfd int, base string) error) error {
	dirfd, base, err := c.parent(rel)
	if err != nil {
		return err
	}
	if err := do(dirfd, base); !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := removeAt(dirfd, base); err != nil {
		return fmt.Errorf("remove what was there before: %w", err)
	}
	return do(dirfd, base)
}

// removeAt removes name and, if it is a directory, all in it, without following a symbolic link.
func removeAt(dirfd int, name string) error {
	err := unix.Unlinkat(dirfd, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) { // EPERM: what POSIX has for directories
		return err
	}
	fd, err := openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	for _, n := range names {
		if err == nil {
			err = removeAt(fd, n)
		}
	}
	f.Close() // open for reading: nothing to lose
	if err != nil {
		return err
	}
	return unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR)
}
