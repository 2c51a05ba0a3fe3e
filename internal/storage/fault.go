package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
)

// Op names a call for Faulty.
type Op string

// The calls that Faulty counts.
const (
	OpOpen       Op = "open"
	OpRead       Op = "read" // one Read of an open reader
	OpCreate     Op = "create"
	OpWrite      Op = "write" // one Write of a writer
	OpCommit     Op = "commit"
	OpAbort      Op = "abort"
	OpStat       Op = "stat"
	OpList       Op = "list" // one step of a listing
	OpRemove     Op = "remove"
	OpSync       Op = "sync"
	OpMakeDir    Op = "makedir"
	OpSymlink    Op = "symlink"
	OpLink       Op = "link"
	OpRemoveTree Op = "removetree"
	OpSweep      Op = "sweep"
)

// FaultKind is what happens at the chosen call.
type FaultKind int

// The kinds of fault.
const (
	FailBefore FaultKind = iota // the call has no effect and returns the error
	FailAfter                   // the call takes effect, then returns the error: a lost acknowledgement
	ShortRead                   // a Read returns half of its bytes, then the reader ends quietly: a truncated object
	Cancel                      // Fault.Cancel is called, then the call proceeds
	Die                         // this call and all later ones, Abort included, have no effect and return the error
)

// String returns the kind in one word.
func (k FaultKind) String() string {
	names := [...]string{"before", "after", "short", "cancel", "die"}
	if k < 0 || int(k) >= len(names) {
		return fmt.Sprintf("FaultKind(%d)", int(k))
	}
	return names[k]
}

// ErrInjected is the error of a Fault that names none. It is not temporary.
var ErrInjected = errors.New("injected fault")

// Fault says which call fails, and how. Calls are counted per Fault, over those that Op and Name select.
type Fault struct {
	Op     Op     // "" = any
	Name   string // path.Match pattern; without a slash it is held against the last element only; "" = any
	Nth    int    // 1 = first matching call; 0 = every one
	Kind   FaultKind
	Err    error              // nil: ErrInjected
	Cancel context.CancelFunc // for the kind Cancel
}

// String returns the fault as "commit backup.info 2 after".
func (f Fault) String() string {
	op, name, nth := string(f.Op), f.Name, "every"
	if op == "" {
		op = "any"
	}
	if name == "" {
		name = "*"
	}
	if f.Nth > 0 {
		nth = fmt.Sprint(f.Nth)
	}
	return fmt.Sprintf("%s %s %s %s", op, name, nth, f.Kind)
}

// matches reports whether the fault is about such a call.
func (f Fault) matches(op Op, name string) bool {
	if f.Op != "" && f.Op != op {
		return false
	}
	if f.Name == "" {
		return true
	}
	if !strings.Contains(f.Name, "/") {
		name = path.Base(name)
	}
	ok, err := path.Match(f.Name, name)
	return ok && err == nil // NewFaulty has refused malformed patterns
}

// Call is one call as Faulty counted it.
type Call struct {
	Op   Op
	Name string // object; for Remove the first one, for List and Sweep the directory, for Sync ""
}

// Faulty fails on purpose. To test a verb at every step, run it with Fault{Nth: n, Kind: …} for n = 1, 2, … until
// Fired is false: then the verb made fewer than n calls and has succeeded.
type Faulty struct {
	forward

	mu     sync.Mutex
	faults []Fault
	seen   []int // matching calls per fault
	calls  []Call
	fired  int
	dead   error
}

// NewFaulty wraps a storage. Without faults it only counts. A malformed Name pattern is an error.
func NewFaulty(s Storage, faults ...Fault) (*Faulty, error) {
	for _, f := range faults {
		if _, err := path.Match(f.Name, ""); err != nil {
			return nil, fmt.Errorf("fault %v: %w", f, err)
		}
		if f.Kind == Cancel && f.Cancel == nil {
			return nil, fmt.Errorf("fault %v: nothing to cancel", f)
		}
	}
	return &Faulty{forward: forward{s}, faults: slices.Clone(faults), seen: make([]int, len(faults))}, nil
}

// Calls returns all calls so far, in the order in which they began.
func (f *Faulty) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Fired reports whether any fault has struck.
func (f *Faulty) Fired() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fired > 0
}

// verdict is what a call is to do.
type verdict struct {
	before, after error
	short         bool
}

// count notes a call and says what is to happen to it.
func (f *Faulty) count(op Op, name string) verdict {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, Call{op, name})
	if f.dead != nil {
		return verdict{before: f.dead}
	}
	var v verdict
	for i, fault := range f.faults {
		if !fault.matches(op, name) {
			continue
		}
		f.seen[i]++
		if fault.Nth != 0 && fault.Nth != f.seen[i] {
			continue
		}
		f.fired++
		err := fault.Err
		if err == nil {
			err = ErrInjected
		}
		err = fmt.Errorf("%s %s: %w", op, name, err)
		switch fault.Kind {
		case FailBefore:
			v.before = err
		case FailAfter:
			v.after = err
		case ShortRead:
			v.short = true
		case Cancel:
			fault.Cancel()
		case Die:
			f.dead, v.before = err, err
		}
	}
	return v
}

