package storage

import (
	"hash/crc32"
	"io"
)

// Sizes of the pieces that a Body is made of: the first one small, since most objects are.
const (
	firstPiece = 16 << 10
	bodyPiece  = 256 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Body is what one request sends: bytes in memory, held in pieces so that it grows without copying. Write it first; then
// any number of readers may read it, one after the other or at the same time.
type Body struct {
	pieces [][]byte
	size   int64
	crc    uint32
}

// Write implements io.Writer. It cannot fail.
func (b *Body) Write(p []byte) (int, error) {
	n := len(p)
	b.crc = crc32.Update(b.crc, castagnoli, p)
	b.size += int64(n)
	for len(p) > 0 {
		last := len(b.pieces) - 1
		if last < 0 || len(b.pieces[last]) == cap(b.pieces[last]) {
			b.grow(len(p))
			last++
		}
		piece := b.pieces[last]
		k := copy(piece[len(piece):cap(piece)], p)
		b.pieces[last], p = piece[:len(piece)+k], p[k:]
	}
	return n, nil
}

// grow adds an empty piece; want bytes are about to be written.
func (b *Body) grow(want int) {
	size := bodyPiece
	if len(b.pieces) == 0 && want <= firstPiece {
		size = firstPiece
	}
	b.pieces = append(b.pieces, make([]byte, 0, size))
}

// Size is the number of bytes.
func (b *Body) Size() int64 { return b.size }

// CRC32C is the Castagnoli checksum of the bytes.
func (b *Body) CRC32C() uint32 { return b.crc }

// Reader returns a new reader over all bytes written so far. It stays good when the Body is let go: an HTTP transport may
// read on for a while after it has given up a request. That is why the pieces are left to the garbage collector.
func (b *Body) Reader() io.ReadSeeker { return &bodyReader{pieces: b.pieces, size: b.size} }

// bodyReader reads what a Body held.
type bodyReader struct {
	pieces [][]byte
	size   int64
	piece  int
	off    int // in the piece
}

// Read implements io.Reader.
func (r *bodyReader) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) && r.piece < len(r.pieces) {
		k := copy(p[n:], r.pieces[r.piece][r.off:])
		n += k
		if r.off += k; r.off == len(r.pieces[r.piece]) {
			r.piece, r.off = r.piece+1, 0
		}
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// WriteTo implements io.WriterTo: the pieces go out as they are.
func (r *bodyReader) WriteTo(w io.Writer) (int64, error) {
	var sent int64
	for r.piece < len(r.pieces) {
		n, err := w.Write(r.pieces[r.piece][r.off:])
		sent += int64(n)
		r.off += n
		if err != nil {
			return sent, err
		}
		r.piece, r.off = r.piece+1, 0
	}
	return sent, nil
}

// Seek implements io.Seeker.
func (r *bodyReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at()
	case io.SeekEnd:
		offset += r.size
	}
	if offset < 0 {
		return 0, errNegativeOffset
	}
	r.piece, r.off = 0, 0
	for rest := offset; r.piece < len(r.pieces); r.piece++ {
		if size := int64(len(r.pieces[r.piece])); rest >= size {
			rest -= size
			continue
		}
		r.off = int(rest)
		break
	}
	return offset, nil
}

// at is the place of the next byte.
func (r *bodyReader) at() int64 {
	at := int64(r.off)
	for _, p := range r.pieces[:r.piece] {
		at += int64(len(p))
	}
	return at
}
