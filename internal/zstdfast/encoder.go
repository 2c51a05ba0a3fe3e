// Package zstdfast writes frames of Zstandard (RFC 8878) where speed counts most: WAL segments and relation files at the
// fastest level, of which archive-push has one each time PostgreSQL fills it. It knows one way to do it, the nearest match
// from one small table, taken at once. On WAL it needs about three quarters of the time of the general encoder at its fastest
// level, and less room: both because it does without what that one needs for streams, dictionaries and other levels.
//
// Sections named in the comments are those of RFC 8878. The Huffman code of the literals is the library's.
package zstdfast

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"slices"

	"github.com/klauspost/compress/huff0"
)

// MaxFrame is how many bytes fit in one frame. A frame is one segment, so the decoder needs as much memory as its content.
const MaxFrame = 8 << 20

const (
	maxBlock  = 128 << 10 // the format's limit
	minMatch  = 4
	tableBits = 14
	margin    = 16 // no match begins in so many bytes at the end of a block
)

// What a block and its literals are (3.1.1.2.2, 3.1.1.3.1.1).
const (
	kindRaw        = 0
	kindRLE        = 1
	kindCompressed = 2
	kindSameCode   = 3 // literals only: with the Huffman code of the block before
)

// sequence is a run of literals and the match that follows it.
type sequence struct {
	offset uint32 // as the format counts: 1 is the last offset again (or the one before it, when there are no literals); else 3 more than the distance
	lits   uint32
	match  uint32 // length − 3
}

// codes are the three symbols of a sequence.
type codes struct{ lits, offset, match uint8 }

// Encoder makes frames, one at a time. It holds up to 800 KiB. The zero value is ready for use, by one goroutine.
type Encoder struct {
	table                     [1 << tableBits]uint32 // by the hash of 6 bytes, where in the frame they were last
	seqs                      []sequence             // of the block
	codes                     []codes                // of the block's sequences
	text                      []byte                 // of the block: its literals, and room
	lits                      int                    // length of the literals
	recent                    [2]uint32              // offsets
	huff                      *huff0.Scratch
	lengths, offsets, matches coder
}

// Append compresses src to one frame and appends it to dst. The same src gives the same frame, whatever came before. It
// never takes more than 12 bytes and 3 for each 128 KiB more than src. More than MaxFrame bytes are a mistake of the caller's
// and panic.
func (e *Encoder) Append(dst, src []byte) []byte {
	if len(src) > MaxFrame {
		panic("zstdfast: more than MaxFrame bytes")
	}
	dst = append(dst, 0x28, 0xb5, 0x2f, 0xfd, 2<<6|1<<5) // magic; size in 4 bytes, single segment (3.1.1.1)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(src)))
	if len(src) == 0 {
		return append(dst, 1, 0, 0) // an empty last block
	}
	if e.huff == nil {
		e.huff = &huff0.Scratch{}
		e.seqs = make([]sequence, maxBlock/minMatch+1)
		e.codes = make([]codes, maxBlock/minMatch+1)
		e.text = make([]byte, maxBlock+margin)
	}
	clear(e.table[:])
	e.huff.Reuse = huff0.ReusePolicyNone
	e.recent = [2]uint32{1, 4}
	for at := 0; at < len(src); at += maxBlock {
		dst = e.appendBlock(dst, src[:min(at+maxBlock, len(src))], at, at+maxBlock >= len(src))
	}
	return dst
}

// appendBlock appends the block that src ends with, from at on.
func (e *Encoder) appendBlock(dst, src []byte, at int, last bool) []byte {
	start, recent := len(dst), e.recent
	n := e.find(src, at)
	dst = append(dst, 0, 0, 0)
	dst = e.appendLiterals(dst)
	dst = e.appendSequences(dst, n)
	kind, stored := kindCompressed, len(dst)-start-3
	if size := len(src) - at; stored >= size { // the decoder learns nothing from a raw block
		e.recent, e.huff.Reuse = recent, huff0.ReusePolicyNone
		dst = append(dst[:start+3], src[at:]...)
		kind, stored = kindRaw, size
	}
	h := stored<<3 | kind<<1
	if last {
		h |= 1
	}
	dst[start], dst[start+1], dst[start+2] = byte(h), byte(h>>8), byte(h>>16)
	return dst
}

func load64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }
func load32(b []byte, i int) uint32 { return binary.LittleEndian.Uint32(b[i:]) }