// do runs a call that returns only an error.
func (f *Faulty) do(op Op, name string, call func() error) error {
	v := f.count(op, name)
	if v.before != nil {
		return v.before
	}
	if err := call(); err != nil {
		return err
	}
	return v.after
}

// Open implements Storage.
func (f *Faulty) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	var r io.ReadCloser
	err := f.do(OpOpen, name, func() (err error) {
		r, err = f.inner.Open(ctx, name, offset, length)
		return err
	})
	if err != nil {
		if r != nil {
			r.Close() // the fault took its reader away
		}
		return nil, err
	}
	return &faultyReader{f: f, name: name, r: r}, nil
}

// faultyReader counts reads.
type faultyReader struct {
	f     *Faulty
	name  string
	r     io.ReadCloser
	ended bool
}

// Read implements io.Reader.
func (r *faultyReader) Read(p []byte) (int, error) {
	if r.ended {
		return 0, io.EOF
	}
	v := r.f.count(OpRead, r.name)
	if v.before != nil {
		return 0, v.before
	}
	if v.short {
		r.ended = true
		n, err := r.r.Read(p[:len(p)/2])
		if err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
			err = io.EOF
		}
		return n, err
	}
	n, err := r.r.Read(p)
	if err == nil {
		err = v.after
	}
	return n, err
}

// Close implements io.Closer.
func (r *faultyReader) Close() error { return r.r.Close() }

// Create implements Storage.
func (f *Faulty) Create(ctx context.Context, name string, opts CreateOptions) (Writer, error) {
	var w Writer
	err := f.do(OpCreate, name, func() (err error) {
		w, err = f.inner.Create(ctx, name, opts)
		return err
	})
	if err != nil {
		if w != nil {
			return nil, errors.Join(err, w.Abort())
		}
		return nil, err
	}
	return &faultyWriter{f: f, name: name, w: w}, nil
}

// faultyWriter counts writes, commits and aborts.
type faultyWriter struct {
	f    *Faulty
	name string
	w    Writer
	err  error // first error of Write
}

// Write implements io.Writer.
func (w *faultyWriter) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n := 0
	w.err = w.f.do(OpWrite, w.name, func() (err error) {
		n, err = w.w.Write(p)
		return err
	})
	return n, w.err
}

// Commit implements Writer.
func (w *faultyWriter) Commit(ctx context.Context) error {
	if w.err != nil {
		return w.err
	}
	return w.f.do(OpCommit, w.name, func() error { return w.w.Commit(ctx) })
}

// Abort implements Writer.
func (w *faultyWriter) Abort() error {
	return w.f.do(OpAbort, w.name, w.w.Abort)
}

// Stat implements Storage.
func (f *Faulty) Stat(ctx context.Context, name string) (Info, error) {
	var in Info
	err := f.do(OpStat, name, func() (err error) {
		in, err = f.inner.Stat(ctx, name)
		return err
	})
	if err != nil {
		return Info{}, err
	}
	return in, nil
}

// List implements Storage. Its start and each step count as one call; an error after a step ends the listing.
func (f *Faulty) List(ctx context.Context, dir string, opts ListOptions) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		v := f.count(OpList, dir)
		if v.before != nil {
			yield(Info{}, v.before)
			return
		}
		for in, err := range f.inner.List(ctx, dir, opts) {
			if !yield(in, err) || err != nil {
				return
			}
			if v.after == nil {
				v = f.count(OpList, dir)
			}
			if err := errors.Join(v.before, v.after); err != nil {
				yield(Info{}, err)
				return
			}
		}
		if v.after != nil {
			yield(Info{}, v.after)
		}
	}
}

// Remove implements Storage.
func (f *Faulty) Remove(ctx context.Context, names ...string) error {
	first := ""
	if len(names) > 0 {
		first = names[0]
	}
	return f.do(OpRemove, first, func() error { return f.inner.Remove(ctx, names...) })
}

// Sync implements Storage.
func (f *Faulty) Sync(ctx context.Context) error {
	return f.do(OpSync, "", func() error { return f.inner.Sync(ctx) })
}

// MakeDir implements Linker.
func (f *Faulty) MakeDir(ctx context.Context, name string) error {
	return f.do(OpMakeDir, name, func() error { return f.forward.MakeDir(ctx, name) })
}

// Symlink implements Linker.
func (f *Faulty) Symlink(ctx context.Context, target, name string) error {
	return f.do(OpSymlink, name, func() error { return f.forward.Symlink(ctx, target, name) })
}

// Link implements Linker.
func (f *Faulty) Link(ctx context.Context, existing, name string) error {
	return f.do(OpLink, name, func() error { return f.forward.Link(ctx, existing, name) })
}

// RemoveTree implements Linker.
func (f *Faulty) RemoveTree(ctx context.Context, name string) error {
	return f.do(OpRemoveTree, name, func() error { return f.forward.RemoveTree(ctx, name) })
}

// Sweep implements Sweeper.
func (f *Faulty) Sweep(ctx context.Context, dir string, age time.Duration) (n int, err error) {
	err = f.do(OpSweep, dir, func() (err error) {
		n, err = f.forward.Sweep(ctx, dir, age)
		return err
	})
	return n, err
}
