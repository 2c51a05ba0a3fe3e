package storage_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/durable"
	"holdfast/internal/storage"
)

// tree returns everything below dir, with what List hides.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != dir {
			all = append(all, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// must ends the test on any error.
func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// listed returns the names that a listing yields.
func listed(t *testing.T, s storage.Storage, dir string, recursive bool) []string {
	t.Helper()
	var names []string
	for in, err := range s.List(t.Context(), dir, storage.ListOptions{Recursive: recursive}) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, in.Name)
	}
	return names
}

// A mistyped path or a disk that is not mounted must not turn into an empty repository by being looked at.
func TestPosixReadingMakesNothing(t *testing.T) {
	p := posix(t)
	if _, err := p.Stat(t.Context(), "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	must(t, p.Remove(t.Context(), "a"), p.Sync(t.Context()), p.RemoveTree(t.Context(), "a"))
	if got := listed(t, p, "", true); len(got) != 0 {
		t.Error(got)
	}
	if _, err := os.Stat(filepath.Dir(p.Root())); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading has made a directory: %v", err)
	}
}

func TestPosixModesAndOwnerDespiteUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	o := storage.PosixOptions{FileMode: 0o664, DirMode: 0o775}
	if os.Getuid() == 0 {
		o.Owner = &durable.Owner{UID: 12345, GID: 54321}
	}
	root := filepath.Join(t.TempDir(), "repo")
	p, err := storage.NewPosix(root, o)
	must(t, err)
	must(t, storage.WriteAll(t.Context(), p, "a/b/c", nil), p.MakeDir(t.Context(), "x/y"), p.Symlink(t.Context(), "y", "x/l"), p.Close())
	for _, name := range append(tree(t, root), "") {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(root, name), &st))
		want := uint32(0o775)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			want = 0o664
		case unix.S_IFLNK:
			want = 0o777
		}
		if st.Mode&0o7777 != want || o.Owner != nil && (st.Uid != 12345 || st.Gid != 54321) {
			t.Errorf("%q: mode %o owner %d:%d", name, st.Mode, st.Uid, st.Gid)
		}
	}
}

// TestPosixOwnsWhatWasEmpty: an empty directory that somebody made for a repository becomes its owner's with the first object,
// or archive-push, which is that user, could not open it. One with something in it, and one that is only read, stay as they are.
func TestPosixOwnsWhatWasEmpty(t *testing.T) {
	if os.Getuid() != 0 {
		return // nobody else can give a directory away
	}
	for _, c := range []struct {
		inside, write bool
		want          uint32
	}{{false, true, 12345}, {true, true, 0}, {false, false, 0}} {
		root := t.TempDir()
		if c.inside {
			must(t, os.WriteFile(filepath.Join(root, "file"), nil, 0o600))
		}
		p, err := storage.NewPosix(root, storage.PosixOptions{Owner: &durable.Owner{UID: 12345, GID: 54321}})
		must(t, err)
		listed(t, p, "", true)
		if c.write {
			must(t, storage.WriteAll(t.Context(), p, "a/b", nil))
		}
		must(t, p.Close())
		var st unix.Stat_t
		must(t, unix.Stat(root, &st))
		if st.Uid != c.want {
			t.Errorf("%+v: the directory is %d's", c, st.Uid)
		}
	}
}

// hostile lays links that lead out into a repository.
func hostile(t *testing.T) (p *storage.Posix, outside string) {
	t.Helper()
	p, outside = posix(t), t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("precious"), 0o600), storage.WriteAll(t.Context(), p, "in/side", []byte("x")))
	must(t, os.Symlink(outside, filepath.Join(p.Root(), "abs")), os.Symlink("../../../"+filepath.Base(outside), filepath.Join(p.Root(), "rel")),
		os.Symlink(filepath.Join(outside, "secret"), filepath.Join(p.Root(), "file")), os.Symlink("in", filepath.Join(p.Root(), "inside")),
		os.Symlink("in/side", filepath.Join(p.Root(), "object")))
	return p, outside
}

