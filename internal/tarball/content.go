package tarball

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"
	"time"

	"github.com/klauspost/compress"
	"golang.org/x/sys/unix"
)

const (
	smallFile    = 1 << 20               // bytes: read to memory, so that only a settled state is written
	readAttempts = 3                     // for a file that changes while it is read
	clockTick    = 12 * time.Millisecond // longer than the kernel's: two changes within one bear the same ctime
	settledAfter = 2                     // seconds: a ctime younger than this when reading began proves nothing
	sampleSize   = 64 << 10              // bytes looked at to tell whether content compresses
	reportEvery  = 64 << 20              // bytes between two progress reports inside a file
	dullEstimate = 0.1                   // of compress.Estimate: less is not worth compressing
)

// file captures a regular file, or the further name of one.
func (p *pass) file(ctx context.Context, n *node) error {
	old, err := p.lookup(n)
	if err != nil {
		return err
	}
	if n.st.Nlink > 1 {
		if first, ok := p.links[idOf(&n.st)]; ok {
			return p.hardlink(n, old, first)
		}
	}
	keep, err := p.unchanged(ctx, n, old)
	if err != nil {
		return err
	}
	e := old
	if !keep {
		if e, err = p.writeFile(ctx, n); err != nil || e == nil {
			return err
		}
		p.res.Rewritten++
	}
	p.links[fileID{e.Dev, e.Inode}] = linked{path: e.Path, wrote: !keep}
	if n.st.Nlink == 1 {
		delete(p.links, fileID{e.Dev, e.Inode})
	}
	p.res.Files++
	p.res.Bytes += e.Size
	if e.Inconsistent && p.final {
		p.res.InconsistentCount++
		if len(p.res.Inconsistent) < maxListed {
			p.res.Inconsistent = append(p.res.Inconsistent, Issue{n.String(), "changed during each of 3 attempts to read it"})
		}
	}
	return p.emit(e)
}

func (p *pass) hardlink(n *node, old *entry, first linked) error {
	e := p.entry(n, &n.st, typeHardlink)
	e.Link = first.path
	if first.wrote || old == nil || old.Type != typeHardlink || old.Link != e.Link || old.Inode != e.Inode || old.Dev != e.Dev {
		if err := p.w.addEntry(e, nil, packed); err != nil {
			return err
		}
	}
	p.res.Links++
	return p.emit(e)
}

// unchanged says whether what the first pass wrote is still the file.
func (p *pass) unchanged(ctx context.Context, n *node, old *entry) (bool, error) {
	if old == nil || old.Type != typeFile || old.Inconsistent || !old.describes(&n.st) {
		return false, nil
	}
	if old.Read[0]-old.CTime[0] > settledAfter {
		return true, nil
	}
	if p.fresh(&n.st) > 0 {
		return false, nil
	}
	f, st, err := openRegular(n)
	if err != nil {
		return false, nil // writeFile meets the same and reports it
	}
	defer f.Close() // read only: nothing to lose
	h := sha256.New()
	if _, err := io.Copy(h, &ctxReader{ctx: ctx, r: f}); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return false, cause
		}
		return false, nil // as above
	}
	attrs, err := readXattrs(fdXattrs(int(f.Fd())))
	if err != nil || !equalXattrs(attrs, old.Xattrs) || st.Mode&0o7777 != old.Mode || st.Uid != old.UID || st.Gid != old.GID {
		return false, nil
	}
	var after unix.Stat_t
	if unix.Fstat(int(f.Fd()), &after) != nil {
		return false, nil
	}
	return old.describes(&st) && sameState(&st, &after) && hex.EncodeToString(h.Sum(nil)) == old.SHA256, nil
}

func (e *entry) describes(st *unix.Stat_t) bool {
	return e.Size == st.Size && e.MTime == mtimeOf(st) && e.CTime == ctimeOf(st) && e.Dev == st.Dev && e.Inode == st.Ino
}

// writeFile writes the file's content and returns its entry; nil if the file vanished or could not be read. The first pass
// tries a large file once only: the final one reads it again anyway.
func (p *pass) writeFile(ctx context.Context, n *node) (*entry, error) {
	for attempt := 1; ; attempt++ {
		e, settled, err := p.tryFile(ctx, n, attempt == readAttempts)
		switch {
		case err == nil && (settled || attempt == readAttempts || (!p.final && e.Size > smallFile)):
			e.Inconsistent = !settled
			return e, nil
		case err == nil:
			continue
		case vanished(err):
			return nil, nil
		}
		var unreadable *readError
		if errors.As(err, &unreadable) {
			return nil, p.failed(n, unreadable.error)
		}
		return nil, err
	}
}

