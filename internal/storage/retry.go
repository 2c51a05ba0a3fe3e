package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"time"
)

// IsTemporary reports whether some error in the chain says of itself that the same call may succeed later
// (a method Temporary() bool). An adapter marks what it knows to be worth repeating with Temporary.
func IsTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

// Temporary marks an error as worth repeating, and with that as ErrUnavailable: when repeating has not helped, the store could
// not be asked. nil stays nil.
func Temporary(err error) error {
	if err == nil {
		return nil
	}
	return temporaryError{err}
}

type temporaryError struct{ error }

func (temporaryError) Temporary() bool      { return true }
func (temporaryError) Is(target error) bool { return target == ErrUnavailable }
func (e temporaryError) Unwrap() error      { return e.error }

// TemporaryAfter is Temporary for an error with which the store has said how long to wait.
func TemporaryAfter(err error, wait time.Duration) error {
	if err == nil {
		return nil
	}
	return waitError{temporaryError{err}, wait}
}

type waitError struct {
	temporaryError
	wait time.Duration
}

func (e waitError) RetryAfter() time.Duration { return e.wait }

// maxWait bounds what a store may ask for.
const maxWait = 2 * time.Minute

// Backoff says how often and after what pauses something is tried again: the pause doubles from Base to Max, and the
// upper half of it is random, so that many clients do not come back at the same moment.
type Backoff struct {
	Attempts int                                              // tries in all; 0: 6, 1: no repetition
	Base     time.Duration                                    // 0: 200 ms
	Max      time.Duration                                    // 0: 15 s
	Rand     func() float64                                   // in [0,1); nil: math/rand/v2
	Sleep    func(ctx context.Context, d time.Duration) error // nil: a timer; must return ctx's error when it ends
}

// withDefaults fills in what is zero.
func (b Backoff) withDefaults() Backoff {
	if b.Attempts <= 0 {
		b.Attempts = 6
	}
	if b.Base <= 0 {
		b.Base = 200 * time.Millisecond
	}
	if b.Max <= 0 {
		b.Max = 15 * time.Second
	}
	if b.Rand == nil {
		b.Rand = rand.Float64
	}
	if b.Sleep == nil {
		b.Sleep = sleep
	}
	return b
}

// Do calls until success, a lasting error, the last attempt or the end of ctx, with pauses in between: Retry for one call
// inside an adapter. call must be harmless to repeat.
func (b Backoff) Do(ctx context.Context, call func() error) error {
	return b.withDefaults().do(ctx, call, func(int, error, time.Duration) {})
}

// do is Do; tell is told of each repetition to come.
func (b Backoff) do(ctx context.Context, call func() error, tell func(attempt int, err error, d time.Duration)) error {
	for attempt := 1; ; attempt++ {
		err := call()
		if err == nil || !IsTemporary(err) {
			return err
		}
		if cerr := ctx.Err(); cerr != nil {
			return errors.Join(cerr, err)
		}
		if attempt >= b.Attempts {
			return fmt.Errorf("tried %d times: %w", attempt, err)
		}
		d := b.pauseFor(attempt, err)
		tell(attempt, err, d)
		if werr := b.Sleep(ctx, d); werr != nil {
			return errors.Join(werr, err)
		}
	}
}

// pauseFor is pause, or what the store has asked for if that is longer.
func (b Backoff) pauseFor(attempt int, err error) time.Duration {
	var asked interface{ RetryAfter() time.Duration }
	d := b.pause(attempt)
	if errors.As(err, &asked) {
		d = max(d, min(asked.RetryAfter(), maxWait))
	}
	return d
}

// Pause is the wait after the given failed attempt, counted from 1.
func (b Backoff) Pause(attempt int) time.Duration { return b.withDefaults().pause(attempt) }

// Wait sleeps for d or until the context ends, with its error then.
func (b Backoff) Wait(ctx context.Context, d time.Duration) error {
	return b.withDefaults().Sleep(ctx, d)
}

