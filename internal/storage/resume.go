package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math"
)

// ErrChanged says that an object was replaced while it was read: what has been read and what is there do not belong together.
var ErrChanged = errors.New("object has changed while it was read")

// ErrCorrupt says that what a store has sent is not what its own checksum promises. Reading on would not help.
var ErrCorrupt = errors.New("content does not match the checksum that the store has for it")

// Resume reopens a reader at the place where it broke, with back-off. An object that ends too early counts as broken.
// Each byte of progress gives all attempts back. The end of the context wins at once.
type Resume struct {
	forward
	b Backoff
}

// NewResume wraps a storage. Attempts counts tries without progress.
func NewResume(s Storage, b Backoff) *Resume {
	return &Resume{forward{s}, b.withDefaults()}
}

// Open implements Storage. Without a length it asks for the object's size first, so that an early end is noticed.
func (s *Resume) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	r := &resumeReader{s: s, ctx: ctx, name: name, at: offset, end: math.MaxInt64, eof: io.EOF}
	if offset < 0 || length <= math.MaxInt64-offset {
		r.end = offset + length
	}
	if length < 0 {
		in, err := s.inner.Stat(ctx, name)
		if err != nil {
			return nil, err
		}
		r.info, r.end = &in, in.Size
		if offset > in.Size {
			r.end, r.eof = offset, io.ErrUnexpectedEOF
		}
	}
	var err error
	if r.r, err = s.inner.Open(ctx, name, offset, r.end-offset); err != nil {
		return nil, err
	}
	return r, nil
}

// resumeReader reads one range.
type resumeReader struct {
	s       *Resume
	ctx     context.Context
	name    string
	at, end int64 // next byte, first byte not to be read
	eof     error // what Read returns at end
	info    *Info // what the object was; nil: not asked yet
	r       io.ReadCloser
	failed  int   // attempts without progress
	err     error // final
}

// Read implements io.Reader.
func (r *resumeReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, r.err
	}
	for r.err == nil {
		if r.at >= r.end {
			return 0, r.eof
		}
		if err := r.ctx.Err(); err != nil {
			return 0, err
		}
		n, err := 0, error(nil)
		if r.r == nil {
			err = r.reopen()
		}
		if err == nil {
			n, err = r.r.Read(p[:min(int64(len(p)), r.end-r.at)])
		}
		r.at += int64(n)
		if n > 0 {
			r.failed = 0
		}
		if err != nil && r.at < r.end {
			r.err = r.broken(err) // told with the next Read if this one has bytes
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, r.err
}

// broken decides what an error means: nil to go on with a new reader, else final.
func (r *resumeReader) broken(err error) error {
	r.drop()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if cerr := r.ctx.Err(); cerr != nil {
		return cerr
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrChanged) || errors.Is(err, ErrCorrupt) || errors.Is(err, errPastEnd) {
		return err
	}
	r.failed++
	if r.failed >= r.s.b.Attempts {
		return fmt.Errorf("read %s at byte %d, tried %d times: %w", r.name, r.at, r.failed, err)
	}
	return r.s.b.Sleep(r.ctx, r.s.b.pause(r.failed))
}

// errPastEnd is the final form of io.ErrUnexpectedEOF: the object is known to be that short.
var errPastEnd = fmt.Errorf("range reaches past the end: %w", io.ErrUnexpectedEOF)

// reopen makes sure that the object is still the one that was opened, and opens the rest of the range. When the range was
// opened with a length, the first reopening is the first time that the object is asked what it is.
func (r *resumeReader) reopen() error {
	in, err := r.s.inner.Stat(r.ctx, r.name)
	if err != nil {
		return err
	}
	if r.info != nil && (in.Size != r.info.Size || !in.ModTime.Equal(r.info.ModTime)) {
		return fmt.Errorf("read %s at byte %d: %w", r.name, r.at, ErrChanged)
	}
	r.info = &in
	if r.end > in.Size && r.at >= in.Size {
		return errPastEnd
	}
	r.r, err = r.s.inner.Open(r.ctx, r.name, r.at, r.end-r.at)
	return err
}

// drop closes the current reader.
func (r *resumeReader) drop() {
	if r.r != nil {
		r.r.Close() // broken already; its error is being dealt with
		r.r = nil
	}
}

// Close implements io.Closer.
func (r *resumeReader) Close() error {
	r.err = fs.ErrClosed
	if r.r == nil {
		return nil
	}
	err := r.r.Close()
	r.r = nil
	return err
}

// Create implements Storage.
func (s *Resume) Create(ctx context.Context, name string, opts CreateOptions) (Writer, error) {
	return s.inner.Create(ctx, name, opts)
}

// Stat implements Storage.
func (s *Resume) Stat(ctx context.Context, name string) (Info, error) { return s.inner.Stat(ctx, name) }

// List implements Storage.
func (s *Resume) List(ctx context.Context, dir string, opts ListOptions) iter.Seq2[Info, error] {
	return s.inner.List(ctx, dir, opts)
}

// Remove implements Storage.
func (s *Resume) Remove(ctx context.Context, names ...string) error {
	return s.inner.Remove(ctx, names...)
}

// Sync implements Storage.
func (s *Resume) Sync(ctx context.Context) error { return s.inner.Sync(ctx) }
