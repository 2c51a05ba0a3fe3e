package sftp

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/storage"
)

// ahead is how many directories are read at once while a tree is walked, and how many files are removed at once.
const ahead = 8

// List implements storage.Storage. Memory is bounded by the entries of a few directories per level.
func (s *Store) List(ctx context.Context, dir string, o storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		err := ctx.Err()
		if err == nil && dir != "" {
			err = storage.CheckName(dir)
		}
		if err != nil {
			yield(storage.Info{}, err)
			return
		}
		skip := 0 // bytes of a name before what Prefix is about
		if dir != "" {
			skip = len(dir) + 1
		}
		rctx, cancel := context.WithCancel(ctx)
		w := &walk{s: s, ctx: rctx, o: o, skip: skip, yield: yield}
		defer w.flights.Wait()
		defer cancel()
		w.dir(dir, w.read(dir))
	}
}

// walk is one listing.
type walk struct {
	s       *Store
	ctx     context.Context
	o       storage.ListOptions
	skip    int
	yield   func(storage.Info, error) bool
	flights sync.WaitGroup
}

// content is what a directory holds.
type content struct {
	entries []storage.Info
	err     error
}

// read begins to read a directory.
func (w *walk) read(dir string) chan content {
	answer := make(chan content, 1)
	w.flights.Go(func() {
		entries, err := w.s.readDir(w.ctx, dir)
		answer <- content{entries, err}
	})
	return answer
}

// fits reports whether an entry, or something below it, may be wanted.
func (w *walk) fits(e storage.Info) bool {
	rest := e.Name[w.skip:]
	return strings.HasPrefix(rest, w.o.Prefix) || w.o.Recursive && e.Dir && strings.HasPrefix(w.o.Prefix, rest+"/")
}

// key is an entry's place: in a recursive walk a directory sorts as what is below it does.
func (w *walk) key(e storage.Info) string {
	if w.o.Recursive && e.Dir {
		return e.Name + "/"
	}
	return e.Name
}

// dir yields one directory and, if recursive, those below, whose reading has begun before they are come to; false ends it.
func (w *walk) dir(dir string, answer chan content) bool {
	got := <-answer
	if got.err != nil && !errors.Is(got.err, fs.ErrNotExist) {
		w.yield(storage.Info{}, w.s.fail("list", dir, got.err))
		return false
	}
	entries := slices.DeleteFunc(got.entries, func(e storage.Info) bool { return storage.IsTemp(e.Name) && !e.Dir || !w.fits(e) })
	slices.SortFunc(entries, func(a, b storage.Info) int { return cmp.Compare(w.key(a), w.key(b)) })
	begun := map[string]chan content{}
	next := 0
	for i, e := range entries {
		if err := w.ctx.Err(); err != nil {
			w.yield(storage.Info{}, err)
			return false
		}
		if !w.o.Recursive || !e.Dir {
			if !w.yield(e, nil) {
				return false
			}
			continue
		}
		for next = max(next, i); next < len(entries) && len(begun) < ahead; next++ {
			if entries[next].Dir {
				begun[entries[next].Name] = w.read(entries[next].Name)
			}
		}
		below := begun[e.Name]
		delete(begun, e.Name)
		if !w.dir(e.Name, below) {
			return false
		}
	}
	return true
}

// readDir returns the files, links to files, and directories of one directory, unsorted, temporary files included.
func (s *Store) readDir(ctx context.Context, dir string) ([]storage.Info, error) {
	var infos []storage.Info
	err := s.call(ctx, func(c *conn) error {
		entries, err := c.sftp.ReadDirContext(ctx, s.path(dir))
		if err != nil {
			return err
		}
		for _, fi := range entries {
			in := storage.Info{Name: path.Join(dir, fi.Name()), Size: fi.Size(), ModTime: fi.ModTime()}
			if fi.Mode()&fs.ModeSymlink != 0 {
				if fi, err = c.sftp.Stat(s.path(in.Name)); err != nil || !fi.Mode().IsRegular() {
					continue // dangling or to a directory: not an object (see storage.Storage.List)
				}
				in.Size, in.ModTime = fi.Size(), fi.ModTime()
			}
			switch {
			case fi.IsDir():
				in.Dir, in.Size = true, 0
			case !fi.Mode().IsRegular():
				continue // a socket, pipe or device is not an object
			}
			infos = append(infos, in)
		}
		return nil
	})
	return infos, err
}

