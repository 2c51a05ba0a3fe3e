package durable

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// names lists a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// content reads a file or ends the test.
func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestWriteFileReplacesAndSetsModeDespiteUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, c := range []struct {
		data string
		mode fs.FileMode
	}{{"old", 0o600}, {"new content", 0o664}} {
		if err := WriteFile(path, []byte(c.data), c.mode); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := content(t, path); got != c.data || fi.Mode() != c.mode {
			t.Errorf("got %q mode %v, want %q mode %v", got, fi.Mode(), c.data, c.mode)
		}
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
}

func TestNothingVisibleBeforeCommit(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Create(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := content(t, path); got != "old" {
		t.Errorf("before Commit: %q", got)
	}
	list := names(t, dir)
	if len(list) != 2 || !IsTemp(list[0]) || IsTemp(list[1]) {
		t.Errorf("while writing: %v", list)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Commit(), f.Abort()); err != nil {
		t.Errorf("repeated Commit, Abort after Commit: %v", err)
	}
	if got := content(t, path); got != "new" {
		t.Errorf("after Commit: %q", got)
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, ErrAborted) {
		t.Errorf("Write after Commit: %v", err)
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	f, err := Create(filepath.Join(dir, "f"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Abort(), f.Abort()); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); !errors.Is(err, ErrAborted) {
		t.Errorf("Commit after Abort: %v", err)
	}
	if err := f.CommitNoSync(); !errors.Is(err, ErrAborted) {
		t.Errorf("CommitNoSync after Abort: %v", err)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
}

func TestCommitNoSync(t *testing.T) {
	dir := t.TempDir()
	f, err := Create(filepath.Join(dir, "f"), 0o640)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.CommitNoSync(), f.CommitNoSync(), f.Abort()); err != nil {
		t.Fatal(err)
	}
	if got := content(t, filepath.Join(dir, "f")); got != "x" {
		t.Errorf("got %q", got)
	}
	if err := SyncFS(dir); err != nil {
		t.Error(err)
	}
}

// A directory under the final name makes the rename fail: the directory stays, the temporary file goes.
func TestFailedCommitLeavesOldStateAndNoTemp(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "f", "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	err := WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o600)
	if err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "f")) {
		t.Errorf("error should name the file: %v", err)
	}
	if got := names(t, dir); len(got) != 1 || got[0] != "f" {
		t.Errorf("left: %v", got)
	}
}

// A full disk: the write error sticks, Commit refuses, the old content stays.
func TestWriteErrorSticks(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, commit := range []func(*File) error{(*File).Commit, (*File).CommitNoSync} {
		f, err := Create(path, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		good := f.f
		f.f = full
		if _, err := f.Write([]byte("new")); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("Write on a full disk: %v", err)
		}
		f.f = good
		if _, err := f.Write([]byte("new")); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("second Write: %v", err)
		}
		if err := commit(f); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("Commit: %v", err)
		}
	}
	full.Close()
	if got := names(t, dir); len(got) != 1 || content(t, path) != "old" {
		t.Errorf("left %v, content %q", got, content(t, path))
	}
}

func TestReplacesSymlinkInsteadOfFollowing(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "f")); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if content(t, outside) != "precious" || content(t, filepath.Join(dir, "f")) != "x" {
		t.Error("the link was followed")
	}
}

func TestLongNameCanBeReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("n", 255))
	if err := WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCreateRefusesBadBase(t *testing.T) {
	for _, base := range []string{"", ".", "..", "a/b"} {
		dir, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := CreateAt(dir, base, Options{Mode: 0o600}); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q: %v", base, err)
		}
	}
	if _, err := Create(filepath.Join(t.TempDir(), "missing", "f"), 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
}

func TestMkdirAll(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	dir := t.TempDir()
	path := filepath.Join(dir, "a", "b", "c")
	if err := errors.Join(MkdirAll(path, 0o751), MkdirAll(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"a", "a/b", "a/b/c"} {
		fi, err := os.Stat(filepath.Join(dir, p))
		if err != nil || fi.Mode().Perm() != 0o751 {
			t.Errorf("%s: %v %v", p, fi, err)
		}
	}
	file := filepath.Join(dir, "file")
	if err := WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := MkdirAll(file, 0o700); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("file in the way: %v", err)
	}
	if err := MkdirAll(filepath.Join(file, "x"), 0o700); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("file as parent: %v", err)
	}
}

func TestOwner(t *testing.T) {
	if os.Getuid() != 0 {
		return // only root gives files away; the other tests cover a nil owner
	}
	owner := &Owner{UID: 12345, GID: 54321}
	dir := t.TempDir()
	check := func(path string) {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || st.Uid != 12345 || st.Gid != 54321 {
			t.Errorf("%s: %d:%d %v", path, st.Uid, st.Gid, err)
		}
	}
	sub := filepath.Join(dir, "a", "b")
	if err := MkdirAllOwned(sub, 0o750, owner); err != nil {
		t.Fatal(err)
	}
	if err := WriteFileOwned(filepath.Join(sub, "f"), []byte("x"), 0o640, owner); err != nil {
		t.Fatal(err)
	}
	l, err := TryLockOwned(filepath.Join(sub, "l"), nil, owner)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Unlock()
	for _, p := range []string{"a", "a/b", "a/b/f", "a/b/l"} {
		check(filepath.Join(dir, p))
	}
}

func TestRename(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "x"), 0o700), WriteFile(filepath.Join(dir, "f"), []byte("1"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := Rename(filepath.Join(dir, "f"), filepath.Join(dir, "x", "g")); err != nil {
		t.Fatal(err)
	}
	if err := Rename(filepath.Join(dir, "x", "g"), filepath.Join(dir, "x", "h")); err != nil {
		t.Fatal(err)
	}
	if content(t, filepath.Join(dir, "x", "h")) != "1" {
		t.Error("content lost")
	}
	if err := Rename(filepath.Join(dir, "f"), filepath.Join(dir, "g")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if err := SyncDir(filepath.Join(dir, "nowhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("SyncDir of nothing: %v", err)
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "l")
	first, err := TryLock(path, []byte("a longer info: pid 1"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = TryLock(path, []byte("second"))
	var held *LockedError
	if !errors.As(err, &held) || !errors.Is(err, ErrLocked) || !bytes.Equal(held.Info, []byte("a longer info: pid 1")) {
		t.Fatalf("second lock: %v %+v", err, held)
	}
	if !strings.Contains(err.Error(), path) {
		t.Errorf("error should name the file: %v", err)
	}
	if err := errors.Join(first.Unlock(), first.Unlock()); err != nil {
		t.Fatal(err)
	}
	second, err := TryLock(path, []byte("short"))
	if err != nil {
		t.Fatal(err)
	}
	defer second.Unlock()
	if got := content(t, path); got != "short" {
		t.Errorf("info is %q", got)
	}
}

func TestReleaseAtLeast(t *testing.T) {
	for release, want := range map[string]bool{
		"5.8.0": true, "5.7.19": false, "6.1": true, "4.18.0-553.el8_10.x86_64": false,
		"5.15.0-91-generic": true, "10.0-rc1": true, "5.8-rc1": true, "": false, "5": false, "x.y": false,
	} {
		if got := releaseAtLeast(release, 5, 8); got != want {
			t.Errorf("%q: %v", release, got)
		}
	}
}
