package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/durable"
)

// Remove implements Storage. Directories left empty are removed up to the root, never the root itself. Names of one
// directory next to each other cost one system call each.
func (p *Posix) Remove(ctx context.Context, names ...string) error {
	for _, name := range names {
		if err := CheckName(name); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	root, err := p.open(false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return p.fail("remove from", "", err)
	}
	touched, err := p.unlink(ctx, root, names)
	if err != nil {
		return err
	}
	return p.prune(ctx, root, touched)
}

// unlink removes files and returns the directories they were in.
func (p *Posix) unlink(ctx context.Context, root *os.Root, names []string) (map[string]bool, error) {
	touched := map[string]bool{}
	var at string    // directory that d is
	var d *os.File   // nil: none is open
	var there = true // at exists
	defer func() {
		if d != nil {
			d.Close() // opened for reading: nothing to lose
		}
	}()
	for i, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		dir, base := split(name)
		if i == 0 || dir != at {
			if d != nil {
				d.Close() // as above
			}
			var err error
			d, err = p.openDir(root, dir)
			at, there = dir, err == nil
			if err != nil {
				d = nil
				if err := p.fail("remove", name, err); !errors.Is(err, fs.ErrNotExist) {
					return nil, err
				}
			}
		}
		if !there {
			continue
		}
		touched[dir] = true
		err := unix.Unlinkat(int(d.Fd()), base, 0)
		if err != nil && err != unix.ENOENT && err != unix.EISDIR { // a directory is not an object: nothing to remove
			return nil, p.fail("remove", name, err)
		}
	}
	return touched, nil
}

// prune removes directories that are empty, upwards, and makes the removals durable in those that stay.
func (p *Posix) prune(ctx context.Context, root *os.Root, dirs map[string]bool) error {
	stay := map[string]bool{}
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		for dir != "" {
			if err := ctx.Err(); err != nil {
				return err
			}
			parent, base := split(dir)
			d, err := p.openDir(root, parent)
			if err == nil {
				err = unix.Unlinkat(int(d.Fd()), base, unix.AT_REMOVEDIR)
				d.Close() // opened for reading: nothing to lose
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				break // not empty, a mount point, not ours: an empty directory that stays holds no object
			}
			dir = parent
		}
		stay[dir] = true
	}
	for _, dir := range slices.Sorted(maps.Keys(stay)) {
		if err := p.syncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) { // another remover may have been faster
			return p.fail("sync directory", dir, err)
		}
	}
	return nil
}

// errMount is what Linker's methods return on a Mount.
func (p *Posix) errMount(op, name string) error {
	if p.o.Mount {
		return p.fail(op, name, errors.ErrUnsupported)
	}
	return nil
}

// MakeDir implements Linker.
func (p *Posix) MakeDir(ctx context.Context, name string) error {
	if err := cmp.Or(check(ctx, name), p.errMount("make directory", name)); err != nil {
		return err
	}
	err := p.inDir(name, p.deferred, (*os.File).Close)
	if err != nil {
		return p.fail("make directory", name, err)
	}
	return nil
}

// Symlink implements Linker.
func (p *Posix) Symlink(ctx context.Context, target, name string) error {
	if err := cmp.Or(check(ctx, name), p.errMount("link", name)); err != nil {
		return err
	}
	dir, base := split(name)
	err := p.inDir(dir, p.deferred, func(d *os.File) error {
		defer d.Close() // opened for reading: nothing to lose
		temp := fmt.Sprintf("%s.%016x%s", durable.TempStem(base), rand.Uint64(), tempSuffix)
		fd := int(d.Fd())
		if err := unix.Symlinkat(target, fd, temp); err != nil {
			return err
		}
		var err error
		if o := p.o.Owner; o != nil {
			err = unix.Fchownat(fd, temp, o.UID, o.GID, unix.AT_SYMLINK_NOFOLLOW)
		}
		if err == nil {
			err = unix.Renameat(fd, temp, fd, base)
		}
		if err != nil {
			unix.Unlinkat(fd, temp, 0) // best effort: the error above is the one to report
			return err
		}
		if !p.deferred {
			return d.Sync()
		}
		return nil
	})
	if err != nil {
		return p.fail("link", name, err)
	}
	return nil
}

