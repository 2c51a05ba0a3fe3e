package tarball

import (
	"archive/tar"
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/pgzip"
)

const (
	compressBlock = 1 << 20 // bytes that one core compresses at a time
	smallMember   = 4096    // smaller members go into whichever gzip member is open
	blockSize     = 512     // of tar
	copyBuffer    = 256 << 10
)

// WriterOptions says how a tarball is written. The zero value is usable.
type WriterOptions struct {
	Level   int       // gzip level 1 to 9 of compressible content; 0: 6
	Workers int       // cores used for compression; 0: all
	ModTime time.Time // of members that bring none, and in the gzip headers
}

// MemberTotal is what the members under one top-level name add up to.
type MemberTotal struct {
	Prefix string // first element of the members' names
	Count  int64  // members
	Bytes  int64  // content
	Stored int64  // bytes taken in the tarball, headers included
}

// Writer writes one tarball. Its methods may be called by many goroutines; each adds one whole member at a time.
// The first error sticks: what was written by then is no valid tarball, and every later call returns that error.
type Writer struct {
	mu     sync.Mutex
	o      WriterOptions
	out    *sumWriter
	gz     gzSwitch
	tw     *tar.Writer
	totals []MemberTotal
	cur    int   // index in totals of the open gzip member's prefix
	mark   int64 // bytes out when the open gzip member began
	err    error
	closed bool
}

// NewWriter returns a Writer of a tarball to w. The caller closes it, after an error too: that ends its goroutines.
func NewWriter(w io.Writer, o WriterOptions) *Writer {
	if o.Level == 0 {
		o.Level = 6
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.ModTime.IsZero() {
		o.ModTime = time.Unix(0, 0)
	}
	t := &Writer{o: o, out: &sumWriter{w: w, h: sha256.New()}}
	t.gz = gzSwitch{out: t.out, o: o}
	t.tw = tar.NewWriter(&t.gz)
	return t
}

// AddBytes adds a compressed member that holds data.
func (w *Writer) AddBytes(name string, mode fs.FileMode, data []byte) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: unixMode(mode), Size: int64(len(data)), ModTime: w.o.ModTime}
	return w.add(h, packed, bytes.NewReader(data))
}

// AddStored adds a member of size bytes read from r, without compressing them. It is an error if r ends early or goes on.
func (w *Writer) AddStored(name string, mode fs.FileMode, size int64, mtime time.Time, r io.Reader) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: unixMode(mode), Size: size, ModTime: mtime}
	return w.add(h, stored, r)
}

// AddDir adds an empty directory.
func (w *Writer) AddDir(name string, mode fs.FileMode) error {
	h := &tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimSuffix(name, "/") + "/", Mode: unixMode(mode), ModTime: w.o.ModTime}
	return w.add(h, packed, nil)
}

// Close writes the end of the tarball; it does not close the writer below. A second call does nothing.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return w.err
	}
	w.closed = true
	if w.err != nil {
		// The tarball is lost already; closing only ends the compressor's goroutines.
		_ = w.gz.close()
		return w.err
	}
	if w.gz.active == nil {
		w.gz.open(packed)
	}
	if err := w.tw.Close(); err != nil {
		_ = w.gz.close() // as above: err is the error that counts
		return w.fail("end", err)
	}
	if err := w.endMember(); err != nil {
		return w.fail("end", err)
	}
	return nil
}

// Sums returns the size in bytes and the SHA-256, in hexadecimal, of everything written so far: after Close, of the tarball.
func (w *Writer) Sums() (size int64, sha256hex string) {
	return w.out.sums()
}

// Members returns the totals of each top-level name in the order of their first member. Stored is exact after Close.
func (w *Writer) Members() []MemberTotal {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]MemberTotal(nil), w.totals...)
}

// add writes one member; r yields exactly h.Size bytes, and is nil for a member without content.
func (w *Writer) add(h *tar.Header, k kind, r io.Reader) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.begin(h.Name, h.Size, k); err != nil {
		return err
	}
	h.Format = tar.FormatPAX
	if err := w.tw.WriteHeader(h); err != nil {
		return w.fail(h.Name, err)
	}
	if r != nil {
		if err := copyExactly(w.tw, r, h.Size); err != nil {
			return w.fail(h.Name, err)
		}
	}
	if err := w.tw.Flush(); err != nil {
		return w.fail(h.Name, err)
	}
	return nil
}

