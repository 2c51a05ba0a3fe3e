package repo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// Block incremental (format page, section 9): a file is stored as the super blocks that changed, followed by a map that says
// for every block of the file in which backup and super block it is. A map is a list of reference runs, each a list of super
// block runs, each a list of checksums; v is an unsigned LEB128 number:
//
//	map          v(0)  referenceRun+
//	referenceRun v(ref<<3|flags) [v(bundle)] [v(offset or gap)]  superBlockRun+
//	superBlockRun  [v(size<<3|flags) [v(super size)] [v(total) [v(skip)]]]  checksum+
//
// Sizes are differences, and what did not change since the last mention of the reference is left out. See DecodeBlockMap.

// pageUnit is the page size that block sizes are multiples of.
const pageUnit = 8192

// MinBlockChecksum and MaxBlockChecksum bound the bytes kept of a block's XXH3-128.
const (
	MinBlockChecksum = 6
	MaxBlockChecksum = 16
)

// BlockSize gives the block size in bytes for a file of size bytes that was age old (backup start − modification time) when
// first stored with block incremental; 0 = store the file whole (section 9.1).
func BlockSize(size int64, age time.Duration) int64 {
	const day = 24 * time.Hour
	factor := int64(1)
	switch {
	case age >= 28*day:
		return 0
	case age >= 14*day:
		factor = 4
	case age >= 7*day:
		factor = 2
	}
	table := [...]struct{ fileMiB, blockKiB int64 }{
		{914, 88}, {740, 80}, {585, 72}, {448, 64}, {329, 56}, {228, 48}, {146, 40}, {96, 32}, {43, 24}, {11, 16},
	}
	for _, t := range table {
		if size >= t.fileMiB<<20 {
			return t.blockKiB << 10 * factor
		}
	}
	if size >= 16<<10 {
		return pageUnit * factor
	}
	return 0
}

// BlockChecksumSize gives the bytes kept of a block's checksum for a block size in bytes (section 9.1).
func BlockChecksumSize(blockSize int64) int {
	table := [...]struct {
		block int64
		sum   int
	}{{4 << 20, 12}, {2 << 20, 11}, {1 << 20, 10}, {512 << 10, 9}, {128 << 10, 8}, {32 << 10, 7}}
	for _, t := range table {
		if blockSize >= t.block {
			return t.sum
		}
	}
	return MinBlockChecksum
}

// BlockMap says where every block of a file is; BlockRef i is the file's bytes from i × BlockSize on.
type BlockMap struct {
	BlockSize    int64 // bytes, a multiple of 8192; the manifest's bi
	ChecksumSize int   // bytes, 6 to 16; the manifest's bic
	Blocks       []BlockRef
}

// BlockRef is one block's place.
type BlockRef struct {
	Reference int    // index in the manifest's list of references
	BundleID  uint64 // 0 = the file's own object
	Offset    int64  // of the super block in the object, bytes
	Size      int64  // of the super block as stored, bytes
	SuperSize int64  // of the super block's original bytes
	Position  int64  // of the block in the super block: its original bytes begin at Position × BlockSize
	Checksum  [MaxBlockChecksum]byte
}

// refState is what a map remembers of a reference between its runs: the place of its most recent super block.
type refState struct {
	bundle            uint64
	offset, size      int64
	superSize, nextAt int64 // nextAt is the block position after the last block mentioned
}

// Flags of a reference run and of a super block run (section 9.3).
const (
	refLast         = 1
	refBundle       = 2 // first mention of the reference
	refOffset       = 4 // first mention: an offset follows; later: a gap follows
	refContinue     = 2 // later mention
	refContinueLast = 4 // later mention with refContinue

	superLast    = 1
	superChanged = 2
	superTotal   = 4
)

// maxBlockPlace bounds offsets, and a sixteenth of it sizes, so that no sum or shift of them overflows.
const maxBlockPlace = math.MaxInt64 / 4

var errBlockMap = errors.New("damaged block map")

func checkBlockParameters(blockSize int64, checksumSize int) error {
	if blockSize <= 0 || blockSize%pageUnit != 0 || blockSize > math.MaxInt32 {
		return fmt.Errorf("block size %d is not a multiple of %d", blockSize, pageUnit)
	}
	if checksumSize < MinBlockChecksum || checksumSize > MaxBlockChecksum {
		return fmt.Errorf("block checksum size %d is outside %d to %d", checksumSize, MinBlockChecksum, MaxBlockChecksum)
	}
	return nil
}