// Link implements Linker. The link is made under a temporary name and renamed, so that an existing name is replaced in one
// step.
func (p *Posix) Link(ctx context.Context, existing, name string) error {
	if err := cmp.Or(check(ctx, existing), check(ctx, name), p.errMount("link", name)); err != nil {
		return err
	}
	fromDir, fromBase := split(existing)
	dir, base := split(name)
	err := p.inDir(fromDir, p.deferred, func(from *os.File) error {
		defer from.Close() // opened for reading: nothing to lose
		return p.inDir(dir, p.deferred, func(d *os.File) error {
			defer d.Close() // as above
			temp := fmt.Sprintf("%s.%016x%s", durable.TempStem(base), rand.Uint64(), tempSuffix)
			fd := int(d.Fd())
			if err := unix.Linkat(int(from.Fd()), fromBase, fd, temp, 0); err != nil {
				return err
			}
			err := unix.Renameat(fd, temp, fd, base)
			// When both names are the same file already, rename leaves the temporary one.
			if uerr := unix.Unlinkat(fd, temp, 0); err == nil && uerr != unix.ENOENT {
				err = uerr
			}
			if err == nil && !p.deferred {
				err = d.Sync()
			}
			return err
		})
	})
	if err != nil {
		return p.fail("link", name, err)
	}
	return nil
}

// RemoveTree implements Linker.
func (p *Posix) RemoveTree(ctx context.Context, name string) error {
	if err := cmp.Or(check(ctx, name), p.errMount("remove tree", name)); err != nil {
		return err
	}
	root, err := p.open(false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return p.fail("remove", name, err)
	}
	parent, base := split(name)
	d, err := p.openDir(root, parent)
	if err != nil {
		if err := p.fail("remove", name, err); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	err = removeBelow(ctx, d, base)
	d.Close() // opened for reading: nothing to lose
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return p.fail("remove", name, err)
	}
	return p.prune(ctx, root, map[string]bool{parent: true})
}

// removeBelow removes the entry base of the open directory d, and what is below it first. It follows no link.
func removeBelow(ctx context.Context, d *os.File, base string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := unix.Unlinkat(int(d.Fd()), base, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR {
		return fmt.Errorf("%s: %w", base, err)
	}
	fd, err := unix.Openat(int(d.Fd()), base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", base, err)
	}
	sub := os.NewFile(uintptr(fd), base)
	defer sub.Close() // opened for reading: nothing to lose
	names, err := sub.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := removeBelow(ctx, sub, name); err != nil {
			return err
		}
	}
	err = unix.Unlinkat(int(d.Fd()), base, unix.AT_REMOVEDIR)
	if err != nil && err != unix.ENOENT {
		return fmt.Errorf("%s: %w", base, err)
	}
	return nil
}

// Sweep implements Sweeper: it removes temporary files, also pgBackRest's.
func (p *Posix) Sweep(ctx context.Context, dir string, age time.Duration) (int, error) {
	if err := checkDir(dir); err != nil {
		return 0, err
	}
	return p.sweep(ctx, dir, sync.OnceValues(func() (time.Time, error) {
		now, err := p.clock(ctx)
		return now.Add(-age), err
	}))
}

// sweep is Sweep of what was last written to before a moment, which is asked for when there is something to compare with it.
func (p *Posix) sweep(ctx context.Context, dir string, before func() (time.Time, error)) (removed int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	entries, err := p.readDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		if e.Dir {
			n, err := p.sweep(ctx, e.Name, before)
			removed += n
			if err != nil {
				return removed, err
			}
			continue
		}
		if !IsTemp(e.Name) {
			continue
		}
		moment, err := before()
		if err != nil {
			return removed, err
		}
		if !e.ModTime.Before(moment) {
			continue
		}
		err = p.root.Remove(e.Name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // its writer finished after all
		}
		if err != nil {
			return removed, p.fail("remove", e.Name, err)
		}
		removed++
	}
	return removed, nil
}

// clock is the time by which files are stamped: that of the server where the directory is mounted from one, as a new file shows.
func (p *Posix) clock(ctx context.Context) (time.Time, error) {
	if !p.o.Mount {
		return time.Now(), nil
	}
	w, err := p.Create(ctx, "clock", CreateOptions{})
	if err != nil {
		return time.Time{}, err
	}
	now, err := w.(*posixWriter).f.ModTime()
	return now, errors.Join(err, w.Abort())
}
