package pg

import "encoding/binary"

// fields reads numbers at fixed offsets. The first access outside the bytes sticks in short; everything read after
// is 0, so that a parser reads all it needs and asks once.
type fields struct {
	b     []byte
	short bool
}

func (f *fields) at(offset, n int) []byte {
	if f.short || offset+n > len(f.b) {
		f.short = true
		return make([]byte, n)
	}
	return f.b[offset : offset+n]
}

func (f *fields) u16(offset int) uint16 { return binary.LittleEndian.Uint16(f.at(offset, 2)) }
func (f *fields) u32(offset int) uint32 { return binary.LittleEndian.Uint32(f.at(offset, 4)) }
func (f *fields) u64(offset int) uint64 { return binary.LittleEndian.Uint64(f.at(offset, 8)) }

// powerOfTwoIn reports whether n is a power of two from low to high.
func powerOfTwoIn(n, low, high uint32) bool { return n >= low && n <= high && n&(n-1) == 0 }
