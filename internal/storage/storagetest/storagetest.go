// Package storagetest holds the suite that every storage.Storage passes: one subtest per sentence of the contract in
// package storage. An adapter's test calls Run with a function that returns a fresh, empty storage.
package storagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/storage"
)

// Run runs the suite. open returns a new empty storage at each call; it registers its own cleaning up with t.
func Run(t *testing.T, open func(t *testing.T) storage.Storage) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, storage.Storage)
	}{
		{"what is written can be read", testRoundTrip},
		{"a range is read exactly", testRange},
		{"a range past the end is an unexpected EOF when reading", testPastEnd},
		{"a negative offset is an error", testNegativeOffset},
		{"a missing object is ErrNotExist", testMissing},
		{"a directory is not an object", testDirectoryIsNoObject},
		{"nothing is visible before commit", testInvisible},
		{"a commit replaces in one step", testReplace},
		{"a repeated commit does nothing", testCommitTwice},
		{"abort leaves nothing behind", testAbort},
		{"abort after commit does nothing", testAbortAfterCommit},
		{"commit after abort is an error", testCommitAfterAbort},
		{"two writers of one name do not disturb each other", testTwoWriters},
		{"a deferred object can be read before sync", testDeferred},
		{"stat tells size and time", testStat},
		{"list yields one level with directories", testListFlat},
		{"list yields everything below recursively", testListRecursive},
		{"list keeps to a prefix", testListPrefix},
		{"list can be left early", testListBreak},
		{"list of a missing directory yields nothing", testListMissing},
		{"remove deletes and may be repeated", testRemove},
		{"remove leaves no empty directory", testRemoveDirs},
		{"invalid names are refused", testNames},
		{"a cancelled context changes nothing", testCancelled},
		{"a cancelled context ends a reader", testCancelledReader},
		{"many goroutines may work at once", testConcurrent},
		{"abilities are sound", testAbilities},
		{"links and directories", testLinker},
		{"sweep removes nothing that is published", testSweeper},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) { c.run(t, open(t)) })
	}
}

// put creates an object or ends the test.
func put(t *testing.T, s storage.Storage, name, data string) {
	t.Helper()
	if err := storage.WriteAll(t.Context(), s, name, []byte(data)); err != nil {
		t.Fatalf("write %s: %v", name, err)
	}
}

// get reads a range or ends the test.
func get(t *testing.T, s storage.Storage, name string, offset, length int64) string {
	t.Helper()
	b, err := read(t.Context(), s, name, offset, length)
	if err != nil {
		t.Fatalf("read %s %d+%d: %v", name, offset, length, err)
	}
	return string(b)
}

// read reads a range.
func read(ctx context.Context, s storage.Storage, name string, offset, length int64) ([]byte, error) {
	r, err := s.Open(ctx, name, offset, length)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

// list returns names, directories with a slash behind them.
func list(t *testing.T, s storage.Storage, dir string, recursive bool) []string {
	t.Helper()
	return listed(t, s, dir, storage.ListOptions{Recursive: recursive})
}

func listed(t *testing.T, s storage.Storage, dir string, o storage.ListOptions) []string {
	t.Helper()
	var names []string
	for in, err := range s.List(t.Context(), dir, o) {
		if err != nil {
			t.Fatalf("list %q: %v", dir, err)
		}
		if in.Dir {
			in.Name += "/"
		}
		names = append(names, in.Name)
	}
	return names
}

// expect compares a listing.
func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("listed %q, want %q", got, want)
	}
}

// begin creates a writer with some bytes in it.
func begin(t *testing.T, s storage.Storage, name, data string, o storage.CreateOptions) storage.Writer {
	t.Helper()
	w, err := s.Create(t.Context(), name, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, data); err != nil {
		t.Fatal(err)
	}
	return w
}

func testRoundTrip(t *testing.T, s storage.Storage) {
	big := strings.Repeat("0123456789abcdef", 200_000)
	for name, data := range map[string]string{"empty": "", "a/b/c": "abc", "big": big, "ü/% +&;$": "odd name", strings.Repeat("n", 255): "long"} {
		put(t, s, name, data)
		if got := get(t, s, name, 0, -1); got != data {
			t.Errorf("%q: read %d bytes, want %d", name, len(got), len(data))
		}
	}
}

