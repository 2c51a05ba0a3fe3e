package tarball

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
)

// MaxMember bounds the size, holes included, of one member: the largest file of ext4, in bytes. Reading the holes of a
// sparse member costs time, but neither memory nor disk.
const MaxMember = 16 << 40

// Member is one member of a tarball. Read yields its content, holes as zeros.
type Member struct {
	Name     string // relative, in its shortest form, without a slash at the end
	Type     byte   // tar.TypeReg, TypeDir, TypeSymlink, TypeLink or TypeFifo
	Mode     fs.FileMode
	Size     int64
	ModTime  time.Time
	Linkname string // as in the tarball: the target of a symbolic link is data and may be anything
	Sparse   bool
	UID, GID int
	User     string
	Group    string

	r *Reader
}

// Read reads the member's content. It fails once Reader.Next was called again.
func (m *Member) Read(b []byte) (int, error) {
	if m.r == nil || m.r.cur != m {
		return 0, fmt.Errorf("read %q: the tarball was read on", m.Name)
	}
	n, err := m.r.tr.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = m.r.damaged(err)
	}
	return n, err
}

// Reader reads one tarball from front to end. Only after Next returned io.EOF is it certain that all of it was there and
// that no checksum failed: nothing taken from it should be relied on before.
type Reader struct {
	raw  *sumReader
	gz   *gzip.Reader
	tail *eofReader
	tr   *tar.Reader
	max  int64
	cur  *Member
	last string // name of the member met last
	err  error
}

// NewReader reads the first gzip header.
func NewReader(r io.Reader) (*Reader, error) {
	t := &Reader{raw: &sumReader{r: r, h: sha256.New()}, max: MaxMember}
	gz, err := gzip.NewReader(bufio.NewReaderSize(t.raw, 256<<10))
	if err != nil {
		return nil, t.damaged(err)
	}
	t.gz = gz
	t.tail = &eofReader{r: gz}
	t.tr = tar.NewReader(t.tail)
	return t, nil
}

// LimitMember lowers the bound on a member's size.
func (r *Reader) LimitMember(bytes int64) { r.max = bytes }

// Next skips what is left of the member before and returns the next one; io.EOF after the last, once the whole input has
// been read and every checksum was right. Errors are ErrDamaged, ErrUnsafe, or those of the input, and stick.
func (r *Reader) Next() (*Member, error) {
	if r.err == nil {
		r.cur, r.err = r.next()
	}
	if r.err != nil {
		r.cur = nil
		return nil, r.err
	}
	r.last = r.cur.Name
	return r.cur, nil
}

// Sums returns size in bytes and SHA-256 in hexadecimal of the compressed input read so far: all of it after io.EOF.
func (r *Reader) Sums() (size int64, sha256hex string) {
	return r.raw.n, hex.EncodeToString(r.raw.h.Sum(nil))
}

func (r *Reader) next() (*Member, error) {
	h, err := r.tr.Next()
	if errors.Is(err, io.EOF) {
		return nil, r.finish()
	}
	if err != nil {
		return nil, r.damaged(err)
	}
	_, sparse := h.PAXRecords["GNU.sparse.realsize"]
	m := &Member{
		Name: h.Name, Type: h.Typeflag, Mode: h.FileInfo().Mode(), Size: h.Size, ModTime: h.ModTime, Linkname: h.Linkname,
		Sparse: sparse, UID: h.Uid, GID: h.Gid, User: h.Uname, Group: h.Gname, r: r,
	}
	switch m.Type {
	case tar.TypeReg, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo:
	case tar.TypeDir:
		m.Name = strings.TrimSuffix(m.Name, "/")
	default:
		return nil, fmt.Errorf("tarball member %q: %w: type %q is not allowed", m.Name, ErrUnsafe, string(m.Type))
	}
	if err := checkName(m.Name); err != nil {
		return nil, fmt.Errorf("tarball member %q: %w", clip(m.Name), err)
	}
	if len(m.Linkname) > maxName {
		return nil, fmt.Errorf("tarball member %q: %w: link target of %d bytes", m.Name, ErrUnsafe, len(m.Linkname))
	}
	if m.Type == tar.TypeLink {
		if err := checkName(m.Linkname); err != nil {
			return nil, fmt.Errorf("tarball member %q: hard link to %q: %w", m.Name, clip(m.Linkname), err)
		}
	}
	if m.Size < 0 || m.Size > r.max {
		return nil, fmt.Errorf("tarball member %q: %w: %d bytes, at most %d are allowed", m.Name, ErrUnsafe, m.Size, r.max)
	}
	return m, nil
}

// finish reads what stands after the end of the tar stream, so that the last checksum is checked and the input hashed.
func (r *Reader) finish() error {
	if r.tail.ended {
		return r.damaged(fmt.Errorf("its end is missing: %w", io.ErrUnexpectedEOF))
	}
	buf := make([]byte, 32<<10)
	for rest := 0; ; {
		n, err := r.tail.Read(buf)
		for _, b := range buf[:n] {
			if b != 0 {
				return r.damaged(errors.New("data after its end"))
			}
		}
		if rest += n; rest > 1<<20 {
			return r.damaged(errors.New("more than 1 MiB of padding after its end"))
		}
		if errors.Is(err, io.EOF) {
			return io.EOF
		}
		if err != nil {
			return r.damaged(err)
		}
	}
}

// damaged says where; an error of the input itself (a disk, a connection, a cancelled context) is passed on as it is.
func (r *Reader) damaged(err error) error {
	where := "at its beginning"
	if r.last != "" {
		where = fmt.Sprintf("in or after member %q", r.last)
	}
	if r.raw.err != nil {
		return fmt.Errorf("read tarball %s: %w", where, r.raw.err)
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("tarball is %w %s (byte %d): %w", ErrDamaged, where, r.raw.n, err)
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// sumReader counts and hashes what is read, and keeps the input's own error.
type sumReader struct {
	r   io.Reader
	h   hash.Hash
	n   int64
	err error
}

func (s *sumReader) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	s.h.Write(b[:n])
	s.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// eofReader remembers that the end of the input was met by a read of its own: archive/tar reports the end of the archive
// in the same way whether it saw the two zero blocks or nothing.
type eofReader struct {
	r     io.Reader
	ended bool
}

func (e *eofReader) Read(b []byte) (int, error) {
	n, err := e.r.Read(b)
	if n > 0 && errors.Is(err, io.EOF) {
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		e.ended = true
	}
	return n, err
}
