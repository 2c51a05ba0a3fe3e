package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrEnded is what a Writer of an adapter returns once it has been committed or aborted.
var ErrEnded = errors.New("writer is already committed or given up")

// Mem keeps objects in memory, for tests. It remembers which of them a power cut would leave (CrashClone).
type Mem struct {
	now func() time.Time

	mu      sync.Mutex
	live    map[string]memObject // what calls see
	durable map[string]memObject // what a power cut leaves
}

// memObject is one object; data is never changed once it is in a map.
type memObject struct {
	data  []byte
	mtime time.Time
}

// NewMem returns an empty storage. The clock stamps objects; nil is time.Now.
func NewMem(now func() time.Time) *Mem {
	if now == nil {
		now = time.Now
	}
	return &Mem{now: now, live: map[string]memObject{}, durable: map[string]memObject{}}
}

// CrashClone returns what a power cut now would leave: objects committed durably, and Deferred ones as of the last Sync.
// Where a Deferred object has replaced a durable one, the old one is back.
func (m *Mem) CrashClone() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Mem{now: m.now, live: maps.Clone(m.durable), durable: maps.Clone(m.durable)}
}

// CrashCloneTorn is the other thing that a power cut may leave: every Deferred object since the last Sync is there under
// its name with only the first half of its bytes.
func (m *Mem) CrashCloneTorn() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	left := maps.Clone(m.durable)
	for name, o := range m.live {
		if d, ok := m.durable[name]; !ok || !sameObject(d, o) {
			left[name] = memObject{data: o.data[:len(o.data)/2], mtime: o.mtime}
		}
	}
	return &Mem{now: m.now, live: left, durable: maps.Clone(left)}
}

// sameObject reports whether two entries are one and the same committed object.
func sameObject(a, b memObject) bool {
	return a.mtime.Equal(b.mtime) && bytes.Equal(a.data, b.data)
}

// Names returns the names of all objects, sorted.
func (m *Mem) Names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.live))
}

// Abilities implements Storage.
func (m *Mem) Abilities() Abilities { return Abilities{Connections: posixConnections} }

// get finds one object.
func (m *Mem) get(op, name string) (memObject, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.live[name]
	if !ok {
		return o, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	return o, nil
}

// Open implements Storage.
func (m *Mem) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := check(ctx, name); err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errNegativeOffset}
	}
	o, err := m.get("open", name)
	if err != nil {
		return nil, err
	}
	r := &memReader{ctx: ctx, eof: io.EOF}
	size := int64(len(o.data))
	if offset > size || length > size-offset {
		r.eof = io.ErrUnexpectedEOF
	}
	r.data = o.data[min(offset, size):]
	if length >= 0 {
		r.data = r.data[:min(length, int64(len(r.data)))]
	}
	return r, nil
}

// memReader reads one range of one object.
type memReader struct {
	ctx  context.Context
	data []byte
	eof  error // what comes after data
}

// Read implements io.Reader.
func (r *memReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	if len(r.data) == 0 {
		return 0, r.eof
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}

// Close implements io.Closer.
func (r *memReader) Close() error { return nil }

// Create implements Storage.
func (m *Mem) Create(ctx context.Context, name string, opts CreateOptions) (Writer, error) {
	if err := check(ctx, name); err != nil {
		return nil, err
	}
	return &memWriter{m: m, name: name, deferred: opts.Deferred}, nil
}

// memWriter collects one object.
type memWriter struct {
	m         *Mem
	name      string
	deferred  bool
	buf       bytes.Buffer
	committed bool
	ended     bool
}

// Write implements io.Writer.
func (w *memWriter) Write(p []byte) (int, error) {
	if w.ended {
		return 0, fmt.Errorf("write %s: %w", w.name, ErrEnded)
	}
	return w.buf.Write(p)
}

// Commit implements Writer.
func (w *memWriter) Commit(ctx context.Context) error {
	if w.committed {
		return nil
	}
	if w.ended {
		return fmt.Errorf("commit %s: %w", w.name, ErrEnded)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	w.ended, w.committed = true, true
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	o := memObject{data: w.buf.Bytes(), mtime: w.m.now()}
	w.m.live[w.name] = o
	if !w.deferred {
		w.m.durable[w.name] = o
	}
	return nil
}

// Abort implements Writer.
func (w *memWriter) Abort() error {
	w.ended = true
	return nil
}

// Stat implements Storage.
func (m *Mem) Stat(ctx context.Context, name string) (Info, error) {
	if err := check(ctx, name); err != nil {
		return Info{}, err
	}
	o, err := m.get("stat", name)
	if err != nil {
		return Info{}, err
	}
	return Info{Name: name, Size: int64(len(o.data)), ModTime: o.mtime}, nil
}

// List implements Storage. It yields a snapshot.
func (m *Mem) List(ctx context.Context, dir string, opts ListOptions) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := checkDir(dir); err != nil {
			yield(Info{}, err)
			return
		}
		for _, in := range m.snapshot(dir, opts) {
			if err := ctx.Err(); err != nil {
				yield(Info{}, err)
				return
			}
			if !yield(in, nil) {
				return
			}
		}
	}
}

// snapshot returns what List yields.
func (m *Mem) snapshot(dir string, opts ListOptions) []Info {
	prefix := ""
	if dir != "" {
		prefix = dir + "/"
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var infos []Info
	dirs := map[string]bool{}
	for name, o := range m.live {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok || !strings.HasPrefix(rest, opts.Prefix) {
			continue
		}
		first, _, below := strings.Cut(rest, "/")
		switch {
		case opts.Recursive || !below:
			infos = append(infos, Info{Name: name, Size: int64(len(o.data)), ModTime: o.mtime})
		case !dirs[first]:
			dirs[first] = true
			infos = append(infos, Info{Name: prefix + first, Dir: true})
		}
	}
	sortInfos(infos, opts.Recursive)
	return infos
}

// Remove implements Storage. It is durable at once.
func (m *Mem) Remove(ctx context.Context, names ...string) error {
	for _, name := range names {
		if err := CheckName(name); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		delete(m.live, name)
		delete(m.durable, name)
	}
	return nil
}

// Sync implements Storage.
func (m *Mem) Sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.durable = maps.Clone(m.live)
	return nil
}
