package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"sync"

	"github.com/pkg/sftp"

	"holdfast/internal/durable"
	"holdfast/internal/storage"
)

// Pieces in flight, in both directions: they hide how long the way to the server is. Memory of one reader or writer is
// bounded by pieceSize times one more than pieces.
const (
	pieceSize = 256 << 10
	pieces    = 8
)

const tempSuffix = ".pgbackrest.tmp" // pgBackRest's; storage.IsTemp knows it

// tempName is a name next to an object.
func tempName(at string) string {
	dir, base := path.Split(at)
	return fmt.Sprintf("%s%s.%016x%s", dir, durable.TempStem(base), rand.Uint64(), tempSuffix)
}

// Open implements storage.Storage. The first pieces are asked for at once.
func (s *Store) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := check(ctx, name); err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, s.fail("open", name, errors.New("offset is negative"))
	}
	c, err := s.acquire(ctx)
	if err != nil {
		return nil, s.fail("open", name, err)
	}
	r := &reader{s: s, c: c, ctx: ctx, name: name, eof: io.EOF}
	if err := r.open(offset, length); err != nil {
		s.release(c)
		return nil, s.fail("open", name, translate(ctx, c, err))
	}
	return r, nil
}

// reader reads one range, several pieces ahead.
type reader struct {
	s    *Store
	c    *conn
	ctx  context.Context
	name string
	f    *sftp.File

	next, end int64 // first byte not asked for, first byte not wanted
	eof       error // what comes after end
	queue     []chan piece
	flights   sync.WaitGroup
	now       []byte
	err       error
	closed    bool
}

// piece is an answer.
type piece struct {
	data []byte
	err  error
}

// open opens the file and begins to read. Only a range without a length needs to ask for the size.
func (r *reader) open(offset, length int64) error {
	var err error
	if r.f, err = r.c.sftp.Open(r.s.path(r.name)); err != nil {
		return err
	}
	r.next, r.end = offset, offset+length
	if length > 0 && r.end < offset { // past all that can be
		r.end = int64(^uint64(0) >> 1)
	}
	if length <= 0 {
		fi, err := r.f.Stat()
		if err == nil && fi.IsDir() {
			err = fs.ErrNotExist
		}
		if err != nil {
			r.f.Close() // opened for reading: nothing to lose
			return err
		}
		if length < 0 {
			r.end = max(fi.Size(), offset)
		}
		if offset > fi.Size() {
			r.eof = io.ErrUnexpectedEOF
		}
	}
	r.ask(2) // a caller that wants little should not cost much; ask grows with what is read
	return nil
}