func TestPosixLinksCannotLeadOut(t *testing.T) {
	p, outside := hostile(t)
	for _, name := range []string{"abs/secret", "rel/secret", "file"} {
		if _, err := p.Open(t.Context(), name, 0, -1); err == nil {
			t.Errorf("Open %s succeeds", name)
		}
	}
	for _, dir := range []string{"abs", "rel"} {
		if err := storage.WriteAll(t.Context(), p, dir+"/new", []byte("x")); err == nil {
			t.Errorf("Create below %s succeeds", dir)
		}
		if err := p.Remove(t.Context(), dir+"/secret"); err == nil {
			t.Errorf("Remove below %s succeeds", dir)
		}
		if err := p.MakeDir(t.Context(), dir+"/sub"); err == nil {
			t.Errorf("MakeDir below %s succeeds", dir)
		}
		must(t, p.RemoveTree(t.Context(), dir))
	}
	must(t, storage.WriteAll(t.Context(), p, "file", []byte("replaces the link")))
	if got := tree(t, outside); !slices.Equal(got, []string{"secret"}) {
		t.Errorf("outside is now %v", got)
	}
	if b, err := os.ReadFile(filepath.Join(outside, "secret")); err != nil || string(b) != "precious" {
		t.Errorf("outside: %q %v", b, err)
	}
}

func TestPosixListsOnlyObjects(t *testing.T) {
	p, _ := hostile(t)
	must(t, unix.Mkfifo(filepath.Join(p.Root(), "fifo"), 0o600))
	l, err := net.Listen("unix", filepath.Join(p.Root(), "sock"))
	must(t, err)
	defer l.Close()
	for _, temp := range []string{"x.gz.pgbackrest.tmp", ".x.holdfast-tmp-12"} {
		must(t, os.WriteFile(filepath.Join(p.Root(), temp), nil, 0o600))
	}
	if got := listed(t, p, "", true); !slices.Equal(got, []string{"in/side", "object"}) {
		t.Errorf("recursive: %v", got)
	}
	if got := listed(t, p, "", false); !slices.Equal(got, []string{"in", "object"}) {
		t.Errorf("flat: %v", got)
	}
	if _, err := p.Open(t.Context(), "fifo", 0, -1); err == nil {
		t.Error("a FIFO was opened as an object")
	}
}

func TestPosixSweepTakesOnlyOldTemporaries(t *testing.T) {
	p := posix(t)
	must(t, storage.WriteAll(t.Context(), p, "a/b", []byte("x")))
	old := time.Now().Add(-48 * time.Hour)
	for _, name := range []string{"a/dead.gz.pgbackrest.tmp", "a/.dead.holdfast-tmp-1", "a/young.pgbackrest.tmp"} {
		full := filepath.Join(p.Root(), name)
		must(t, os.WriteFile(full, nil, 0o600))
		if !strings.Contains(name, "young") {
			must(t, os.Chtimes(full, old, old))
		}
	}
	must(t, os.Chtimes(filepath.Join(p.Root(), "a/b"), old, old))
	n, err := p.Sweep(t.Context(), "", 24*time.Hour)
	if n != 2 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	if got := tree(t, p.Root()); !slices.Equal(got, []string{"a", "a/b", "a/young.pgbackrest.tmp"}) {
		t.Errorf("left %v", got)
	}
}

func TestPosixRemoveTreeTakesWhatIsNotListed(t *testing.T) {
	p, outside := hostile(t)
	must(t, p.MakeDir(t.Context(), "b/1/empty"), p.Symlink(t.Context(), outside, "b/1/pg_tblspc/1"), storage.WriteAll(t.Context(), p, "b/1/f", nil))
	must(t, os.WriteFile(filepath.Join(p.Root(), "b/1/x.pgbackrest.tmp"), nil, 0o600))
	must(t, p.Remove(t.Context(), "b/1/f"), p.RemoveTree(t.Context(), "b/1"))
	for _, name := range tree(t, p.Root()) {
		if strings.HasPrefix(name, "b") {
			t.Errorf("left %s", name)
		}
	}
	if got := tree(t, outside); len(got) != 1 {
		t.Errorf("outside: %v", got)
	}
}