// mapReader is a bounds-checked reader of a map's bytes; the first error sticks and every later number is 0.
type mapReader struct {
	b   []byte
	at  int
	err error
}

func (r *mapReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w at byte %d: %s", errBlockMap, r.at, fmt.Sprintf(format, args...))
	}
}

// number reads an LEB128 number of at most 62 bits, so that no sum of two of them overflows.
func (r *mapReader) number() int64 {
	if r.err != nil {
		return 0
	}
	v, n := binary.Uvarint(r.b[r.at:])
	if n <= 0 || v>>62 != 0 {
		r.fail("no number here")
		return 0
	}
	r.at += n
	return int64(v)
}

// DecodeBlockMap parses a map, already decrypted, of format version 0. blockSize and checksumSize come from the manifest.
// Whatever b is, memory stays within a small multiple of its length. All errors name the byte where the map goes wrong.
func DecodeBlockMap(b []byte, blockSize int64, checksumSize int) (*BlockMap, error) {
	if err := checkBlockParameters(blockSize, checksumSize); err != nil {
		return nil, fmt.Errorf("decode block map: %w", err)
	}
	d := mapDecoder{
		mapReader: mapReader{b: b},
		m:         &BlockMap{BlockSize: blockSize, ChecksumSize: checksumSize},
		refs:      make(map[int]*refState),
	}
	if d.number()&1 != 0 {
		d.fail("block map version must be zero")
	}
	for d.err == nil && !d.referenceRun() {
	}
	if d.err == nil && d.at != len(b) {
		d.fail("%d bytes after the last block", len(b)-d.at)
	}
	if d.err != nil {
		return nil, fmt.Errorf("decode block map: %w", d.err)
	}
	return d.m, nil
}

type mapDecoder struct {
	mapReader
	m        *BlockMap
	refs     map[int]*refState
	previous int64 // stored size of the previous super block run; 0 = none yet
}

// referenceRun reads one reference run and reports whether it was the last.
func (d *mapDecoder) referenceRun() (last bool) {
	head := d.number()
	if head>>3 > math.MaxInt32 {
		d.fail("reference %d", head>>3)
		return true
	}
	ref := int(head >> 3)
	state, seen := d.refs[ref]
	next := int64(0) // offset of the run's next super block
	first := false   // the run continues within a super block
	switch {
	case !seen:
		state = &refState{superSize: d.m.BlockSize}
		d.refs[ref] = state
		if head&refBundle != 0 {
			state.bundle = uint64(d.number())
		}
		if head&refOffset != 0 {
			next = d.number()
		}
	case head&refContinue != 0:
		first = true
	default:
		next = state.offset + state.size
		if head&refOffset != 0 {
			next += d.number()
		}
	}
	for end := false; !end && d.err == nil; first = false {
		if first {
			end = head&refContinueLast != 0
			d.total(state)
			d.previous = state.size
			next = state.offset + state.size
			continue
		}
		end = d.superBlock(state, next)
		next = state.offset + state.size
	}
	// The blocks of the run were appended with reference 0.
	for i := len(d.m.Blocks) - 1; i >= 0 && d.m.Blocks[i].Reference < 0; i-- {
		d.m.Blocks[i].Reference = ref
	}
	return head&refLast != 0
}

// superBlock reads a super block run that begins a super block at offset, and reports whether it ends its reference run.
func (d *mapDecoder) superBlock(state *refState, offset int64) (last bool) {
	head := d.number()
	size := head >> 3
	if d.previous != 0 {
		size = d.previous + (size>>1 ^ -(size & 1))
	}
	if size <= 0 || offset > maxBlockPlace || size > maxBlockPlace/16 {
		d.fail("super block of %d stored bytes at offset %d", size, offset)
		return true
	}
	d.previous = size
	state.offset, state.size, state.nextAt = offset, size, 0
	if head&superChanged != 0 {
		n := d.number()
		if n>>1 >= math.MaxInt32 {
			d.fail("super block of %d blocks", n>>1)
			return true
		}
		state.superSize = n >> 1 * d.m.BlockSize
		if n&1 != 0 {
			rest := d.number()
			if rest <= 0 || rest >= d.m.BlockSize {
				d.fail("last block of %d bytes", rest)
				return true
			}
			state.superSize += rest
		}
	}
	if head&superTotal != 0 {
		d.total(state)
	} else {
		d.checksums(state, blocksIn(state.superSize, d.m.BlockSize))
	}
	return head&superLast != 0
}

