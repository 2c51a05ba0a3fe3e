package durable

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// SyncFS writes everything that the file system holding path has not yet written, and returns write errors that nobody
// has been told of (Linux 5.8 or later, see ReliableSyncFS). One call costs less than thousands of fsyncs. A caller that
// must learn of every error since a certain moment keeps a file open from that moment on and uses SyncFSFile.
func SyncFS(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync file system: %w", err)
	}
	defer f.Close() // opened for reading: nothing to lose
	return SyncFSFile(f)
}

// SyncFSFile is SyncFS for the file system that holds the open file f; it returns errors since f was opened. An error is
// told once per open file: after one, nothing written before may be trusted, whatever a repeated call says.
func SyncFSFile(f *os.File) error {
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync file system of %s: %w", f.Name(), err)
	}
	return nil
}

// ReliableSyncFS reports whether the running kernel returns write errors from syncfs. Before Linux 5.8 it does not
// (syncfs(2), section VERSIONS), and each file needs its own fsync.
func ReliableSyncFS() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	return releaseAtLeast(unix.ByteSliceToString(u.Release[:]), 5, 8)
}

// releaseAtLeast compares a kernel release such as "5.15.0-91-generic"; what it cannot read is too old.
func releaseAtLeast(release string, major, minor int) bool {
	first, rest, _ := strings.Cut(release, ".")
	second := rest
	if i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		second = rest[:i]
	}
	a, err1 := strconv.Atoi(first)
	b, err2 := strconv.Atoi(second)
	if err1 != nil || err2 != nil {
		return false
	}
	return a > major || a == major && b >= minor
}
