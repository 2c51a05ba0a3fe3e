package storage_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/internal/durable"
	"holdfast/internal/storage"
	"holdfast/internal/storage/storagetest"
	"holdfast/test/stores"
)

// mounted is a storage on a file system that refuses links, fsync of directories, and changes of owner and mode.
func mounted(t *testing.T, mount bool) *storage.Posix {
	t.Helper()
	p, err := storage.NewPosix(filepath.Join(stores.Mount(t), "deep/repo"), storage.PosixOptions{Mount: mount,
		Owner: &durable.Owner{UID: os.Getuid() + 1, GID: os.Getgid() + 1}})
	must(t, err)
	t.Cleanup(func() { must(t, p.Close()) })
	return p
}

func TestMountConformance(t *testing.T) {
	storagetest.Run(t, func(t *testing.T) storage.Storage { return mounted(t, true) })
}

// Without the option the file system's refusals are errors: the option is what makes the difference.
func TestMountNeedsTheOption(t *testing.T) {
	if err := storage.WriteAll(t.Context(), mounted(t, false), "a/b", []byte("x")); err == nil {
		t.Error("the poor file system took everything")
	}
}

// The NFS client leaves a file under another name that somebody has open when it is removed.
func TestMountHidesWhatNFSKeeps(t *testing.T) {
	p := mounted(t, true)
	must(t, storage.WriteAll(t.Context(), p, "a/.nfs-notes", []byte("x")), storage.WriteAll(t.Context(), p, "a/b", []byte("x")))
	must(t, os.WriteFile(filepath.Join(p.Root(), "a/.nfs000000000002c1d900000007"), nil, 0o600))
	if got := listed(t, p, "", true); !slices.Equal(got, []string{"a/.nfs-notes", "a/b"}) {
		t.Error(got)
	}
	must(t, p.Remove(t.Context(), "a/b", "a/.nfs-notes"))
	var st unix.Stat_t
	must(t, unix.Lstat(filepath.Join(p.Root(), "a"), &st)) // not empty: it stays, and that is no error
}
