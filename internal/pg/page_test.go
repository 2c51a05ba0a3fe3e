package pg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

// plainChecksum is the definition, one word after the other, to compare the fast one with.
func plainChecksum(page []byte, number uint32) uint16 {
	p := slices.Clone(page)
	p[8], p[9] = 0, 0
	p = append(p, make([]byte, 2*checksumRow)...)
	hash := checksumSeeds
	for i := 0; i < len(p)/4; i++ {
		h := hash[i%checksumLanes] ^ binary.LittleEndian.Uint32(p[4*i:])
		hash[i%checksumLanes] = (h * checksumPrime) ^ (h >> 17)
	}
	sum := number
	for _, h := range hash {
		sum ^= h
	}
	return uint16(sum%65535 + 1)
}

// page makes a page of random content with a right checksum.
func page(r *rand.Rand, size int, number uint32) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	b[pageUpperOffset] = 1 // not 0
	binary.LittleEndian.PutUint16(b[pageChecksumOffset:], plainChecksum(b, number))
	return b
}

func TestPageChecksum(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for size := minPageSize; size <= maxPageSize; size *= 2 {
		for range 20 {
			number := r.Uint32()
			b := page(r, size, number)
			if !PageValid(b, number) || PageValid(b, number^1) {
				t.Fatalf("page of %d bytes, number %d: %04X, want %04X", size, number, PageChecksum(b, number), plainChecksum(b, number))
			}
			b[r.IntN(size)] ^= 0x80
			if PageChecksum(b, number) != plainChecksum(b, number) {
				t.Fatalf("damaged page of %d bytes", size)
			}
		}
	}
	// The first page of pg_class of a real PostgreSQL 15 (server_test.go writes it with -update).
	real, err := os.ReadFile("testdata/page-0")
	if err != nil {
		t.Fatal(err)
	}
	if !PageValid(real, 0) || PageValid(real, 1) || len(real) != 8192 {
		t.Error("a real page is not valid")
	}
}

func TestNewPage(t *testing.T) {
	b := make([]byte, 8192)
	if !PageValid(b, 7) {
		t.Error("a page of zeros is not valid")
	}
	b[8191] = 1
	if PageValid(b, 7) {
		t.Error("a page with upper 0 that is not zero is valid")
	}
	binary.LittleEndian.PutUint16(b[pageChecksumOffset:], PageChecksum(b, 7))
	if PageValid(b, 7) {
		t.Error("a page with upper 0 that is not zero is valid with a checksum")
	}
}

// writeSizes are ways to cut a stream.
var writeSizes = []int{1 << 20, 8192, 8191, 8193, 1000, 3*8192 + 5}

func TestPageChecker(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	const segment, perSegment, pages = 2, 131072, 12
	var file []byte
	for i := range pages {
		file = append(file, page(r, 8192, segment*perSegment+uint32(i))...)
	}
	for _, i := range []int{0, 3, 4, 5, 11} {
		file[i*8192+4000] ^= 1
	}
	clear(file[7*8192 : 8*8192])
	const base = segment * perSegment
	want := []PageRange{{base, base}, {base + 3, base + 5}, {base + 11, base + 11}}
	for _, size := range writeSizes {
		for _, tail := range []int{0, 1, 600} {
			c := NewPageChecker(8192, segment, nil)
			for part := range slices.Chunk(append(slices.Clone(file), make([]byte, tail)...), size) {
				if n, err := c.Write(part); n != len(part) || err != nil {
					t.Fatalf("Write = %d, %v", n, err)
				}
			}
			bad, aligned := c.Finish()
			if !slices.Equal(bad, want) || aligned != (tail == 0) {
				t.Errorf("writes of %d, %d more bytes: %v, %v; want %v", size, tail, bad, aligned, want)
			}
		}
	}
	if bad, aligned := NewPageChecker(8192, 0, nil).Finish(); len(bad) != 0 || !aligned {
		t.Errorf("empty file: %v, %v", bad, aligned)
	}
}

func TestPageCheckerReadsAgain(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	var file []byte
	for i := range 4 {
		file = append(file, page(r, 4096, uint32(i))...)
	}
	file[2*4096+99] ^= 1
	same := func(offset int64, b []byte) (int, error) { return copy(b, file[offset:]), nil }
	changed := func(offset int64, b []byte) (int, error) {
		n := copy(b, file[offset:])
		b[50]++
		return n, nil
	}
	bad := []PageRange{{2, 2}}
	for name, test := range map[string]struct {
		reread func(int64, []byte) (int, error)
		want   []PageRange
	}{
		"never":     {nil, bad},
		"unchanged": {same, bad},
		"changed":   {changed, nil},
		"cut off":   {func(int64, []byte) (int, error) { return 5, io.ErrUnexpectedEOF }, nil},
		"dropped":   {func(int64, []byte) (int, error) { return 0, fmt.Errorf("open: %w", fs.ErrNotExist) }, nil},
		"I/O error": {func(int64, []byte) (int, error) { return 0, errors.New("input/output error") }, bad},
	} {
		asked := []int64{}
		c := NewPageChecker(4096, 0, func(offset int64, b []byte) (int, error) {
			asked = append(asked, offset)
			return test.reread(offset, b)
		})
		if test.reread == nil {
			c = NewPageChecker(4096, 0, nil)
			asked = append(asked, 2*4096)
		}
		for part := range slices.Chunk(file, 1000) {
			if _, err := c.Write(part); err != nil {
				t.Fatal(err)
			}
		}
		if got, aligned := c.Finish(); !slices.Equal(got, test.want) || !aligned || !slices.Equal(asked, []int64{2 * 4096}) {
			t.Errorf("%s: %v, %v, read again at %v", name, got, aligned, asked)
		}
	}
}

func TestPageSegmentNumber(t *testing.T) {
	for name, want := range map[string]uint32{
		"12345": 0, "12345.1": 1, "12345.131": 131, "12345_fsm": 0, "12345_fsm.2": 2, "PG_VERSION": 0, "12345.": 0,
		"x.y": 0, "12345.99999999999": 0, "12345.-1": 0, "base/1.5/2": 0,
	} {
		if got := PageSegmentNumber(name); got != want {
			t.Errorf("PageSegmentNumber(%q) = %d, want %d", name, got, want)
		}
	}
}

func BenchmarkPageChecker(b *testing.B) {
	r := rand.New(rand.NewPCG(7, 8))
	var buffer []byte
	for i := range 32 {
		buffer = append(buffer, page(r, 8192, uint32(i))...)
	}
	b.SetBytes(int64(len(buffer)))
	for b.Loop() {
		c := NewPageChecker(8192, 0, nil)
		if _, err := c.Write(buffer); err != nil {
			b.Fatal(err)
		}
		if bad, _ := c.Finish(); len(bad) != 0 {
			b.Fatal(bad)
		}
	}
}
