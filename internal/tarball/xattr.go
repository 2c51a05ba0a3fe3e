package tarball

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Extended attributes of one object, as a bound on what is read into memory and on what a PAX record may hold.
const maxXattrs = 768 << 10

// keptXattr says which attributes belong to the application: its own, its capabilities and its ACLs. Labels that the host's
// security modules manage (security.selinux, security.ima, …) are the host's.
func keptXattr(name string) bool {
	return strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.") || name == "security.capability" ||
		name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

// xattrCalls is where attributes are read and written: a descriptor, or a path whose last element is not followed.
type xattrCalls struct {
	list func(buf []byte) (int, error)
	get  func(name string, buf []byte) (int, error)
	set  func(name string, value []byte) error
	del  func(name string) error
}

func fdXattrs(fd int) xattrCalls {
	return xattrCalls{
		list: func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		get:  func(n string, b []byte) (int, error) { return unix.Fgetxattr(fd, n, b) },
		set:  func(n string, v []byte) error { return unix.Fsetxattr(fd, n, v, 0) },
		del:  func(n string) error { return unix.Fremovexattr(fd, n) },
	}
}

func pathXattrs(path string) xattrCalls {
	return xattrCalls{
		list: func(b []byte) (int, error) { return unix.Llistxattr(path, b) },
		get:  func(n string, b []byte) (int, error) { return unix.Lgetxattr(path, n, b) },
		set:  func(n string, v []byte) error { return unix.Lsetxattr(path, n, v, 0) },
		del:  func(n string) error { return unix.Lremovexattr(path, n) },
	}
}

// xattrs reaches the attributes of n: by its descriptor, or through /proc, since no system call takes a directory's.
func (n *node) xattrs() xattrCalls {
	if n.fd >= 0 {
		return fdXattrs(n.fd)
	}
	return pathXattrs(n.procPath())
}

// readXattrs returns the kept attributes sorted by name; none where the file system has none.
func readXattrs(c xattrCalls) ([]xattr, error) {
	names, err := growing(c.list)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	var list []xattr
	total := 0
	for name := range bytes.SplitSeq(names, []byte{0}) {
		if !keptXattr(string(name)) {
			continue
		}
		value, err := growing(func(b []byte) (int, error) { return c.get(string(name), b) })
		if errors.Is(err, unix.ENODATA) {
			continue // removed since it was listed
		}
		if err != nil {
			return nil, fmt.Errorf("read extended attribute %q: %w", name, err)
		}
		if total += len(name) + len(value); total > maxXattrs {
			return nil, fmt.Errorf("extended attributes hold more than %d bytes, which a tarball cannot carry", maxXattrs)
		}
		list = append(list, xattr{rawString(name), value})
	}
	slices.SortFunc(list, func(a, b xattr) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return list, nil
}

// growing calls f with a buffer large enough, as the *xattr calls want it (listxattr(2), ERANGE).
func growing(f func([]byte) (int, error)) ([]byte, error) {
	size, err := f(nil)
	for err == nil && size > 0 {
		buf := make([]byte, size)
		n, e := f(buf)
		if e == nil {
			return buf[:n], nil
		}
		if !errors.Is(e, unix.ERANGE) {
			return nil, e
		}
		size, err = f(nil)
	}
	return nil, err
}

// applyXattrs makes the kept attributes of an object those of the list. Without privileged, refused are those that only root
// may set or remove.
func applyXattrs(c xattrCalls, want []xattr, privileged bool) (refused []string, err error) {
	have, err := readXattrs(c)
	if err != nil {
		return nil, err
	}
	tolerated := func(name rawString, err error) bool {
		if privileged || !needsPrivilege(string(name)) || !errors.Is(err, unix.EPERM) {
			return false
		}
		refused = append(refused, string(name))
		return true
	}
	for _, x := range have {
		if !slices.ContainsFunc(want, func(w xattr) bool { return w.Name == x.Name }) {
			if err := c.del(string(x.Name)); err != nil && !errors.Is(err, unix.ENODATA) && !tolerated(x.Name, err) {
				return nil, fmt.Errorf("remove extended attribute %q: %w", x.Name, err)
			}
		}
	}
	for _, x := range want {
		if !keptXattr(string(x.Name)) {
			continue
		}
		if err := c.set(string(x.Name), x.Value); err != nil && !tolerated(x.Name, err) {
			return nil, fmt.Errorf("set extended attribute %q: %w", x.Name, err)
		}
	}
	return refused, nil
}

func needsPrivilege(name string) bool {
	return strings.HasPrefix(name, "security.") || strings.HasPrefix(name, "trusted.")
}

func equalXattrs(a, b []xattr) bool {
	return slices.EqualFunc(a, b, func(x, y xattr) bool { return x.Name == y.Name && bytes.Equal(x.Value, y.Value) })
}
