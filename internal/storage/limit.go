package storage

import (
	"context"
	"io"
	"iter"
	"time"
)

// Limit bounds how many calls are in flight on a store: each Open, Read, Write, Commit, Stat, step of a List and so on
// takes one of n slots while it lasts. An open reader or writer that nobody calls holds none, so that a caller which
// copies from the store to itself cannot wait for its own slot. Waiting ends with the context.
type Limit struct {
	forward
	slots chan struct{}
}

// NewLimit wraps a storage; n below 1 is 1.
func NewLimit(s Storage, n int) *Limit {
	return &Limit{forward{s}, make(chan struct{}, max(n, 1))}
}

// Abilities are those of the inner store, with no more connections than slots.
func (l *Limit) Abilities() Abilities {
	a := l.inner.Abilities()
	a.Connections = min(a.Connections, cap(l.slots))
	return a
}

// do makes one call while it holds a slot.
func (l *Limit) do(ctx context.Context, call func() error) error {
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-l.slots }()
	return call()
}

// Open implements Storage.
func (l *Limit) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	var r io.ReadCloser
	err := l.do(ctx, func() (err error) {
		r, err = l.inner.Open(ctx, name, offset, length)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &limitReader{r, l, ctx}, nil
}

// limitReader takes a slot for each Read.
type limitReader struct {
	io.ReadCloser
	l   *Limit
	ctx context.Context
}

// Read implements io.Reader.
func (r *limitReader) Read(p []byte) (n int, err error) {
	err = r.l.do(r.ctx, func() (err error) {
		n, err = r.ReadCloser.Read(p)
		return err
	})
	return n, err
}

// Create implements Storage.
func (l *Limit) Create(ctx context.Context, name string, opts CreateOptions) (Writer, error) {
	var w Writer
	err := l.do(ctx, func() (err error) {
		w, err = l.inner.Create(ctx, name, opts)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &limitWriter{w, l, ctx}, nil
}

// limitWriter takes a slot for each call.
type limitWriter struct {
	w   Writer
	l   *Limit
	ctx context.Context // Create's, for waiting in Write
}

// Write implements io.Writer.
func (w *limitWriter) Write(p []byte) (n int, err error) {
	err = w.l.do(w.ctx, func() (err error) {
		n, err = w.w.Write(p)
		return err
	})
	return n, err
}

// Commit implements Writer.
func (w *limitWriter) Commit(ctx context.Context) error {
	return w.l.do(ctx, func() error { return w.w.Commit(ctx) })
}

// Abort implements Writer. It cleans up also after a cancelled context, and waits for its turn regardless of it.
func (w *limitWriter) Abort() error {
	return w.l.do(context.Background(), w.w.Abort)
}

// Stat implements Storage.
func (l *Limit) Stat(ctx context.Context, name string) (in Info, err error) {
	err = l.do(ctx, func() (err error) {
		in, err = l.inner.Stat(ctx, name)
		return err
	})
	return in, err
}

// List implements Storage. The slot is free while the caller looks at an entry.
func (l *Limit) List(ctx context.Context, dir string, opts ListOptions) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		next, stop := iter.Pull2(l.inner.List(ctx, dir, opts))
		defer stop()
		for {
			var in Info
			var failed error
			more := false
			err := l.do(ctx, func() error {
				in, failed, more = next()
				return nil
			})
			if err != nil {
				yield(Info{}, err)
				return
			}
			if !more || !yield(in, failed) {
				return
			}
		}
	}
}

// Remove implements Storage.
func (l *Limit) Remove(ctx context.Context, names ...string) error {
	return l.do(ctx, func() error { return l.inner.Remove(ctx, names...) })
}

// Sync implements Storage.
func (l *Limit) Sync(ctx context.Context) error {
	return l.do(ctx, func() error { return l.inner.Sync(ctx) })
}

// MakeDir implements Linker.
func (l *Limit) MakeDir(ctx context.Context, name string) error {
	return l.do(ctx, func() error { return l.forward.MakeDir(ctx, name) })
}

// Symlink implements Linker.
func (l *Limit) Symlink(ctx context.Context, target, name string) error {
	return l.do(ctx, func() error { return l.forward.Symlink(ctx, target, name) })
}

// Link implements Linker.
func (l *Limit) Link(ctx context.Context, existing, name string) error {
	return l.do(ctx, func() error { return l.forward.Link(ctx, existing, name) })
}

// RemoveTree implements Linker.
func (l *Limit) RemoveTree(ctx context.Context, name string) error {
	return l.do(ctx, func() error { return l.forward.RemoveTree(ctx, name) })
}

// Sweep implements Sweeper.
func (l *Limit) Sweep(ctx context.Context, dir string, age time.Duration) (n int, err error) {
	err = l.do(ctx, func() (err error) {
		n, err = l.forward.Sweep(ctx, dir, age)
		return err
	})
	return n, err
}