// fresh returns how long to wait until a change would show in the ctime, if that is not so already.
func (p *pass) fresh(st *unix.Stat_t) time.Duration {
	age := p.c.o.Now().Sub(time.Unix(int64(st.Ctim.Sec), int64(st.Ctim.Nsec)))
	if age < -clockTick || age >= clockTick { // a ctime in the future is another clock's
		return 0
	}
	return clockTick - age
}

// settle waits, in the final pass, until a further change of f must show, and brings st up to date. It reports false if f
// was changed again meanwhile. The first pass need not wait: the final one compares the content of such files.
func (p *pass) settle(ctx context.Context, f *os.File, st *unix.Stat_t) (bool, error) {
	wait := p.fresh(st)
	if !p.final || wait == 0 {
		return true, nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false, context.Cause(ctx)
	case <-timer.C:
	}
	if err := unix.Fstat(int(f.Fd()), st); err != nil {
		return false, &readError{err}
	}
	return p.fresh(st) == 0, nil
}

// readError is an error of the file, as opposed to one of the tarball.
type readError struct{ error }

// tryFile reads the file once. settled says that it did not change meanwhile. A small file that did is written only if this
// is the last attempt; of a large one each attempt is a member, of which the last counts.
func (p *pass) tryFile(ctx context.Context, n *node, last bool) (e *entry, settled bool, err error) {
	now := p.c.o.Now()
	f, st, err := openRegular(n)
	if err != nil {
		if vanished(err) {
			return nil, false, err
		}
		return nil, false, &readError{err}
	}
	defer f.Close() // read only: nothing to lose
	quiet, err := p.settle(ctx, f, &st)
	if err != nil {
		return nil, false, err
	}
	e = p.entry(n, &st, typeFile)
	e.Read = stamp{now.Unix(), int64(now.Nanosecond())}
	if e.Xattrs, err = readXattrs(fdXattrs(int(f.Fd()))); err != nil {
		return nil, false, &readError{err}
	}
	c := &content{ctx: ctx, f: f, size: st.Size, h: sha256.New(), p: p}
	var after unix.Stat_t
	if st.Size <= smallFile {
		var segs []segment
		if segs, err = smallSegments(f, &st); err != nil {
			return nil, false, &readError{err}
		}
		data := p.c.buf[:st.Size]
		if _, err := io.ReadFull(c, data); err != nil {
			return nil, false, err // only the context's: content never ends early
		}
		if err := unix.Fstat(int(f.Fd()), &after); err != nil {
			return nil, false, &readError{err}
		}
		settled = quiet && c.err == nil && !c.short && sameState(&st, &after)
		if c.err == nil && (settled || last) {
			e.SHA256 = hex.EncodeToString(c.h.Sum(nil))
			p.prog.Bytes += st.Size
			err = p.addSmall(e, data, segs)
		}
	} else {
		err = p.writeLarge(e, c)
		if err == nil {
			if err := unix.Fstat(int(f.Fd()), &after); err != nil {
				return nil, false, &readError{err}
			}
			settled = quiet && c.err == nil && !c.short && sameState(&st, &after)
		}
	}
	if err == nil && c.err != nil {
		err = &readError{c.err}
	}
	return e, settled, err
}

// smallSegments returns where a small file has data, or nil if it has no hole worth it, which its allocation tells already.
func smallSegments(f *os.File, st *unix.Stat_t) ([]segment, error) {
	if st.Blocks*512+minHole > st.Size {
		return nil, nil
	}
	return dataSegments(f, st.Size)
}

// addSmall writes a member from data, the whole content; what stands outside the segments must be zeros to be left out.
func (p *pass) addSmall(e *entry, data []byte, segs []segment) error {
	var kept []byte
	at := int64(0)
	for _, s := range segs {
		if len(bytes.Trim(data[at:s.off], "\x00")) > 0 {
			segs = nil // written to since the holes were looked for
			break
		}
		kept = append(kept, data[s.off:s.off+s.len]...)
		at = s.off + s.len
	}
	if segs == nil {
		return p.w.addEntry(e, bytes.NewReader(data), kindOf(data))
	}
	e.Sparse = true
	return p.w.addSparse(e.header(), kindOf(kept), segs, bytes.NewReader(kept))
}

// writeLarge writes a member from the file as it is read, with its holes if it has any.
func (p *pass) writeLarge(e *entry, c *content) error {
	segs, err := dataSegments(c.f, c.size)
	if err != nil {
		return &readError{err}
	}
	k, err := sampleKind(c.f, c.size, segs)
	if err != nil {
		return &readError{err}
	}
	if segs == nil {
		err = p.w.addEntry(e, c, k)
	} else {
		e.Sparse = true
		c.segs = segs
		err = p.w.addSparse(e.header(), k, segs, c)
	}
	if err != nil {
		return err
	}
	if err := c.hashTo(c.size); err != nil {
		return err
	}
	e.SHA256 = hex.EncodeToString(c.h.Sum(nil))
	return nil
}

