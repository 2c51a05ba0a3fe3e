package action

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/internal/tarball"
)

// repoPrefix is where the repository stands in the application tarball: unpacked, pgbackrest --repo1-path can be pointed
// at it.
const repoPrefix = "pgbackrest/"

// tarRepo lets the engine write a backup straight into the application tarball: backups become members as their objects
// are committed, everything else (WAL, archive.info) is the staging repository below. Info files and manifests, which are
// written more than once, stay in memory until flush. Objects larger than a buffer pass through one temporary file per
// worker; there is never a second copy of the backup on disk.
type tarRepo struct {
	storage.Storage // the staging repository
	w               *tarball.Writer
	spool           string // directory for temporary files
	now             func() time.Time

	mu   sync.Mutex
	meta map[string]metaObject
}

// metaObject is an info file or manifest in memory.
type metaObject struct {
	data    []byte
	written time.Time
}

const spillOver = 256 << 10 // bytes of one object that are kept in memory

func newTarRepo(base storage.Storage, w *tarball.Writer, spool string, now func() time.Time) *tarRepo {
	return &tarRepo{Storage: base, w: w, spool: spool, now: now, meta: make(map[string]metaObject)}
}

func isBackup(name string) bool { return strings.HasPrefix(name, "backup/") }

func isMeta(name string) bool {
	base := strings.TrimSuffix(path.Base(name), ".copy")
	return base == "backup.info" || base == "backup.manifest" || strings.Contains(name, "/backup.history/")
}

// Abilities: a tarball has no links to set afterwards.
func (t *tarRepo) Abilities() storage.Abilities {
	return storage.Abilities{Connections: t.Storage.Abilities().Connections, Appends: true}
}

func (t *tarRepo) Create(ctx context.Context, name string, o storage.CreateOptions) (storage.Writer, error) {
	if !isBackup(name) {
		return t.Storage.Create(ctx, name, o)
	}
	if err := errors.Join(storage.CheckName(name), ctx.Err()); err != nil {
		return nil, err
	}
	return &tarObject{t: t, name: name}, nil
}

func (t *tarRepo) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	t.mu.Lock()
	o, ok := t.meta[name]
	t.mu.Unlock()
	if !ok {
		return t.Storage.Open(ctx, name, offset, length)
	}
	data := o.data
	if offset < 0 || offset > int64(len(data)) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: io.ErrUnexpectedEOF}
	}
	data = data[offset:]
	if length >= 0 && length < int64(len(data)) {
		data = data[:length]
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (t *tarRepo) Stat(ctx context.Context, name string) (storage.Info, error) {
	t.mu.Lock()
	o, ok := t.meta[name]
	t.mu.Unlock()
	if ok {
		return storage.Info{Name: name, Size: int64(len(o.data)), ModTime: o.written}, nil
	}
	return t.Storage.Stat(ctx, name)
}

// List shows the staging repository: what went into the tarball can't be read back.
func (t *tarRepo) List(ctx context.Context, dir string, o storage.ListOptions) iter.Seq2[storage.Info, error] {
	return t.Storage.List(ctx, dir, o)
}

// flush writes the info files and manifests into the tarball, backup.info last.
func (t *tarRepo) flush() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	names := make([]string, 0, len(t.meta))
	for n := range t.meta {
		names = append(names, n)
	}
	slices.Sort(names)
	slices.SortStableFunc(names, func(a, b string) int {
		return strings.Count(b, "/") - strings.Count(a, "/")
	})
	for _, n := range names {
		if err := t.w.AddBytes(repoPrefix+n, 0o640, t.meta[n].data); err != nil {
			return err
		}
	}
	return nil
}

// copyObjects puts stored objects of the staging repository into the tarball as they are.
func (t *tarRepo) copyObjects(ctx context.Context, names []string) error {
	for _, name := range names {
		info, err := t.Storage.Stat(ctx, name)
		if err != nil {
			return fmt.Errorf("for the tarball: %w", err)
		}
		r, err := t.Storage.Open(ctx, name, 0, -1)
		if err != nil {
			return fmt.Errorf("for the tarball: %w", err)
		}
		err = t.w.AddStored(repoPrefix+name, 0o640, info.Size, info.ModTime, r)
		if err = errors.Join(err, r.Close()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// takeBackup puts a backup that stands in the staging repository into the tarball, as if it had been written there.
func (t *tarRepo) takeBackup(ctx context.Context, stanza string, label repo.Label) error {
	info := repo.BackupDir(stanza) + "/backup.info"
	names := []string{info, info + ".copy"}
	for o, err := range t.Storage.List(ctx, repo.BackupDir(stanza)+"/"+string(label), storage.ListOptions{Recursive: true}) {
		if err != nil {
			return fmt.Errorf("backup %s for the tarball: %w", label, err)
		}
		if !o.Dir {
			names = append(names, o.Name)
		}
	}
	for _, name := range names {
		if !isMeta(name) {
			if err := t.copyObjects(ctx, []string{name}); err != nil {
				return err
			}
			continue
		}
		b, err := storage.ReadAll(ctx, t.Storage, name, maxOutline)
		if err != nil {
			return fmt.Errorf("backup %s for the tarball: %w", label, err)
		}
		if err := storage.WriteAll(ctx, t, name, b); err != nil {
			return err
		}
	}
	return nil
}

// tarObject collects one object until Commit makes it a member.
type tarObject struct {
	t    *tarRepo
	name string
	buf  bytes.Buffer
	file *os.File // once it is larger than spillOver
	size int64
	done bool
}

func (o *tarObject) Write(p []byte) (int, error) {
	if o.done {
		return 0, fs.ErrClosed
	}
	o.size += int64(len(p))
	if o.file == nil && (o.buf.Len()+len(p) <= spillOver || isMeta(o.name)) {
		return o.buf.Write(p)
	}
	if o.file == nil {
		f, err := os.CreateTemp(o.t.spool, "object-")
		if err != nil {
			return 0, err
		}
		o.file = f
		if _, err := f.Write(o.buf.Bytes()); err != nil {
			return 0, err
		}
		o.buf = bytes.Buffer{}
	}
	return o.file.Write(p)
}

func (o *tarObject) Commit(ctx context.Context) error {
	if o.done {
		return &fs.PathError{Op: "commit", Path: o.name, Err: fs.ErrClosed}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if isMeta(o.name) {
		o.done = true
		o.t.mu.Lock()
		o.t.meta[o.name] = metaObject{o.buf.Bytes(), o.t.now()}
		o.t.mu.Unlock()
		return nil
	}
	var r io.Reader = &o.buf
	if o.file != nil {
		if _, err := o.file.Seek(0, io.SeekStart); err != nil {
			return err
		}
		r = o.file
	}
	err := o.t.w.AddStored(repoPrefix+o.name, 0o640, o.size, o.t.now(), r)
	return errors.Join(err, o.Abort())
}

// Abort drops the collected bytes; after Commit nothing is left to drop.
func (o *tarObject) Abort() error {
	o.done = true
	o.buf = bytes.Buffer{}
	if o.file == nil {
		return nil
	}
	f := o.file
	o.file = nil
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

var _ storage.Storage = (*tarRepo)(nil)