// hash is of the lower 6 bytes.
func hash(v uint64) uint64 { return v << 16 * 0xcf1bbcdcbf9b0000 >> (64 - tableBits) }

// find cuts what src holds from at on into sequences, of which it gives the number, and the literals that follow the last.
// The loop looks at two places a turn and takes longer steps the longer it finds nothing.
func (e *Encoder) find(src []byte, at int) int {
	n, lits := 0, 0
	last, before := int(e.recent[0]), int(e.recent[1])
	from, s := at, max(at, last) // nothing is that far back yet
	limit := len(src) - margin
	for s < limit {
		v := load64(src, s)
		h, h2 := hash(v), hash(v>>8)
		m, m2 := int(e.table[h]), int(e.table[h2])
		e.table[h], e.table[h2] = uint32(s), uint32(s+1)
		again := false
		switch r := s + 2 - last; {
		case load32(src, r) == uint32(v>>16):
			again, s, m = true, s+2, r
		case load32(src, m) == uint32(v) && m < s:
		case load32(src, m2) == uint32(v>>8) && m2 <= s:
			s, m = s+1, m2
		default:
			s += 2 + (s-from)>>5
			continue
		}
		length := minMatch + same(src, s+minMatch, m+minMatch)
		least := from
		if again {
			least++ // without literals it would mean the offset before
		}
		for s > least && m > 0 && src[s-1] == src[m-1] {
			s, m, length = s-1, m-1, length+1
		}
		offset := uint32(1)
		if !again {
			before, last = last, s-m
			offset = uint32(s-m) + 3
		}
		if s-from <= margin {
			copy(e.text[lits:lits+margin], src[from:from+margin]) // of a fixed length: no call
		} else {
			copy(e.text[lits:], src[from:s])
		}
		lits += s - from
		e.seqs[n] = sequence{offset: offset, lits: uint32(s - from), match: uint32(length - 3)}
		n++
		s += length
		from = s
		for s < limit && load32(src, s-before) == load32(src, s) {
			e.table[hash(load64(src, s))] = uint32(s)
			length := minMatch + same(src, s+minMatch, s-before+minMatch)
			e.seqs[n] = sequence{offset: 1, match: uint32(length - 3)}
			n++
			before, last = last, before
			s += length
			from = s
		}
	}
	e.lits = lits + copy(e.text[lits:], src[from:])
	e.recent = [2]uint32{uint32(last), uint32(before)}
	return n
}

// same says how many bytes from a on are as those from b on; b < a.
func same(src []byte, a, b int) int {
	n := a
	for n+8 <= len(src) {
		if x := load64(src, n) ^ load64(src, b); x != 0 {
			return n - a + bits.TrailingZeros64(x)>>3
		}
		n, b = n+8, b+8
	}
	for n < len(src) && src[n] == src[b] {
		n, b = n+1, b+1
	}
	return n - a
}

// appendLiterals appends the literals section (3.1.1.3.1).
func (e *Encoder) appendLiterals(dst []byte) []byte {
	lits := e.text[:e.lits]
	n := len(lits)
	if n < 32 {
		return append(append(dst, byte(kindRaw|n<<3)), lits...)
	}
	compress, streams := huff0.Compress4X, uint64(1)
	if n < 256 {
		compress, streams = huff0.Compress1X, 0
	}
	out, again, err := compress(lits, e.huff)
	switch {
	case errors.Is(err, huff0.ErrUseRLE):
		return append(plainHeader(dst, kindRLE, n), lits[0])
	case err != nil: // does not get smaller
		return append(plainHeader(dst, kindRaw, n), lits...)
	case len(out)+5 >= n:
		e.huff.Reuse = huff0.ReusePolicyNone // for the decoder has not seen this code
		return append(plainHeader(dst, kindRaw, n), lits...)
	}
	e.huff.Reuse = huff0.ReusePolicyPrefer
	kind := uint64(kindCompressed)
	if again {
		kind = kindSameCode
	}
	// Both sizes have 10 bits, or 14 or 18; they follow 2 bits of kind and 2 of format.
	width, size := 10, 3
	if n >= 1<<14 {
		width, size, streams = 18, 5, 3
	} else if n >= 1<<10 {
		width, size, streams = 14, 4, 2
	}
	h := kind | streams<<2 | uint64(n)<<4 | uint64(len(out))<<(4+width)
	for range size {
		dst = append(dst, byte(h))
		h >>= 8
	}
	return append(dst, out...)
}