// pause is Pause once the defaults are filled in.
func (b Backoff) pause(attempt int) time.Duration {
	d := b.Base
	for i := 1; i < attempt && d < b.Max; i++ {
		d *= 2
	}
	d = min(d, b.Max)
	return d/2 + time.Duration(b.Rand()*float64(d/2))
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Repetition tells a listener that a call has failed and will be tried again.
type Repetition struct {
	Op      Op
	Name    string
	Attempt int // the one that failed, counted from 1
	Err     error
	Pause   time.Duration
}

// RetryOptions configures Retry.
type RetryOptions struct {
	Backoff
	// OnRepeat, if set, is told of every repetition. It may be called from many goroutines.
	OnRepeat func(Repetition)
}

// Retry repeats calls whose error IsTemporary, for stores behind a network. Everything that the contract allows to be
// repeated is: Open, Create, Stat, Remove, Sync, Linker, Sweeper, Commit, and List from where it was interrupted. Reads
// are the business of Resume; a Write is never repeated, because part of its bytes may have gone. The end of the context wins at once.
type Retry struct {
	forward
	o RetryOptions
}

// NewRetry wraps a storage.
func NewRetry(s Storage, o RetryOptions) *Retry {
	o.Backoff = o.Backoff.withDefaults()
	return &Retry{forward{s}, o}
}

// do calls until success, a lasting error, the last attempt or the end of ctx.
func (r *Retry) do(ctx context.Context, op Op, name string, call func() error) error {
	return r.o.do(ctx, call, func(attempt int, err error, d time.Duration) { r.tell(op, name, attempt, err, d) })
}

// tell tells the listener.
func (r *Retry) tell(op Op, name string, attempt int, err error, d time.Duration) {
	if r.o.OnRepeat != nil {
		r.o.OnRepeat(Repetition{op, name, attempt, err, d})
	}
}

// Open implements Storage.
func (r *Retry) Open(ctx context.Context, name string, offset, length int64) (rc io.ReadCloser, err error) {
	err = r.do(ctx, OpOpen, name, func() (err error) {
		rc, err = r.inner.Open(ctx, name, offset, length)
		return err
	})
	return rc, err
}

// Create implements Storage.
func (r *Retry) Create(ctx context.Context, name string, opts CreateOptions) (Writer, error) {
	var w Writer
	err := r.do(ctx, OpCreate, name, func() (err error) {
		w, err = r.inner.Create(ctx, name, opts)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &retryWriter{w, r, name}, nil
}

// retryWriter repeats Commit.
type retryWriter struct {
	Writer
	r    *Retry
	name string
}

// Commit implements Writer.
func (w *retryWriter) Commit(ctx context.Context) error {
	return w.r.do(ctx, OpCommit, w.name, func() error { return w.Writer.Commit(ctx) })
}

// Stat implements Storage.
func (r *Retry) Stat(ctx context.Context, name string) (in Info, err error) {
	err = r.do(ctx, OpStat, name, func() (err error) {
		in, err = r.inner.Stat(ctx, name)
		return err
	})
	return in, err
}

// List implements Storage. After an error it lists again and passes over the names that it has yielded; progress gives
// it all its attempts back.
func (r *Retry) List(ctx context.Context, dir string, opts ListOptions) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		last := ""
		for attempt := 1; ; attempt++ {
			var failed error
			for in, err := range r.inner.List(ctx, dir, opts) {
				if err != nil {
					failed = err
					break
				}
				if in.Name <= last {
					continue
				}
				last, attempt = in.Name, 1
				if !yield(in, nil) {
					return
				}
			}
			if failed == nil {
				return
			}
			if IsTemporary(failed) && (attempt < r.o.Attempts || ctx.Err() != nil) {
				werr := ctx.Err()
				if werr == nil {
					d := r.o.pauseFor(attempt, failed)
					r.tell(OpList, dir, attempt, failed, d)
					werr = r.o.Sleep(ctx, d)
				}
				if werr == nil {
					continue
				}
				failed = errors.Join(werr, failed)
			}
			yield(Info{}, failed)
			return
		}
	}
}

// Remove implements Storage.
func (r *Retry) Remove(ctx context.Context, names ...string) error {
	first := ""
	if len(names) > 0 {
		first = names[0]
	}
	return r.do(ctx, OpRemove, first, func() error { return r.inner.Remove(ctx, names...) })
}

// Sync implements Storage.
func (r *Retry) Sync(ctx context.Context) error {
	return r.do(ctx, OpSync, "", func() error { return r.inner.Sync(ctx) })
}

// MakeDir implements Linker.
func (r *Retry) MakeDir(ctx context.Context, name string) error {
	return r.do(ctx, OpMakeDir, name, func() error { return r.forward.MakeDir(ctx, name) })
}

// Symlink implements Linker.
func (r *Retry) Symlink(ctx context.Context, target, name string) error {
	return r.do(ctx, OpSymlink, name, func() error { return r.forward.Symlink(ctx, target, name) })
}

// Link implements Linker.
func (r *Retry) Link(ctx context.Context, existing, name string) error {
	return r.do(ctx, OpLink, name, func() error { return r.forward.Link(ctx, existing, name) })
}

// RemoveTree implements Linker.
func (r *Retry) RemoveTree(ctx context.Context, name string) error {
	return r.do(ctx, OpRemoveTree, name, func() error { return r.forward.RemoveTree(ctx, name) })
}

// Sweep implements Sweeper. The count is over all attempts.
func (r *Retry) Sweep(ctx context.Context, dir string, age time.Duration) (removed int, err error) {
	err = r.do(ctx, OpSweep, dir, func() error {
		n, err := r.forward.Sweep(ctx, dir, age)
		removed += n
		return err
	})
	return removed, err
}
