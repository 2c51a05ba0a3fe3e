// Package storage is the seam between Holdfast and the places that hold a repository: a file system, memory, an object store.
//
// Everything above speaks of named objects. A name is a slash-separated relative path without "." or ".." elements
// ("backup/demo/backup.info"); it is the same on every store, so that a repository may be copied from one to another
// object by object. Adapters implement Storage; decorators (retry, limit, resume, faults) wrap it. storagetest holds the
// suite that every adapter passes.
//
// The contract in one paragraph: an object appears whole or not at all; what Commit has acknowledged survives a power
// cut (unless the writer was Deferred, then Sync makes it so); a cancelled context guarantees no further change; an
// object that is not there is fs.ErrNotExist, always findable with errors.Is. No name is used both for an object and for
// a directory: stores differ in what they make of it.
//
// What is here:
//
//	Posix    a directory of a file system, laid out as pgBackRest lays it out
//	Uploads  the writers of an adapter for an object store: whole objects, or parts at the same time, memory bounded
//	Mem      memory, for tests; knows what a power cut would leave
//	Retry    repeats what failed for a temporary reason     decorators: each takes a Storage and is one,
//	Resume   reopens a broken reader where it stopped       Linker and Sweeper included where the inner
//	Limit    bounds the calls in flight                     store has them
//	Faulty   fails on purpose, at a chosen call
package storage

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"path"
	"strings"
	"time"

	"holdfast/internal/durable"
)

// Info describes one object or, in a non-recursive listing, one directory.
type Info struct {
	Name    string // full name from the storage's root
	Size    int64  // bytes as stored; 0 for a directory
	ModTime time.Time
	Dir     bool // a common prefix: further names follow below Name + "/"
}

// CreateOptions chooses how a new object becomes durable.
type CreateOptions struct {
	// Deferred lets Commit return before the bytes are on stable storage, or have even left this process. Sync must be
	// called before anything that refers to the object is published, and before the context of Commit ends: that
	// context stays in charge until then. Adapters without a cheaper path ignore it.
	Deferred bool
	// Size is the number of bytes that will be written when known, else 0. A hint: adapters must not rely on it.
	Size int64
}

// ListOptions chooses what List yields.
type ListOptions struct {
	// Recursive yields every object below the directory and no directories; otherwise one level, with directories.
	Recursive bool
	// Prefix keeps only what follows the directory's "dir/" with these characters, which may contain a slash only when
	// Recursive. A store that can asks for no more than that: one segment of a directory of 256 costs one line.
	Prefix string
}

// Abilities says what a store can do beyond the interface, so that callers choose their plan and not their type switch.
type Abilities struct {
	Connections int  // how many operations at once are useful; at least 1
	Links       bool // the value also implements Linker
	Sweeps      bool // the value also implements Sweeper
	// Remote says that every call waits for an answer over a network: several at once cost no more time than one.
	Remote bool
	// Appends says that objects go into one stream: once committed they can be neither read, listed, replaced nor removed, by
	// anybody.
	Appends bool
}

// Storage is a flat name space of objects. All methods may be called from many goroutines at once.
type Storage interface {
	// Open returns a reader over length bytes from offset; length < 0 means to the end. A range that reaches past the
	// end is an error when reading (io.ErrUnexpectedEOF), not when opening; so is an offset after the end. An object that
	// ends early is io.ErrUnexpectedEOF, never a quiet io.EOF. A negative offset is an error. Missing: fs.ErrNotExist. The
	// context also governs the reads: once it is cancelled, Read returns its error.
	Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error)

	// Create starts a new object. Nothing is visible under name until Commit; an existing object is then replaced in one
	// step. Directories in between are made as needed. Two writers of one name do not disturb each other; the later Commit
	// stays.
	Create(ctx context.Context, name string, opts CreateOptions) (Writer, error)

	// Stat describes one object. Missing (also: only a directory of that name exists): fs.ErrNotExist.
	Stat(ctx context.Context, name string) (Info, error)

	// List yields what is below dir ("" = root) in byte order of names. A missing directory yields nothing. The first
	// error ends the sequence; so does a cancelled context, with its error. Temporary files of unfinished writers, links to
	// directories and what is neither file nor directory are never listed. Not an atomic view: objects that come or go
	// during the walk may or may not be in it.
	List(ctx context.Context, dir string, opts ListOptions) iter.Seq2[Info, error]

	// Remove deletes objects. A missing object is no error, so that a repeated call is harmless. Directories left empty
	// are removed where the store has directories. When it returns nil, the objects stay away after a power cut. On an
	// error or a cancelled context some objects may be gone and others not.
	Remove(ctx context.Context, names ...string) error

	// Sync makes every object whose Commit returned before the call durable, Deferred ones included. An error means that
	// some of them may be lost, and stays: a later call on the same value cannot take it back.
	Sync(ctx context.Context) error

	// Abilities never fails and never does I/O.
	Abilities() Abilities
}