func testRange(t *testing.T, s storage.Storage) {
	put(t, s, "a", "0123456789")
	for _, c := range []struct {
		offset, length int64
		want           string
	}{{0, 10, "0123456789"}, {3, 4, "3456"}, {3, -1, "3456789"}, {10, -1, ""}, {10, 0, ""}, {4, 0, ""}, {9, 1, "9"}} {
		if got := get(t, s, "a", c.offset, c.length); got != c.want {
			t.Errorf("%d+%d: %q, want %q", c.offset, c.length, got, c.want)
		}
	}
}

func testPastEnd(t *testing.T, s storage.Storage) {
	put(t, s, "a", "0123456789")
	for _, c := range []struct {
		offset, length int64
		want           string
	}{{0, 11, "0123456789"}, {8, 5, "89"}, {10, 1, ""}, {11, 1, ""}, {11, -1, ""}, {5, math.MaxInt64, "56789"}} {
		b, err := read(t.Context(), s, "a", c.offset, c.length)
		if !errors.Is(err, io.ErrUnexpectedEOF) || string(b) != c.want {
			t.Errorf("%d+%d: %q, %v", c.offset, c.length, b, err)
		}
	}
}

func testNegativeOffset(t *testing.T, s storage.Storage) {
	put(t, s, "a", "x")
	for _, length := range []int64{-1, 0, 1, 5} {
		if r, err := s.Open(t.Context(), "a", -1, length); err == nil {
			t.Error("no error for length", length, r.Close())
		}
	}
}

func testMissing(t *testing.T, s storage.Storage) {
	check := func(name string) {
		t.Helper()
		if _, err := s.Open(t.Context(), name, 0, -1); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open %s: %v", name, err)
		}
		if _, err := s.Stat(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Stat %s: %v", name, err)
		}
	}
	check("before/anything/was/written")
	put(t, s, "a/b", "x")
	for _, name := range []string{"c", "a/c", "x/y/z", "a/b/c", "a/b/c/d"} {
		check(name)
	}
}

func testDirectoryIsNoObject(t *testing.T, s storage.Storage) {
	put(t, s, "a/b/c", "x")
	for _, name := range []string{"a", "a/b"} {
		if _, err := s.Stat(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Stat: %v", err)
		}
		if _, err := read(t.Context(), s, name, 0, -1); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open: %v", err)
		}
		if err := s.Remove(t.Context(), name); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	if got := get(t, s, "a/b/c", 0, -1); got != "x" {
		t.Errorf("got %q", got)
	}
}

func testInvisible(t *testing.T, s storage.Storage) {
	w := begin(t, s, "d/a", "new", storage.CreateOptions{})
	defer w.Abort() // after Commit it does nothing
	if _, err := s.Stat(t.Context(), "d/a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat before Commit: %v", err)
	}
	expect(t, list(t, s, "", true))
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect(t, list(t, s, "", true), "d/a")
}