// ask sends requests until n pieces are on their way.
func (r *reader) ask(n int) {
	for len(r.queue) < n && r.next < r.end {
		at, size := r.next, min(r.end-r.next, pieceSize)
		r.next += size
		answer := make(chan piece, 1)
		r.queue = append(r.queue, answer)
		r.flights.Go(func() {
			b := make([]byte, size)
			n, err := r.f.ReadAt(b, at)
			if n == len(b) {
				err = nil
			}
			answer <- piece{b[:n], err}
		})
	}
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	for len(r.now) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		if len(r.queue) == 0 {
			return 0, r.eof
		}
		select {
		case got := <-r.queue[0]:
			r.queue = r.queue[1:]
			r.now = got.data
			switch {
			case got.err == io.EOF:
				r.err = io.ErrUnexpectedEOF
			case got.err != nil:
				r.err = r.s.fail("read", r.name, translate(r.ctx, r.c, got.err))
			default:
				r.ask(pieces)
			}
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
	n := copy(p, r.now)
	r.now = r.now[n:]
	return n, nil
}

// Close implements io.Closer.
func (r *reader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	if r.err == nil {
		r.err = fs.ErrClosed
	}
	r.now, r.queue = nil, nil
	r.flights.Wait()
	r.f.Close() // opened for reading: nothing to lose
	r.s.release(r.c)
	return nil
}

// Create implements storage.Storage. Deferred is ignored: a server has no sync of many files at once.
func (s *Store) Create(ctx context.Context, name string, _ storage.CreateOptions) (storage.Writer, error) {
	if err := check(ctx, name); err != nil {
		return nil, err
	}
	c, err := s.acquire(ctx)
	if err != nil {
		return nil, s.fail("create", name, err)
	}
	w := &writer{s: s, c: c, name: name, temp: tempName(s.path(name))}
	err = s.inDir(c, path.Dir(w.temp), func() (err error) {
		w.f, err = c.sftp.OpenFile(w.temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
		return err
	})
	if err != nil {
		s.release(c)
		return nil, s.fail("create", name, translate(ctx, c, err))
	}
	w.mode = make(chan error, 1)
	go func() { w.mode <- w.f.Chmod(s.o.FileMode) }() // while the first bytes come
	w.parts = newParts(ctx, partsOptions{Size: pieceSize, Parallel: pieces, Send: func(ctx context.Context, p part) error {
		_, err := w.f.WriteAt(p.Data, p.Offset)
		return w.lost(translate(ctx, c, err))
	}})
	return w, nil
}

// writer writes one new file.
type writer struct {
	s     *Store
	c     *conn
	f     *sftp.File
	name  string
	temp  string
	mode  chan error // of setting the mode
	parts *parts

	flushed   bool // the server has everything on its disk under the temporary name
	committed bool
	ended     bool
}

// lost takes Temporary away: before the server has synced, nothing that it acknowledged may be relied on once the
// connection is gone.
func (w *writer) lost(err error) error {
	if storage.IsTemporary(err) {
		return fmt.Errorf("given up in the middle: %v", err)
	}
	return err
}

// Write implements io.Writer.
func (w *writer) Write(p []byte) (int, error) {
	n, err := w.parts.Write(p)
	return n, w.s.fail("write", w.name, err)
}

// Commit implements storage.Writer. Once the server has synced the file, a lost connection is no harm: the rename is made
// on another one.
func (w *writer) Commit(ctx context.Context) error {
	switch {
	case w.committed:
		return nil
	case w.ended:
		return w.s.fail("commit", w.name, storage.ErrEnded)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	if !w.flushed {
		if err := w.flush(ctx); err != nil {
			return w.s.fail("commit", w.name, w.lost(translate(ctx, w.c, err)))
		}
		w.flushed = true
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := w.publish(ctx); err != nil {
		return w.s.fail("commit", w.name, err)
	}
	w.ended, w.committed = true, true
	w.parts.Close()
	w.s.release(w.c)
	return nil
}

// flush brings all bytes to the server's disk and closes the file.
func (w *writer) flush(ctx context.Context) error {
	rest, err := w.parts.Finish()
	if err != nil {
		return err
	}
	for _, p := range rest {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := w.f.WriteAt(p.Data, p.Offset); err != nil {
			return err
		}
	}
	if err := <-w.mode; err != nil {
		w.mode <- err
		return fmt.Errorf("set its mode: %w", err)
	}
	w.mode <- nil
	if w.c.canSync {
		if err := w.f.Sync(); err != nil {
			return err
		}
	}
	return w.f.Close()
}

// publish renames. If an earlier try was acknowledged to nobody, the temporary file is gone and the object is there.
func (w *writer) publish(ctx context.Context) error {
	return w.s.call(ctx, func(c *conn) error {
		at := w.s.path(w.name)
		err := c.sftp.PosixRename(w.temp, at)
		if errors.Is(err, fs.ErrNotExist) {
			if fi, serr := c.sftp.Lstat(at); serr == nil && fi.Mode().IsRegular() && fi.Size() == w.parts.Size() {
				err = nil
			}
		}
		if err != nil {
			return err
		}
		return w.s.syncDir(c, path.Dir(at))
	})
}

// Abort implements storage.Writer.
func (w *writer) Abort() error {
	if w.ended {
		return nil
	}
	w.ended = true
	w.parts.Close()
	w.f.Close() // the content is unwanted, so is its error
	defer w.s.release(w.c)
	if w.c.ended() {
		return nil // its temporary file is swept one day
	}
	err := translate(context.Background(), w.c, w.c.sftp.Remove(w.temp))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !storage.IsTemporary(err) {
		return w.s.fail("remove the temporary file of", w.name, err)
	}
	return nil
}