func TestPosixFailuresLeaveNoTemporaries(t *testing.T) {
	p := posix(t)
	must(t, storage.WriteAll(t.Context(), p, "a/b", []byte("x")))
	if err := storage.WriteAll(t.Context(), p, "a", []byte("a directory is in the way")); err == nil {
		t.Error("an object replaced a directory")
	}
	if err := storage.WriteAll(t.Context(), p, "a/b/c", []byte("an object is in the way")); err == nil || !strings.Contains(err.Error(), p.Root()) {
		t.Errorf("want an error with the full path, got %v", err)
	}
	if got := tree(t, p.Root()); !slices.Equal(got, []string{"a", "a/b"}) {
		t.Errorf("left %v", got)
	}
}

// Another process (expire) removes the directory after this one has seen it: Create makes it again.
func TestPosixDirectoryVanishes(t *testing.T) {
	p := posix(t)
	for _, deferred := range []bool{false, true} {
		must(t, storage.WriteAll(t.Context(), p, "a/b/one", nil), os.RemoveAll(filepath.Join(p.Root(), "a")))
		w, err := p.Create(t.Context(), "a/b/two", storage.CreateOptions{Deferred: deferred})
		must(t, err)
		must(t, w.Commit(t.Context()), p.Sync(t.Context()))
		if got := listed(t, p, "", true); !slices.Equal(got, []string{"a/b/two"}) {
			t.Errorf("got %v", got)
		}
	}
}

// Whatever CheckName lets through stays below the root, and is listed under its own name.
func FuzzPosixName(f *testing.F) {
	for _, seed := range []string{"a", "a/b/c", "../x", "/etc/passwd", "a/../../x", "a//b", "a\x00b", ".", "..", "...", "a/..b", "\xff\xfe", "a\\..\\b",
		"x.pgbackrest.tmp", ".x.holdfast-tmp-1", "x.pgbackrest.tmp/y", "latest/../../x", "abs/x", " ", "a\nb"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		base := t.TempDir()
		p, err := storage.NewPosix(filepath.Join(base, "repo"), storage.PosixOptions{})
		must(t, err)
		defer p.Close()
		err = storage.WriteAll(t.Context(), p, name, []byte("x"))
		if entries, _ := os.ReadDir(base); len(entries) > 1 || len(entries) == 1 && entries[0].Name() != "repo" {
			t.Fatalf("%q wrote outside: %v", name, entries)
		}
		if err != nil {
			if storage.CheckName(name) == nil && !errors.Is(err, unix.ENAMETOOLONG) {
				t.Fatalf("%q: %v", name, err)
			}
			return
		}
		if got := listed(t, p, "", true); !slices.Equal(got, []string{name}) {
			t.Fatalf("wrote %q, listed %q", name, got)
		}
	})
}

func BenchmarkPosixDeferred(b *testing.B) {
	p, err := storage.NewPosix(b.TempDir(), storage.PosixOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	data := make([]byte, 8192)
	name := []byte("backup/demo/20260101-000000F/pg_data/base/16384/00000")
	for i := 0; b.Loop(); i++ {
		for j, n := len(name)-1, i; j >= len(name)-5; j, n = j-1, n/10 {
			name[j] = byte('0' + n%10)
		}
		w, err := p.Create(b.Context(), string(name), storage.CreateOptions{Deferred: true})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			b.Fatal(err)
		}
		if err := w.Commit(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func TestPosixLink(t *testing.T) {
	p, err := storage.NewPosix(filepath.Join(t.TempDir(), "repo"), storage.PosixOptions{})
	must(t, err)
	defer p.Close()
	must(t, storage.WriteAll(t.Context(), p, "a/b", []byte("one")), storage.WriteAll(t.Context(), p, "c/d/e", []byte("two")))
	for range 2 { // a second time it is one already
		must(t, p.Link(t.Context(), "a/b", "c/d/e"))
	}
	a, err := os.Stat(filepath.Join(p.Root(), "a/b"))
	must(t, err)
	b, err := os.Stat(filepath.Join(p.Root(), "c/d/e"))
	must(t, err)
	if !os.SameFile(a, b) {
		t.Error("c/d/e is not the same file as a/b")
	}
	if got := tree(t, p.Root()); len(got) != 5 {
		t.Errorf("left behind: %q", got)
	}
	if err := p.Link(t.Context(), "a/missing", "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("link of a missing object: %v", err)
	}
}