// plainHeader appends the header of n literals, 32 or more, that are stored as they are, or of which one stands for all.
func plainHeader(dst []byte, kind, n int) []byte {
	if n < 1<<12 {
		h := kind | 1<<2 | n<<4
		return append(dst, byte(h), byte(h>>8))
	}
	h := kind | 3<<2 | n<<4
	return append(dst, byte(h), byte(h>>8), byte(h>>16))
}

// appendSequences appends the section of the first n sequences (3.1.1.3.2).
func (e *Encoder) appendSequences(dst []byte, n int) []byte {
	switch {
	case n == 0:
		return append(dst, 0)
	case n < 1<<7:
		dst = append(dst, byte(n))
	case n < 0x7f00:
		dst = append(dst, byte(n>>8)+128, byte(n))
	default:
		dst = append(dst, 255, byte(n-0x7f00), byte((n-0x7f00)>>8))
	}
	clear(e.lengths.count[:])
	clear(e.offsets.count[:])
	clear(e.matches.count[:])
	for i, q := range e.seqs[:n] {
		c := codes{lits: litsCode(q.lits), offset: uint8(bits.Len32(q.offset) - 1), match: matchCode(q.match)}
		e.codes[i] = c
		e.lengths.count[c.lits&63]++
		e.offsets.count[c.offset&63]++
		e.matches.count[c.match&63]++
	}
	at := len(dst)
	dst = append(dst, 0)
	var lengths, offsets, matches byte
	lengths, dst = e.lengths.prepare(dst, n, 9)
	offsets, dst = e.offsets.prepare(dst, n, 8)
	matches, dst = e.matches.prepare(dst, n, 9)
	dst[at] = lengths<<6 | offsets<<4 | matches<<2
	return e.appendBits(dst, n)
}

// appendBits appends the bit stream of the first n sequences, which begins with the last of them (3.1.1.3.2.1).
//
// No more than 7 bits are left when it has just been written out. With those the states of a sequence, 26 bits, and the
// extra bits of its lengths, 31 as a block has room for one long one only, fill the 64 of a word; an offset has 23 at most.
func (e *Encoder) appendBits(dst []byte, n int) []byte {
	dst = slices.Grow(dst, n*10+64)
	b := bitWriter{out: dst[len(dst):cap(dst)]}
	q, c := e.seqs[n-1], e.codes[n-1]
	lengths, offsets, matches := e.lengths.begin(c.lits), e.offsets.begin(c.offset), e.matches.begin(c.match)
	for i := n - 1; ; {
		b.put(uint64(q.lits&litsMask[c.lits&63]), litsBits[c.lits&63])
		b.put(uint64(q.match&matchMask[c.match&63]), matchBits[c.match&63])
		b.flush()
		b.put(uint64(q.offset&(1<<(c.offset&31)-1)), c.offset)
		b.flush()
		if i--; i < 0 {
			break
		}
		q, c = e.seqs[i], e.codes[i]
		offsets = b.state(&e.offsets, offsets, c.offset)
		matches = b.state(&e.matches, matches, c.match)
		lengths = b.state(&e.lengths, lengths, c.lits)
	}
	b.put(uint64(matches)&(1<<e.matches.log-1), uint8(e.matches.log))
	b.put(uint64(offsets)&(1<<e.offsets.log-1), uint8(e.offsets.log))
	b.put(uint64(lengths)&(1<<e.lengths.log-1), uint8(e.lengths.log))
	b.put(1, 1) // where the decoder begins
	b.flush()
	if b.n > 0 {
		b.at++ // its byte was written
	}
	return dst[:len(dst)+b.at]
}

// bitWriter collects bits, the first of them the lowest.
type bitWriter struct {
	out  []byte
	at   int
	word uint64
	n    uint8 // bits in word
}

func (b *bitWriter) put(v uint64, n uint8) {
	b.word |= v << (b.n & 63)
	b.n += n
}

// flush writes whole bytes out; up to 7 bits stay, which are written too but not counted.
func (b *bitWriter) flush() {
	binary.LittleEndian.PutUint64(b.out[b.at:], b.word)
	b.at += int(b.n >> 3)
	b.word >>= b.n &^ 7 // of all 64 bits nothing stays
	b.n &= 7
}

// state puts what the state gives away for the symbol, and gives the next state.
func (b *bitWriter) state(t *coder, state uint32, symbol uint8) uint32 {
	x := &t.change[symbol&63]
	n := (state + x.bits) >> 16 & 15
	b.put(uint64(state&(1<<n-1)), uint8(n))
	return uint32(t.next[(state>>n+x.to)&511])
}