// begin checks the name, opens the right gzip member and counts. The caller holds the lock.
func (w *Writer) begin(name string, size int64, k kind) error {
	if w.err != nil {
		return w.err
	}
	if w.closed {
		return fmt.Errorf("add %q to tarball: tarball is closed", name)
	}
	if err := checkName(strings.TrimSuffix(name, "/")); err != nil {
		return fmt.Errorf("add %q to tarball: %w", name, err)
	}
	prefix, _, _ := strings.Cut(name, "/")
	same := w.gz.active != nil && w.totals[w.cur].Prefix == prefix
	if !same || (size >= smallMember && k != w.gz.kind) {
		if err := w.endMember(); err != nil {
			return w.fail(name, err)
		}
		w.cur = w.total(prefix)
		w.gz.open(k)
	}
	w.totals[w.cur].Count++
	w.totals[w.cur].Bytes += size
	return nil
}

// total returns the place of prefix in totals. Top-level names are few.
func (w *Writer) total(prefix string) int {
	for i := range w.totals {
		if w.totals[i].Prefix == prefix {
			return i
		}
	}
	w.totals = append(w.totals, MemberTotal{Prefix: prefix})
	return len(w.totals) - 1
}

// endMember closes the open gzip member and books its size.
func (w *Writer) endMember() error {
	if err := w.gz.close(); err != nil {
		return err
	}
	n, _ := w.out.sums()
	if len(w.totals) > 0 {
		w.totals[w.cur].Stored += n - w.mark
	}
	w.mark = n
	return nil
}

func (w *Writer) fail(name string, err error) error {
	w.err = fmt.Errorf("write %q to tarball: %w", name, err)
	return w.err
}

// kind is how the content of a gzip member is kept.
type kind int

const (
	packed kind = iota // deflate, several cores
	stored             // deflate's stored blocks
)

// gzSwitch is the series of gzip members: at most one is open.
type gzSwitch struct {
	out    io.Writer
	o      WriterOptions
	kind   kind
	active io.WriteCloser
	pack   *pgzip.Writer
	store  *gzip.Writer
}

func (g *gzSwitch) Write(p []byte) (int, error) {
	if g.active == nil {
		return 0, errors.New("no gzip member is open")
	}
	return g.active.Write(p)
}

// open begins a gzip member; none is open.
func (g *gzSwitch) open(k kind) {
	g.kind = k
	if k == stored {
		if g.store == nil {
			g.store, _ = gzip.NewWriterLevel(g.out, flate.NoCompression) // fails only for an invalid level
		} else {
			g.store.Reset(g.out)
		}
		g.store.ModTime = g.o.ModTime
		g.active = g.store
		return
	}
	if g.pack == nil {
		w, err := pgzip.NewWriterLevel(g.out, g.o.Level)
		if err == nil {
			err = w.SetConcurrency(compressBlock, g.o.Workers)
		}
		if err != nil {
			g.active = brokenWriter{err}
			return
		}
		g.pack = w
	} else {
		g.pack.Reset(g.out) // this forgets the number of workers
		if err := g.pack.SetConcurrency(compressBlock, g.o.Workers); err != nil {
			g.active = brokenWriter{err}
			return
		}
	}
	g.pack.ModTime = g.o.ModTime
	g.active = g.pack
}

func (g *gzSwitch) close() error {
	if g.active == nil {
		return nil
	}
	a := g.active
	g.active = nil
	err := a.Close()
	if err != nil && g.pack != nil {
		g.pack.Reset(io.Discard) // waits for its goroutines, which Close does not do after an error
		g.pack = nil
	}
	return err
}

// brokenWriter reports a compressor that could not be made (an invalid level).
type brokenWriter struct{ err error }

func (b brokenWriter) Write([]byte) (int, error) { return 0, b.err }
func (b brokenWriter) Close() error              { return b.err }

// sumWriter counts and hashes what passes. One goroutine at a time writes (the gzip writers call it in order); sums may be
// asked for meanwhile.
type sumWriter struct {
	w  io.Writer
	mu sync.Mutex // guards below
	h  hash.Hash
	n  int64
}

func (s *sumWriter) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.h.Write(p[:n])
	s.n += int64(n)
	return n, err
}

func (s *sumWriter) sums() (size int64, sha256hex string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n, hex.EncodeToString(s.h.Sum(nil))
}

// copyExactly copies size bytes and then expects the end of r.
func copyExactly(w io.Writer, r io.Reader, size int64) error {
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, io.LimitReader(r, size), make([]byte, min(copyBuffer, size+1)))
	if err == nil && n < size {
		return fmt.Errorf("content ended after %d of %d bytes: %w", n, size, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return err
	}
	var one [1]byte
	switch n, err := io.ReadFull(r, one[:]); {
	case n > 0:
		return fmt.Errorf("content is longer than the %d bytes announced", size)
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

// unixMode returns the twelve permission bits of mode as POSIX has them.
func unixMode(mode fs.FileMode) int64 {
	m := int64(mode.Perm())
	if mode&fs.ModeSetuid != 0 {
		m |= 0o4000
	}
	if mode&fs.ModeSetgid != 0 {
		m |= 0o2000
	}
	if mode&fs.ModeSticky != 0 {
		m |= 0o1000
	}
	return m
}