// content yields exactly size bytes of a file, or its segments: what the file has not (any more) is zeros, and so is what
// cannot be read; err and short tell. It fails only when the context is cancelled.
type content struct {
	ctx   context.Context
	p     *pass
	f     *os.File
	size  int64
	segs  []segment // nil: the whole file
	h     hash.Hash // of the file with its holes as zeros
	off   int64     // next byte to read
	seen  int64     // bytes hashed
	since int64     // bytes since the last progress report
	short bool      // the file ended early
	err   error     // reading failed
}

func (c *content) Read(b []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	end := c.size
	if c.segs != nil {
		for len(c.segs) > 0 && c.off >= c.segs[0].off+c.segs[0].len {
			c.segs = c.segs[1:]
		}
		if len(c.segs) == 0 {
			return 0, io.EOF
		}
		c.off = max(c.off, c.segs[0].off)
		end = c.segs[0].off + c.segs[0].len
	}
	if c.off >= end {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), end-c.off)]
	n := 0
	if c.err == nil && !c.short {
		var err error
		n, err = c.f.ReadAt(b, c.off)
		switch {
		case errors.Is(err, io.EOF):
			c.short = true
		case err != nil:
			c.err = err
		}
	}
	clear(b[n:])
	if err := c.hashTo(c.off); err != nil {
		return 0, err
	}
	c.h.Write(b)
	c.off += int64(len(b))
	c.seen = c.off
	if c.since += int64(len(b)); c.size > smallFile {
		c.p.prog.Bytes += int64(len(b))
		if c.since >= reportEvery {
			c.since = 0
			c.p.report()
		}
	}
	return len(b), nil
}

// hashTo hashes the zeros of a hole up to off.
func (c *content) hashTo(off int64) error {
	if c.seen >= off {
		return nil
	}
	zeros := make([]byte, copyBuffer)
	for c.seen < off {
		if err := context.Cause(c.ctx); err != nil {
			return err
		}
		n := min(off-c.seen, int64(len(zeros)))
		c.h.Write(zeros[:n])
		c.seen += n
	}
	return nil
}

// ctxReader stops when its context does.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(b []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

// kindOf looks at the beginning and the middle: headers compress even where the rest does not.
func kindOf(data []byte) kind {
	if len(data) < smallMember {
		return packed
	}
	mid := data[len(data)/2:]
	if compress.Estimate(data[:min(len(data), sampleSize)]) < dullEstimate || compress.Estimate(mid[:min(len(mid), sampleSize)]) < dullEstimate {
		return stored
	}
	return packed
}

func sampleKind(f *os.File, size int64, segs []segment) (kind, error) {
	first, mid := int64(0), size/2
	if len(segs) > 0 {
		first, mid = segs[0].off, segs[len(segs)/2].off
	}
	buf := make([]byte, 2*sampleSize)
	a, err := f.ReadAt(buf[:sampleSize], first)
	if err != nil && !errors.Is(err, io.EOF) {
		return packed, err
	}
	b, err := f.ReadAt(buf[a:a+sampleSize], mid)
	if err != nil && !errors.Is(err, io.EOF) {
		return packed, err
	}
	if a+b < smallMember {
		return packed, nil
	}
	return kindOf(buf[:a+b]), nil
}

// addEntry adds the member that e describes; r has its content.
func (w *Writer) addEntry(e *entry, r io.Reader, k kind) error { return w.add(e.header(), k, r) }

// addIndex adds the index, which is size bytes in r.
func (w *Writer) addIndex(r io.Reader, size int64, mtime time.Time) error {
	return w.add(&tar.Header{Typeflag: tar.TypeReg, Name: IndexName, Mode: 0o600, Size: size, ModTime: mtime}, packed, r)
}

// header returns the tar header of e.
func (e *entry) header() *tar.Header {
	h := &tar.Header{
		Name: memberName(e.Tree, string(e.Path)), Mode: int64(e.Mode),
		Uid: int(e.UID), Gid: int(e.GID), Uname: e.User, Gname: e.Group,
		ModTime: time.Unix(e.MTime[0], e.MTime[1]),
	}
	switch e.Type {
	case typeDir:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case typeFile:
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	case typeHardlink:
		h.Typeflag, h.Linkname = tar.TypeLink, memberName(e.Tree, string(e.Link))
	case typeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, string(e.Link)
	case typeFifo:
		h.Typeflag = tar.TypeFifo
	}
	if len(e.Xattrs) > 0 {
		h.PAXRecords = map[string]string{}
		for _, x := range e.Xattrs {
			h.PAXRecords["SCHILY.xattr."+string(x.Name)] = string(x.Value)
		}
	}
	return h
}
