package storage

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// Uploader is what an adapter for an object store gives to Uploads. Each method answers for one step as the contract of
// Storage has it, repetitions after passing failures included. All may be called from many goroutines at once.
type Uploader interface {
	// Put stores one whole object.
	Put(ctx context.Context, name string, body *Body) error
	// Begin starts an object that is sent in parts. It is invisible until Finish.
	Begin(ctx context.Context, name string) (PartUpload, error)
}

// PartUpload is one object on its way in parts.
type PartUpload interface {
	// Put sends one part; numbers start at 1. Parts may arrive in any order and at the same time.
	Put(ctx context.Context, number int, body *Body) error
	// Finish makes the object of all parts; size and crc32c are those of the whole.
	Finish(ctx context.Context, size int64, crc32c uint32) error
	// Cancel gives up and leaves nothing that costs space.
	Cancel(ctx context.Context) error
}

// UploadOptions bounds what Uploads does at once.
type UploadOptions struct {
	PartSize int64 // bytes; an object that is larger goes in parts. It grows with the number of parts (see partSize)
	Parallel int   // parts of one object in flight at once
	Requests int   // bodies in flight at once, over all objects
	Memory   int64 // bytes in flight at once, over all objects; a writer's unsent part comes on top
}

// Uploads makes the writers of an adapter for an object store. An object that fits into one part is sent whole at
// Commit; a larger one goes in parts while it is written. A Deferred object is sent behind Commit's back: Wait and Sync
// wait for it. Memory is bounded by Memory and one part per writer.
type Uploads struct {
	u     Uploader
	o     UploadOptions
	mem   *semaphore.Weighted
	slots *semaphore.Weighted

	mu      sync.Mutex
	pending map[string]chan struct{} // the last Deferred object of that name; closed when it is done
	failed  error                    // of the first Deferred object that was lost; stays
}

// NewUploads returns the writers' workshop of one store.
func NewUploads(u Uploader, o UploadOptions) *Uploads {
	o.Parallel, o.Requests = max(o.Parallel, 1), max(o.Requests, 1)
	o.Memory = max(o.Memory, o.PartSize)
	return &Uploads{u: u, o: o, mem: semaphore.NewWeighted(o.Memory), slots: semaphore.NewWeighted(int64(o.Requests)), pending: map[string]chan struct{}{}}
}

// Create is Storage.Create. The context also governs the parts that are sent while the object is written.
func (u *Uploads) Create(ctx context.Context, name string, o CreateOptions) (Writer, error) {
	if err := check(ctx, name); err != nil {
		return nil, err
	}
	if o.Deferred { // what is lost already makes more of it useless
		u.mu.Lock()
		failed := u.failed
		u.mu.Unlock()
		if failed != nil {
			return nil, failed
		}
	}
	partCtx, cancel := context.WithCancel(ctx)
	g, gctx := errgroup.WithContext(partCtx)
	g.SetLimit(u.o.Parallel)
	return &uploadWriter{u: u, name: name, deferred: o.Deferred, ctx: gctx, cancel: cancel, parts: g}, nil
}

// Wait waits until no Deferred object of that name is on its way: a reader comes after it.
func (u *Uploads) Wait(ctx context.Context, name string) error {
	u.mu.Lock()
	done := u.pending[name]
	u.mu.Unlock()
	return waitFor(ctx, done)
}

// WaitAll waits for every Deferred object whose Commit has returned.
func (u *Uploads) WaitAll(ctx context.Context) error {
	u.mu.Lock()
	var all []chan struct{}
	for _, done := range u.pending {
		all = append(all, done)
	}
	u.mu.Unlock()
	for _, done := range all {
		if err := waitFor(ctx, done); err != nil {
			return err
		}
	}
	return nil
}

func waitFor(ctx context.Context, done chan struct{}) error {
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Sync is Storage.Sync.
func (u *Uploads) Sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := u.WaitAll(ctx); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.failed
}

// hold waits until size bytes more may be in flight; release gives them back.
func (u *Uploads) hold(ctx context.Context, size int64) (release func(), err error) {
	size = min(size, u.o.Memory)
	if err := u.mem.Acquire(ctx, size); err != nil {
		return nil, err
	}
	return func() { u.mem.Release(size) }, nil
}

// request makes one call while it has one of the places of UploadOptions.Requests.
func (u *Uploads) request(ctx context.Context, do func() error) error {
	if err := u.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	defer u.slots.Release(1)
	return do()
}

// partSize is the size of part number n. It doubles every thousand parts, so that ten thousand, which is what stores
// allow, hold more than the largest object that they allow.
func (u *Uploads) partSize(n int) int64 { return u.o.PartSize << min((n-1)/1000, 20) }

// uploadWriter writes one new object.
type uploadWriter struct {
	u        *Uploads
	name     string
	deferred bool
	ctx      context.Context // of the parts; ends when one fails
	cancel   context.CancelFunc

	body  Body // what is not yet on its way
	size  int64
	crc   uint32
	parts *errgroup.Group
	sent  int                        // parts on their way or there
	begin func() (PartUpload, error) // set with the first part
	ended bool
	done  bool // committed
	err   error
}