// Remove implements storage.Storage: several at once, then the directories left empty.
func (s *Store) Remove(ctx context.Context, names ...string) error {
	for _, name := range names {
		if err := storage.CheckName(name); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	touched := map[string]bool{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(ahead)
	for _, name := range names {
		touched[path.Dir(name)] = true
		g.Go(func() error {
			return s.fail("remove", name, s.call(gctx, func(c *conn) error { return removeFile(c, s.path(name)) }))
		})
	}
	err := g.Wait()
	if cerr := ctx.Err(); cerr != nil {
		return cerr
	}
	if err != nil {
		return err
	}
	return s.prune(ctx, touched)
}

// removeFile removes a file. A directory is not an object: nothing to remove.
func removeFile(c *conn, at string) error {
	err := c.sftp.Remove(at)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if fi, serr := c.sftp.Lstat(at); serr == nil && fi.IsDir() {
		return nil
	}
	return err
}

// prune removes directories that are empty, upwards, and makes the removals durable in those that stay.
func (s *Store) prune(ctx context.Context, dirs map[string]bool) error {
	stay := map[string]bool{}
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		for dir != "." {
			err := s.call(ctx, func(c *conn) error { return c.sftp.RemoveDirectory(s.path(dir)) })
			if cerr := ctx.Err(); cerr != nil {
				return cerr
			}
			if storage.IsTemporary(err) {
				return s.fail("remove directory", dir, err)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				break // not empty, not ours: an empty directory that stays holds no object
			}
			dir = path.Dir(dir)
		}
		stay[dir] = true
	}
	for _, dir := range slices.Sorted(maps.Keys(stay)) {
		if err := s.call(ctx, func(c *conn) error { return s.syncDir(c, s.path(dir)) }); err != nil {
			return s.fail("sync directory", dir, err)
		}
	}
	return nil
}

// MakeDir implements storage.Linker.
func (s *Store) MakeDir(ctx context.Context, name string) error {
	if err := check(ctx, name); err != nil {
		return err
	}
	return s.fail("make directory", name, s.call(ctx, func(c *conn) error { return s.makeDirs(c, s.path(name)) }))
}

// replace makes something under a temporary name and renames it.
func (s *Store) replace(ctx context.Context, name string, lay func(c *conn, temp string) error) error {
	return s.fail("link", name, s.call(ctx, func(c *conn) error {
		at := s.path(name)
		temp := tempName(at)
		if err := s.inDir(c, path.Dir(at), func() error { return lay(c, temp) }); err != nil {
			return err
		}
		err := c.sftp.PosixRename(temp, at)
		// Also when both names are the same file already, rename leaves the temporary one.
		if rerr := c.sftp.Remove(temp); err == nil && rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = rerr
		}
		if err != nil {
			return err
		}
		return s.syncDir(c, path.Dir(at))
	}))
}

// Symlink implements storage.Linker.
func (s *Store) Symlink(ctx context.Context, target, name string) error {
	if err := check(ctx, name); err != nil {
		return err
	}
	return s.replace(ctx, name, func(c *conn, temp string) error { return c.sftp.Symlink(target, temp) })
}