// total reads how many blocks follow and how many to skip before them, and then the checksums.
func (d *mapDecoder) total(state *refState) {
	n := d.number()
	if n&1 != 0 {
		skip := d.number()
		if skip > blocksIn(state.superSize, d.m.BlockSize) {
			d.fail("skip of %d blocks", skip)
		}
		state.nextAt += skip
	}
	d.checksums(state, n>>1+1)
}

func (d *mapDecoder) checksums(state *refState, n int64) {
	if d.err != nil {
		return
	}
	if n <= 0 || n > int64(len(d.b)-d.at)/int64(d.m.ChecksumSize) || state.nextAt+n > blocksIn(state.superSize, d.m.BlockSize) {
		d.fail("%d blocks from position %d of a super block of %d bytes", n, state.nextAt, state.superSize)
		return
	}
	for range n {
		ref := BlockRef{
			Reference: -1, BundleID: state.bundle, Offset: state.offset, Size: state.size,
			SuperSize: state.superSize, Position: state.nextAt,
		}
		copy(ref.Checksum[:], d.b[d.at:d.at+d.m.ChecksumSize])
		d.at += d.m.ChecksumSize
		d.m.Blocks = append(d.m.Blocks, ref)
		state.nextAt++
	}
}

// blocksIn is how many blocks hold size bytes.
func blocksIn(size, blockSize int64) int64 { return (size + blockSize - 1) / blockSize }

// Encode renders the map as the original does, byte for byte. It refuses what the format cannot say: no blocks at all, two
// objects for one reference, a super block that goes backwards, sizes that contradict each other.
func (m *BlockMap) Encode() ([]byte, error) {
	if err := checkBlockParameters(m.BlockSize, m.ChecksumSize); err != nil {
		return nil, fmt.Errorf("encode block map: %w", err)
	}
	if len(m.Blocks) == 0 {
		return nil, errors.New("encode block map: no blocks")
	}
	e := mapEncoder{m: m, out: []byte{0}, refs: make(map[int]*refState)}
	for at := 0; at < len(m.Blocks); {
		var err error
		if at, err = e.referenceRun(at); err != nil {
			return nil, fmt.Errorf("encode block map: block %d: %w", at, err)
		}
	}
	return e.out, nil
}

type mapEncoder struct {
	m        *BlockMap
	out      []byte
	refs     map[int]*refState
	previous int64
}

func (e *mapEncoder) number(v int64) { e.out = binary.AppendUvarint(e.out, uint64(v)) }

// superRun is where the super block run that begins at block at ends: one super block, ascending positions without holes.
func (e *mapEncoder) superRun(at int) (end int) {
	b := e.m.Blocks
	for end = at + 1; end < len(b) && b[end].sameSuper(b[at]) && b[end].Position == b[end-1].Position+1; end++ {
	}
	return end
}

// follows reports that block at begins a super block right behind that of block at-1, so that both fit in one reference run.
func (e *mapEncoder) follows(at int) bool {
	if at >= len(e.m.Blocks) {
		return false
	}
	a, b := e.m.Blocks[at-1], e.m.Blocks[at]
	return a.Reference == b.Reference && a.BundleID == b.BundleID && a.Offset+a.Size == b.Offset
}

func (b BlockRef) sameSuper(o BlockRef) bool {
	return b.Reference == o.Reference && b.BundleID == o.BundleID && b.Offset == o.Offset && b.Size == o.Size && b.SuperSize == o.SuperSize
}

// check refuses values that cannot be written or would not be read.
func (e *mapEncoder) check(b BlockRef) error {
	if b.Reference < 0 || b.Reference > math.MaxInt32 || b.BundleID >= 1<<62 || b.Offset < 0 || b.Offset > maxBlockPlace ||
		b.Size <= 0 || b.Size > maxBlockPlace/16 || b.SuperSize <= 0 || b.SuperSize > math.MaxInt32*e.m.BlockSize {
		return fmt.Errorf("impossible place: reference %d, bundle %d, offset %d, size %d of %d", b.Reference, b.BundleID, b.Offset, b.Size, b.SuperSize)
	}
	return nil
}