// Write implements io.Writer. It waits while too much is in flight.
func (w *uploadWriter) Write(p []byte) (int, error) {
	if w.ended {
		return 0, fmt.Errorf("write %s: %w", w.name, ErrEnded)
	}
	n := 0
	for len(p) > 0 && w.err == nil {
		limit := w.u.partSize(w.sent + 1)
		if w.body.Size() == limit {
			w.err = w.sendPart()
			continue
		}
		k := int(min(int64(len(p)), limit-w.body.Size()))
		w.body.Write(p[:k])
		w.crc = crc32.Update(w.crc, castagnoli, p[:k])
		w.size += int64(k)
		n, p = n+k, p[k:]
	}
	return n, w.err
}

// once is sync.OnceValues for what waits for a store: nobody holds a lock meanwhile.
func once(do func() (PartUpload, error)) func() (PartUpload, error) {
	var begun atomic.Bool
	var up PartUpload
	var err error
	done := make(chan struct{})
	return func() (PartUpload, error) {
		if begun.CompareAndSwap(false, true) {
			up, err = do()
			close(done)
		}
		<-done
		return up, err
	}
}

// sendPart sends what has been written so far as the next part, without waiting for it.
func (w *uploadWriter) sendPart() error {
	if err := w.ctx.Err(); err != nil {
		return w.partError()
	}
	if w.begin == nil {
		w.begin = once(func() (PartUpload, error) { return w.u.u.Begin(w.ctx, w.name) })
	}
	release, err := w.u.hold(w.ctx, w.body.Size())
	if err != nil {
		return w.partError()
	}
	w.sent++
	number, body := w.sent, new(Body)
	*body, w.body = w.body, Body{}
	w.parts.Go(func() error {
		defer release()
		return w.u.request(w.ctx, func() error {
			up, err := w.begin()
			if err != nil {
				return err
			}
			return up.Put(w.ctx, number, body)
		})
	})
	return nil
}

// partError is why the parts stopped.
func (w *uploadWriter) partError() error {
	if err := w.parts.Wait(); err != nil {
		return err
	}
	return w.ctx.Err()
}

// Commit implements Writer.
func (w *uploadWriter) Commit(ctx context.Context) error {
	switch {
	case w.done:
		return nil
	case w.ended:
		return fmt.Errorf("commit %s: %w", w.name, ErrEnded)
	case w.err != nil:
		return w.err
	case ctx.Err() != nil:
		return ctx.Err()
	}
	if w.deferred {
		w.ended, w.done = true, true
		w.u.later(ctx, w)
		return nil
	}
	if err := errors.Join(w.u.Wait(ctx, w.name), w.last()); err != nil {
		return err
	}
	release, err := w.u.hold(ctx, w.body.Size())
	if err != nil {
		return err
	}
	err = w.publish(ctx)
	release()
	if err != nil {
		return err
	}
	w.ended, w.done = true, true
	w.free()
	return nil
}

// last sends what is left of an object that goes in parts.
func (w *uploadWriter) last() error {
	if w.begin == nil || w.body.Size() == 0 {
		return nil
	}
	return w.sendPart()
}

// publish makes the object. The caller holds the memory of the body.
func (w *uploadWriter) publish(ctx context.Context) error {
	if w.begin == nil {
		return w.u.request(ctx, func() error { return w.u.u.Put(ctx, w.name, &w.body) })
	}
	stop := context.AfterFunc(ctx, w.cancel)
	defer stop()
	if err := w.parts.Wait(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		w.err = err
		return err
	}
	up, err := w.begin()
	if err != nil {
		return err
	}
	return up.Finish(ctx, w.size, w.crc)
}

// free ends the parts' context and lets the memory go.
func (w *uploadWriter) free() {
	w.cancel()
	w.body = Body{}
}

// later publishes a Deferred object in the background, after an earlier one of the same name. Before it returns the
// request has its place, so that no more is in flight than UploadOptions allow.
func (u *Uploads) later(ctx context.Context, w *uploadWriter) {
	done := make(chan struct{})
	u.mu.Lock()
	before := u.pending[w.name]
	u.pending[w.name] = done
	u.mu.Unlock()
	err := w.last()
	var release func()
	if err == nil {
		release, err = u.hold(ctx, w.body.Size()) // waits while too much is on its way
	}
	go func() {
		if err == nil {
			err = waitFor(ctx, before)
		}
		if err == nil {
			err = w.publish(ctx)
		}
		if release != nil {
			release()
		}
		if err != nil {
			err = errors.Join(err, w.giveUp())
		}
		w.free()
		u.mu.Lock()
		if err != nil && u.failed == nil {
			u.failed = fmt.Errorf("an object sent in the background was lost: %w", err)
		}
		if u.pending[w.name] == done {
			delete(u.pending, w.name)
		}
		u.mu.Unlock()
		close(done)
	}()
}

// Abort implements Writer.
func (w *uploadWriter) Abort() error {
	if w.ended {
		return nil
	}
	w.ended = true
	err := w.giveUp()
	w.free()
	return err
}

// abortTime is how long Abort may take to clean up at the store; what it cannot reach, a sweep removes later.
const abortTime = 30 * time.Second

// giveUp ends the parts and cancels the object at the store, also when the writer's context has ended.
func (w *uploadWriter) giveUp() error {
	w.cancel()
	if w.begin == nil {
		return nil
	}
	_ = w.parts.Wait() // the parts are not wanted any more
	up, err := w.begin()
	if err != nil {
		return nil // never begun, or a sweep's business
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), abortTime)
	defer cancel()
	if err := up.Cancel(ctx); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("give up the unfinished upload of %s: %w", w.name, err)
	}
	return nil
}