// Link implements storage.Linker.
func (s *Store) Link(ctx context.Context, existing, name string) error {
	if err := cmp.Or(check(ctx, existing), check(ctx, name)); err != nil {
		return err
	}
	err := s.call(ctx, func(c *conn) error {
		if !c.canLink {
			return errors.ErrUnsupported
		}
		_, err := c.sftp.Lstat(s.path(existing)) // later, what is missing would be taken for the directory of the new name
		return err
	})
	if err != nil {
		return s.fail("link", existing, err)
	}
	return s.replace(ctx, name, func(c *conn, temp string) error { return c.sftp.Link(s.path(existing), temp) })
}

// RemoveTree implements storage.Linker.
func (s *Store) RemoveTree(ctx context.Context, name string) error {
	if err := check(ctx, name); err != nil {
		return err
	}
	err := s.call(ctx, func(c *conn) error { return removeBelow(ctx, c, s.path(name)) })
	if err != nil {
		return s.fail("remove", name, err)
	}
	return s.prune(ctx, map[string]bool{path.Dir(name): true})
}

// removeBelow removes what is at a path, and what is below it first. It follows no link.
func removeBelow(ctx context.Context, c *conn, at string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fi, err := c.sftp.Lstat(at)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.IsDir() {
		entries, err := c.sftp.ReadDirContext(ctx, at)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if err := removeBelow(ctx, c, path.Join(at, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := c.sftp.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Sweep implements storage.Sweeper: it removes temporary files, also pgBackRest's. Several directories are read at once.
func (s *Store) Sweep(ctx context.Context, dir string, age time.Duration) (int, error) {
	err := ctx.Err()
	if err == nil && dir != "" {
		err = storage.CheckName(dir)
	}
	if err != nil {
		return 0, err
	}
	w := &sweep{s: s, before: sync.OnceValues(func() (time.Time, error) {
		now, err := s.clock(ctx)
		return now.Add(-age), err
	})}
	g, gctx := errgroup.WithContext(ctx)
	w.g, w.slots = g, make(chan struct{}, ahead)
	w.dir(gctx, dir)
	err = g.Wait()
	if cerr := ctx.Err(); cerr != nil {
		err = cerr
	}
	return int(w.removed.Load()), err
}

// sweep is one Sweep. Of a tree it knows the names of the directories that are still to be read.
type sweep struct {
	s       *Store
	before  func() (time.Time, error) // asked for when there is something to compare with it
	g       *errgroup.Group
	slots   chan struct{} // of directories read at once
	removed atomic.Int64
}

// dir sweeps one directory and those below it, in goroutines of the group.
func (w *sweep) dir(ctx context.Context, dir string) {
	w.g.Go(func() error {
		select {
		case w.slots <- struct{}{}:
			defer func() { <-w.slots }()
		case <-ctx.Done():
			return ctx.Err()
		}
		entries, err := w.s.readDir(ctx, dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return w.s.fail("sweep", dir, err)
		}
		for _, e := range entries {
			switch {
			case e.Dir:
				w.dir(ctx, e.Name)
			case storage.IsTemp(e.Name):
				if err := w.file(ctx, e); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// file removes a temporary file that is old enough.
func (w *sweep) file(ctx context.Context, e storage.Info) error {
	before, err := w.before()
	if err != nil {
		return w.s.fail("sweep", e.Name, err)
	}
	if !e.ModTime.Before(before) {
		return nil
	}
	err = w.s.call(ctx, func(c *conn) error { return c.sftp.Remove(w.s.path(e.Name)) })
	if errors.Is(err, fs.ErrNotExist) { // its writer may have finished after all
		return nil
	}
	if err == nil {
		w.removed.Add(1)
	}
	return w.s.fail("remove", e.Name, err)
}

// clock is the server's time, as a new file shows it.
func (s *Store) clock(ctx context.Context) (now time.Time, err error) {
	err = s.call(ctx, func(c *conn) error {
		at := tempName(s.path("clock"))
		f, err := c.sftp.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err == nil {
			now = info.ModTime()
		}
		return errors.Join(err, f.Close(), c.sftp.Remove(at))
	})
	return now, err
}