// referenceRun writes the reference run that begins at block at and returns where it ends.
func (e *mapEncoder) referenceRun(at int) (int, error) {
	// The run is one super block run and those that follow without gap.
	ends := []int{e.superRun(at)}
	for e.follows(ends[len(ends)-1]) {
		ends = append(ends, e.superRun(ends[len(ends)-1]))
	}
	first := e.m.Blocks[at]
	if err := e.check(first); err != nil {
		return at, err
	}
	head := int64(first.Reference) << 3
	if ends[len(ends)-1] == len(e.m.Blocks) {
		head |= refLast
	}
	state, seen := e.refs[first.Reference]
	switch {
	case !seen:
		e.firstMention(head, first)
		state = e.refs[first.Reference]
	case state.bundle != first.BundleID:
		return at, fmt.Errorf("reference %d is in bundles %d and %d", first.Reference, state.bundle, first.BundleID)
	case state.offset == first.Offset:
		if first.Size != state.size || first.SuperSize != state.superSize || first.Position < state.nextAt {
			return at, errors.New("contradicts an earlier block of the same super block")
		}
		head |= refContinue
		if len(ends) == 1 {
			head |= refContinueLast
		}
		e.number(head)
		e.total(state, at, ends[0])
		e.previous = state.size
		at, ends = ends[0], ends[1:]
	default:
		gap := first.Offset - state.offset - state.size
		if gap < 0 {
			return at, errors.New("super block lies before an earlier one of its reference")
		}
		if gap > 0 {
			head |= refOffset
		}
		e.number(head)
		if gap > 0 {
			e.number(gap)
		}
	}
	for i, end := range ends {
		if err := e.superBlock(state, at, end, i == len(ends)-1); err != nil {
			return at, err
		}
		at = end
	}
	return at, nil
}

func (e *mapEncoder) firstMention(head int64, first BlockRef) {
	if first.BundleID != 0 {
		head |= refBundle
	}
	if first.Offset != 0 {
		head |= refOffset
	}
	e.number(head)
	if first.BundleID != 0 {
		e.number(int64(first.BundleID))
	}
	if first.Offset != 0 {
		e.number(first.Offset)
	}
	e.refs[first.Reference] = &refState{bundle: first.BundleID, superSize: e.m.BlockSize}
}

// superBlock writes a super block run that begins its super block.
func (e *mapEncoder) superBlock(state *refState, at, end int, last bool) error {
	b := e.m.Blocks[at]
	if err := e.check(b); err != nil {
		return err
	}
	head := b.Size
	if e.previous != 0 {
		d := b.Size - e.previous
		head = d<<1 ^ d>>63
	}
	head <<= 3
	if last {
		head |= superLast
	}
	changed := b.SuperSize != state.superSize
	if changed {
		head |= superChanged
	}
	total := b.Position != 0 || int64(end-at) != blocksIn(b.SuperSize, e.m.BlockSize)
	if total {
		head |= superTotal
	}
	e.number(head)
	if changed {
		whole, rest := b.SuperSize/e.m.BlockSize, b.SuperSize%e.m.BlockSize
		if rest == 0 {
			e.number(whole << 1)
		} else {
			e.number(whole<<1 | 1)
			e.number(rest)
		}
	}
	e.previous = b.Size
	state.offset, state.size, state.superSize, state.nextAt = b.Offset, b.Size, b.SuperSize, 0
	if b.Position < 0 || b.Position+int64(end-at) > blocksIn(b.SuperSize, e.m.BlockSize) {
		return fmt.Errorf("position %d is outside a super block of %d bytes", b.Position, b.SuperSize)
	}
	if total {
		e.total(state, at, end)
	} else {
		e.checksums(state, at, end)
	}
	return nil
}

// total writes number of blocks and skip, and the checksums.
func (e *mapEncoder) total(state *refState, at, end int) {
	skip := e.m.Blocks[at].Position - state.nextAt
	n := int64(end-at-1) << 1
	if skip == 0 {
		e.number(n)
	} else {
		e.number(n | 1)
		e.number(skip)
	}
	state.nextAt += skip
	e.checksums(state, at, end)
}

func (e *mapEncoder) checksums(state *refState, at, end int) {
	for i := at; i < end; i++ {
		e.out = append(e.out, e.m.Blocks[i].Checksum[:e.m.ChecksumSize]...)
	}
	state.nextAt += int64(end - at)
}