func testReplace(t *testing.T, s storage.Storage) {
	put(t, s, "a", "a longer old content")
	w := begin(t, s, "a", "new", storage.CreateOptions{Size: 99}) // the size is only a hint
	defer w.Abort()                                               // after Commit it does nothing
	if got := get(t, s, "a", 0, -1); got != "a longer old content" {
		t.Errorf("before Commit: %q", got)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := get(t, s, "a", 0, -1); got != "new" {
		t.Errorf("after Commit: %q", got)
	}
}

func testCommitTwice(t *testing.T, s storage.Storage) {
	for _, deferred := range []bool{false, true} {
		w := begin(t, s, "a", "first", storage.CreateOptions{Deferred: deferred})
		if err := w.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		put(t, s, "a", "second")
		if err := w.Commit(t.Context()); err != nil {
			t.Errorf("repeated Commit: %v", err)
		}
		if got := get(t, s, "a", 0, -1); got != "second" {
			t.Errorf("got %q", got)
		}
	}
}

func testAbort(t *testing.T, s storage.Storage) {
	put(t, s, "a", "old")
	for _, name := range []string{"a", "b"} {
		w := begin(t, s, name, "new", storage.CreateOptions{})
		if err := errors.Join(w.Abort(), w.Abort()); err != nil {
			t.Errorf("Abort: %v", err)
		}
		if _, err := w.Write([]byte("x")); err == nil {
			t.Error("Write after Abort succeeds")
		}
	}
	expect(t, list(t, s, "", true), "a")
	if got := get(t, s, "a", 0, -1); got != "old" {
		t.Errorf("got %q", got)
	}
}

func testAbortAfterCommit(t *testing.T, s storage.Storage) {
	w := begin(t, s, "a", "x", storage.CreateOptions{})
	if err := errors.Join(w.Commit(t.Context()), w.Abort(), w.Abort()); err != nil {
		t.Error(err)
	}
	if got := get(t, s, "a", 0, -1); got != "x" {
		t.Errorf("got %q", got)
	}
}

func testCommitAfterAbort(t *testing.T, s storage.Storage) {
	for _, deferred := range []bool{false, true} {
		w := begin(t, s, "a", "x", storage.CreateOptions{Deferred: deferred})
		if err := w.Abort(); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(t.Context()); err == nil {
			t.Error("Commit after Abort succeeds")
		}
	}
	expect(t, list(t, s, "", true))
}

func testTwoWriters(t *testing.T, s storage.Storage) {
	one := begin(t, s, "a", "one", storage.CreateOptions{})
	two := begin(t, s, "a", "two", storage.CreateOptions{})
	three := begin(t, s, "a", "three", storage.CreateOptions{})
	for _, step := range []error{two.Commit(t.Context()), three.Abort(), one.Commit(t.Context())} {
		if step != nil {
			t.Fatal(step)
		}
	}
	if got := get(t, s, "a", 0, -1); got != "one" {
		t.Errorf("got %q", got)
	}
}

func testDeferred(t *testing.T, s storage.Storage) {
	w := begin(t, s, "x/a", "deferred", storage.CreateOptions{Deferred: true})
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, s, "x/b", "not")
	for range 2 {
		if got := get(t, s, "x/a", 0, -1); got != "deferred" {
			t.Errorf("got %q", got)
		}
		if err := s.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func testStat(t *testing.T, s storage.Storage) {
	put(t, s, "a/b", "12345")
	in, err := s.Stat(t.Context(), "a/b")
	if err != nil {
		t.Fatal(err)
	}
	if in.Name != "a/b" || in.Size != 5 || in.Dir || in.ModTime.IsZero() {
		t.Errorf("%+v", in)
	}
	for li, err := range s.List(t.Context(), "a", storage.ListOptions{}) {
		if err != nil || li.Name != in.Name || li.Size != in.Size || !li.ModTime.Equal(in.ModTime) || li.Dir {
			t.Errorf("listed %+v %v, stat %+v", li, err, in)
		}
	}
}

// fill creates objects whose order differs between a walk of directories and the order of names.
func fill(t *testing.T, s storage.Storage) {
	t.Helper()
	for _, name := range []string{"d/z", "d/a/2", "d/a/1", "d/a.x", "d/a-x", "d/B", "d/a0", "d/b/c/d", "e/f", "dd"} {
		put(t, s, name, name)
	}
}

func testListFlat(t *testing.T, s storage.Storage) {
	fill(t, s)
	expect(t, list(t, s, "", false), "d/", "dd", "e/")
	expect(t, list(t, s, "d", false), "d/B", "d/a/", "d/a-x", "d/a.x", "d/a0", "d/b/", "d/z")
}

func testListRecursive(t *testing.T, s storage.Storage) {
	fill(t, s)
	expect(t, list(t, s, "d", true), "d/B", "d/a-x", "d/a.x", "d/a/1", "d/a/2", "d/a0", "d/b/c/d", "d/z")
	all := list(t, s, "", true)
	if len(all) != 10 || !slices.IsSorted(all) {
		t.Errorf("from the root: %q", all)
	}
}

func testListPrefix(t *testing.T, s storage.Storage) {
	fill(t, s)
	for _, c := range []struct {
		dir, prefix string
		recursive   bool
		want        []string
	}{
		{"d", "a", false, []string{"d/a/", "d/a-x", "d/a.x", "d/a0"}},
		{"d", "a", true, []string{"d/a-x", "d/a.x", "d/a/1", "d/a/2", "d/a0"}},
		{"d", "a/", true, []string{"d/a/1", "d/a/2"}},
		{"d", "a/1", true, []string{"d/a/1"}},
		{"d", "b/c/", true, []string{"d/b/c/d"}},
		{"", "d", false, []string{"d/", "dd"}},
		{"", "d/a.", true, []string{"d/a.x"}},
		{"d", "c", true, nil},
		{"d", "aa", false, nil},
		{"d/a/1", "", false, nil},
	} {
		expect(t, listed(t, s, c.dir, storage.ListOptions{Recursive: c.recursive, Prefix: c.prefix}), c.want...)
	}
}

func testListBreak(t *testing.T, s storage.Storage) {
	fill(t, s)
	for _, recursive := range []bool{false, true} {
		n := 0
		for _, err := range s.List(t.Context(), "d", storage.ListOptions{Recursive: recursive}) {
			if err != nil {
				t.Fatal(err)
			}
			if n++; n == 4 {
				break
			}
		}
		if n != 4 {
			t.Errorf("saw %d", n)
		}
	}
}

func testListMissing(t *testing.T, s storage.Storage) {
	expect(t, list(t, s, "", true))
	expect(t, list(t, s, "nothing/here", false))
	put(t, s, "a/b", "x")
	expect(t, list(t, s, "a/b", true)) // an object is not a directory
	expect(t, list(t, s, "a/bb", false))
}

func testRemove(t *testing.T, s storage.Storage) {
	if err := s.Remove(t.Context(), "from/an/empty/storage"); err != nil {
		t.Error(err)
	}
	fill(t, s)
	for range 2 {
		if err := s.Remove(t.Context(), "d/a/1", "e/f", "missing", "d/a/2", "d/x/y", "d/z", "dd/below-an-object"); err != nil {
			t.Error(err)
		}
	}
	if err := s.Remove(t.Context()); err != nil {
		t.Errorf("nothing to remove: %v", err)
	}
	expect(t, list(t, s, "", true), "d/B", "d/a-x", "d/a.x", "d/a0", "d/b/c/d", "dd")
}

func testRemoveDirs(t *testing.T, s storage.Storage) {
	fill(t, s)
	if err := s.Remove(t.Context(), "d/b/c/d", "d/a/1", "e/f"); err != nil {
		t.Fatal(err)
	}
	expect(t, list(t, s, "", false), "d/", "dd")
	expect(t, list(t, s, "d", false), "d/B", "d/a/", "d/a-x", "d/a.x", "d/a0", "d/z")
	if err := s.Remove(t.Context(), list(t, s, "", true)...); err != nil {
		t.Fatal(err)
	}
	expect(t, list(t, s, "", false))
	put(t, s, "d/again", "x")
	expect(t, list(t, s, "", true), "d/again")
}

func testNames(t *testing.T, s storage.Storage) {
	put(t, s, "ok", "x")
	for _, name := range []string{"", ".", "..", "/a", "a/", "a//b", "./a", "a/../b", "../a", "a\x00b", "a.pgbackrest.tmp", ".a.holdfast-tmp-1"} {
		_, err1 := s.Open(t.Context(), name, 0, -1)
		_, err2 := s.Create(t.Context(), name, storage.CreateOptions{})
		_, err3 := s.Stat(t.Context(), name)
		err4 := s.Remove(t.Context(), "ok", name)
		for i, err := range []error{err1, err2, err3, err4} {
			if !errors.Is(err, storage.ErrName) {
				t.Errorf("%q, call %d: %v", name, i, err)
			}
		}
		if name == "" {
			continue // the root
		}
		for _, err := range s.List(t.Context(), name, storage.ListOptions{}) {
			if !errors.Is(err, storage.ErrName) {
				t.Errorf("List %q: %v", name, err)
			}
		}
	}
	expect(t, list(t, s, "", true), "ok")
}

func testCancelled(t *testing.T, s storage.Storage) {
	put(t, s, "a", "old")
	ctx, cancel := context.WithCancel(t.Context())
	w, err := s.Create(ctx, "a", storage.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wd, err := s.Create(ctx, "b", storage.CreateOptions{Deferred: true})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	_, err1 := s.Open(ctx, "a", 0, -1)
	_, err2 := s.Create(ctx, "c", storage.CreateOptions{})
	_, err3 := s.Stat(ctx, "a")
	errs := []error{err1, err2, err3, w.Commit(ctx), wd.Commit(ctx), s.Remove(ctx, "a"), s.Sync(ctx)}
	for i, err := range errs {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	seen := errors.New("no entry")
	for _, seen = range s.List(ctx, "", storage.ListOptions{}) {
		break
	}
	if !errors.Is(seen, context.Canceled) {
		t.Errorf("List: %v", seen)
	}
	if err := errors.Join(w.Abort(), wd.Abort()); err != nil {
		t.Errorf("Abort after cancel: %v", err)
	}
	expect(t, list(t, s, "", true), "a")
	if got := get(t, s, "a", 0, -1); got != "old" {
		t.Errorf("got %q", got)
	}
}

func testCancelledReader(t *testing.T, s storage.Storage) {
	put(t, s, "a", "0123456789")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := s.Open(ctx, "a", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() // opened for reading: nothing to lose
	if _, err := io.ReadFull(r, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if n, err := r.Read(make([]byte, 3)); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("%d, %v", n, err)
	}
}

// testConcurrent also makes and empties directories all the time, so that creating and removing them race.
func testConcurrent(t *testing.T, s storage.Storage) {
	g, ctx := errgroup.WithContext(t.Context())
	for worker := range 8 {
		g.Go(func() error {
			for i := range 20 {
				name := fmt.Sprintf("shared/dir/w%d/%d", worker, i)
				data := bytes.Repeat([]byte{byte(i)}, 1000)
				w, err := s.Create(ctx, name, storage.CreateOptions{Deferred: worker%2 == 0})
				if err != nil {
					return err
				}
				defer w.Abort() // after Commit it does nothing
				if _, err := w.Write(data); err != nil {
					return err
				}
				if err := w.Commit(ctx); err != nil {
					return err
				}
				got, err := read(ctx, s, name, 0, -1)
				if err != nil || !bytes.Equal(got, data) {
					return fmt.Errorf("%s: %d bytes, %w", name, len(got), err)
				}
				for _, err := range s.List(ctx, "shared", storage.ListOptions{Recursive: true}) {
					if err != nil {
						return err
					}
				}
				if i%2 == 0 {
					err = s.Remove(ctx, name)
				}
				if err != nil {
					return err
				}
			}
			return s.Sync(ctx)
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := list(t, s, "", true); len(got) != 8*10 {
		t.Errorf("%d objects left", len(got))
	}
}

func testAbilities(t *testing.T, s storage.Storage) {
	a := s.Abilities()
	if a.Connections < 1 {
		t.Errorf("connections: %d", a.Connections)
	}
	if _, ok := s.(storage.Linker); a.Links && !ok {
		t.Error("says Links, is no Linker")
	}
	if _, ok := s.(storage.Sweeper); a.Sweeps && !ok {
		t.Error("says Sweeps, is no Sweeper")
	}
}

func testLinker(t *testing.T, s storage.Storage) {
	l, ok := s.(storage.Linker)
	if !s.Abilities().Links {
		if ok && !errors.Is(l.MakeDir(t.Context(), "d"), errors.ErrUnsupported) {
			t.Error("a store without links should say errors.ErrUnsupported")
		}
		return
	}
	put(t, s, "b/full/data", "x")
	for range 2 {
		for _, err := range []error{
			l.MakeDir(t.Context(), "b/full/empty/dir"), l.Symlink(t.Context(), "full", "b/latest"),
			l.Symlink(t.Context(), "../outside", "b/full/new/out"),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	expect(t, list(t, s, "b", true), "b/full/data")
	expect(t, list(t, s, "b/full", false), "b/full/data", "b/full/empty/", "b/full/new/")
	if got := get(t, s, "b/full/data", 0, -1); got != "x" {
		t.Errorf("got %q", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range []error{l.MakeDir(ctx, "x"), l.Symlink(ctx, "x", "y"), l.RemoveTree(ctx, "b")} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	}
	for _, err := range []error{l.MakeDir(t.Context(), "../x"), l.Symlink(t.Context(), "x", ""), l.RemoveTree(t.Context(), "")} {
		if !errors.Is(err, storage.ErrName) {
			t.Errorf("bad name: %v", err)
		}
	}
	if err := l.RemoveTree(t.Context(), "b/latest"); err != nil {
		t.Fatal(err)
	}
	expect(t, list(t, s, "b", true), "b/full/data") // the link went, not what it pointed to
	put(t, s, "c", "stays")
	for range 2 {
		if err := l.RemoveTree(t.Context(), "b/full"); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, list(t, s, "", false), "c")
}

func testSweeper(t *testing.T, s storage.Storage) {
	sw, ok := s.(storage.Sweeper)
	if !s.Abilities().Sweeps {
		if _, err := sweep(t, sw, ok); ok && !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("a store without sweeping should say errors.ErrUnsupported: %v", err)
		}
		return
	}
	put(t, s, "a/b", "x")
	w := begin(t, s, "a/c", "unfinished", storage.CreateOptions{})
	if n, err := sw.Sweep(t.Context(), "", time.Hour); n != 0 || err != nil {
		t.Errorf("a living writer was swept: %d, %v", n, err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := sw.Sweep(t.Context(), "", -time.Hour); n != 0 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	expect(t, list(t, s, "", true), "a/b", "a/c")
}

// sweep calls Sweep if there is one.
func sweep(t *testing.T, sw storage.Sweeper, ok bool) (int, error) {
	if !ok {
		return 0, nil
	}
	return sw.Sweep(t.Context(), "", 0)
}