// Writer receives the bytes of one new object. Exactly one of Commit and Abort takes effect: after Commit, Abort does
// nothing and returns nil, so that "defer w.Abort()" is always right; after Abort, Commit is an error. A Writer is for one
// goroutine. The first error of Write sticks: Commit then fails.
type Writer interface {
	io.Writer
	// Commit publishes the object under its name. On error nothing has been published, or, where only the acknowledgement
	// failed (a lost answer, a directory that did not sync), the whole object has; never a part. A repeated Commit after a
	// successful one does nothing. An adapter whose error says Temporary promises that Commit may be called again.
	Commit(ctx context.Context) error
	// Abort gives up and leaves nothing behind.
	Abort() error
}

// Linker is what a file system offers on top (Abilities.Links). What it makes is durable after Sync.
type Linker interface {
	// MakeDir makes an empty directory and its parents. One that exists is no error.
	MakeDir(ctx context.Context, name string) error
	// Symlink replaces name with a symbolic link to target, in one step. Directories in between are made as needed. The
	// target is not looked at. A link is not an object: List passes over links to directories.
	Symlink(ctx context.Context, target, name string) error
	// Link makes name a second name of the object existing. A name that exists already is replaced. Directories in between
	// are made as needed.
	Link(ctx context.Context, existing, name string) error
	// RemoveTree removes name and everything below it, also what List does not show: empty directories, links (never what
	// they point to), temporary files of writers that died. Missing is no error. When it returns nil, all of it stays away
	// after a power cut.
	RemoveTree(ctx context.Context, name string) error
}

// Sweeper is offered by stores on which a writer that died leaves something that costs space but is not listed
// (Abilities.Sweeps).
type Sweeper interface {
	// Sweep removes, below dir ("" = root), what writers left that were last written to longer ago than age, by the store's
	// own clock, and returns how many. Choose the age so that no living writer can be that old.
	Sweep(ctx context.Context, dir string, age time.Duration) (int, error)
}

// tempSuffix ends the name of every object that is still being written; pgBackRest uses the same
// (design/pgbackrest-format.md, file names and modes), so that each passes over what the other left.
const tempSuffix = ".pgbackrest.tmp"

// IsTemp reports whether the last element of name is that of an unfinished writer's temporary file. Such names are
// never listed and cannot be created.
func IsTemp(name string) bool {
	base := path.Base(name)
	return strings.HasSuffix(base, tempSuffix) || durable.IsTemp(base)
}

// ErrName says that a name is absolute, empty, not clean, climbs out of the storage or is a temporary file's.
var ErrName = errors.New("not a valid object name")

// CheckName returns ErrName (wrapped, with the name) for names that no storage accepts.
func CheckName(name string) error {
	if !fs.ValidPath(name) || name == "." || strings.ContainsRune(name, 0) || IsTemp(name) {
		return &fs.PathError{Op: "name", Path: name, Err: ErrName}
	}
	return nil
}

// checkDir is CheckName for the directory of a List or Sweep, where "" is the root.
func checkDir(dir string) error {
	if dir == "" {
		return nil
	}
	return CheckName(dir)
}

// ReadAll reads one whole object of at most limit bytes; more is an error. For info files and manifests.
func ReadAll(ctx context.Context, s Storage, name string, limit int64) ([]byte, error) {
	r, err := s.Open(ctx, name, 0, -1)
	if err != nil {
		return nil, err
	}
	defer r.Close() // opened for reading: nothing to lose
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	if int64(len(b)) > limit {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("object is larger than the reader allows")}
	}
	return b, nil
}

// WriteAll creates one object from memory, its parts one after the other, and commits it durably.
func WriteAll(ctx context.Context, s Storage, name string, parts ...[]byte) error {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	w, err := s.Create(ctx, name, CreateOptions{Size: int64(size)})
	if err != nil {
		return err
	}
	defer w.Abort() // after Commit it does nothing
	for _, p := range parts {
		if _, err := w.Write(p); err != nil {
			return &fs.PathError{Op: "write", Path: name, Err: err}
		}
	}
	return w.Commit(ctx)
}
