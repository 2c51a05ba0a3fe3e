package repo

import (
	"encoding/hex"
	"reflect"
	"strings"
	"testing"
	"time"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func blockSum(t testing.TB, s string) (sum [MaxBlockChecksum]byte) {
	copy(sum[:], unhex(t, s))
	return sum
}

// The worked examples of the format page, section 9.4.
const (
	fullMapHex = "00 07 01 aa989b01 bb09 06 84f806390a02 298e21c37795 e0364e8e3bc5"
	incrMapHex = "00 16 01 9202 9f0d 06 02 278416d72ad4 f3ff595b7294 06 02 b9ac4b e705 08 01 02 2ac0819e5c02 17 00 107883c21356"
)

func TestBlockMapWorkedExamples(t *testing.T) {
	for _, test := range []struct {
		name, encoded string
		want          []BlockRef
	}{
		{"full", fullMapHex, []BlockRef{
			{0, 1, 2542634, 151, 3 * 8192, 0, blockSum(t, "84f806390a02")},
			{0, 1, 2542634, 151, 3 * 8192, 1, blockSum(t, "298e21c37795")},
			{0, 1, 2542634, 151, 3 * 8192, 2, blockSum(t, "e0364e8e3bc5")},
		}},
		{"increment", incrMapHex, []BlockRef{
			{2, 1, 274, 211, 3 * 8192, 0, blockSum(t, "278416d72ad4")},
			{2, 1, 274, 211, 3 * 8192, 1, blockSum(t, "f3ff595b7294")},
			{0, 2, 1234489, 257, 4 * 8192, 2, blockSum(t, "2ac0819e5c02")},
			{2, 1, 274, 211, 3 * 8192, 2, blockSum(t, "107883c21356")},
		}},
	} {
		encoded := unhex(t, test.encoded)
		m, err := DecodeBlockMap(encoded, 8192, 6)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if !reflect.DeepEqual(m.Blocks, test.want) {
			t.Errorf("%s: decoded\n%+v, want\n%+v", test.name, m.Blocks, test.want)
		}
		back, err := m.Encode()
		if err != nil || !reflect.DeepEqual(back, encoded) {
			t.Errorf("%s: encoded %x (%v), want %x", test.name, back, err, encoded)
		}
		for n := range encoded {
			if _, err := DecodeBlockMap(encoded[:n], 8192, 6); err == nil {
				t.Errorf("%s: accepted when cut at %d of %d", test.name, n, len(encoded))
			}
		}
		if _, err := DecodeBlockMap(append(encoded, 0), 8192, 6); err == nil {
			t.Errorf("%s: accepted with a byte after it", test.name)
		}
	}
}

// TestBlockMapShapes round-trips what the examples do not have: a short last block, a gap, continuing twice, a super block
// whose inner block was replaced, several super blocks in one run.
func TestBlockMapShapes(t *testing.T) {
	const bs = 16384
	ref := func(reference int, offset, size, super, position int64) BlockRef {
		return BlockRef{Reference: reference, Offset: offset, Size: size, SuperSize: super, Position: position,
			Checksum: blockSum(t, "0102030405060708")}
	}
	for name, blocks := range map[string][]BlockRef{
		"two super blocks and a short end": {ref(0, 0, 500, 2*bs, 0), ref(0, 0, 500, 2*bs, 1), ref(0, 500, 90, bs+77, 0), ref(0, 500, 90, bs+77, 1)},
		"only a short block":               {ref(0, 0, 10, 1, 0)},
		"continued twice":                  {ref(0, 9, 50, 5*bs, 0), ref(1, 0, 7, 2*bs, 0), ref(0, 9, 50, 5*bs, 2), ref(1, 0, 7, 2*bs, 1), ref(0, 9, 50, 5*bs, 4)},
		"gap":                              {ref(3, 0, 50, bs, 0), ref(1, 0, 7, bs, 0), ref(3, 90, 50, bs, 0), ref(3, 140, 60, bs, 0)},
		"gap within neighbours":            {ref(3, 0, 50, bs, 0), ref(3, 90, 50, bs, 0)},
		"hole within a super block":        {ref(0, 0, 50, 4*bs, 0), ref(0, 0, 50, 4*bs, 3)},
		"continued and going on":           {ref(0, 0, 50, 2*bs, 0), ref(1, 0, 7, bs, 0), ref(0, 0, 50, 2*bs, 1), ref(0, 50, 60, bs, 0)},
	} {
		m := &BlockMap{BlockSize: bs, ChecksumSize: 8, Blocks: blocks}
		encoded, err := m.Encode()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		back, err := DecodeBlockMap(encoded, bs, 8)
		if err != nil || !reflect.DeepEqual(back, m) {
			t.Errorf("%s: %x decodes to\n%+v (%v), want\n%+v", name, encoded, back, err, m)
		}
	}
	for name, blocks := range map[string][]BlockRef{
		"no blocks":           nil,
		"backwards":           {ref(0, 50, 50, bs, 0), ref(1, 0, 7, bs, 0), ref(0, 0, 50, bs, 0)},
		"position backwards":  {ref(0, 0, 50, 2*bs, 1), ref(1, 0, 7, bs, 0), ref(0, 0, 50, 2*bs, 0)},
		"outside":             {ref(0, 0, 50, 2*bs, 2)},
		"no size":             {ref(0, 0, 0, bs, 0)},
		"negative offset":     {ref(0, -1, 5, bs, 0)},
		"sizes that disagree": {ref(0, 0, 50, 2*bs, 0), ref(0, 0, 51, 2*bs, 1)},
	} {
		m := &BlockMap{BlockSize: bs, ChecksumSize: 8, Blocks: blocks}
		if b, err := m.Encode(); err == nil {
			t.Errorf("%s is encoded as %x", name, b)
		}
	}
	two := []BlockRef{ref(0, 0, 50, bs, 0), ref(1, 0, 7, bs, 0), ref(0, 50, 50, bs, 0)}
	two[2].BundleID = 7
	if b, err := (&BlockMap{BlockSize: bs, ChecksumSize: 8, Blocks: two}).Encode(); err == nil {
		t.Errorf("two bundles of one reference are encoded as %x", b)
	}
	for _, p := range []struct {
		size int64
		sum  int
	}{{0, 6}, {-8192, 6}, {8191, 6}, {8192, 5}, {8192, 17}} {
		if _, err := DecodeBlockMap(unhex(t, fullMapHex), p.size, p.sum); err == nil {
			t.Errorf("block size %d, checksum size %d are accepted", p.size, p.sum)
		}
	}
	if _, err := DecodeBlockMap([]byte{1}, 8192, 6); err == nil || !strings.Contains(err.Error(), "version must be zero") {
		t.Errorf("version 1 gives %v", err)
	}
}

func TestBlockSize(t *testing.T) {
	const day = 24 * time.Hour
	for _, test := range []struct {
		size int64
		age  time.Duration
		want int64
	}{
		{0, 0, 0}, {16<<10 - 1, 0, 0}, {16 << 10, 0, 8 << 10}, {11<<20 - 1, 0, 8 << 10}, {11 << 20, 0, 16 << 10},
		{43 << 20, 0, 24 << 10}, {96 << 20, 0, 32 << 10}, {146 << 20, 0, 40 << 10}, {228 << 20, 0, 48 << 10},
		{329 << 20, 0, 56 << 10}, {448 << 20, 0, 64 << 10}, {585 << 20, 0, 72 << 10}, {740 << 20, 0, 80 << 10},
		{914 << 20, 0, 88 << 10}, {1 << 30, 7*day - 1, 88 << 10}, {1 << 30, 7 * day, 176 << 10},
		{1 << 30, 14 * day, 352 << 10}, {1 << 30, 28 * day, 0}, {16 << 10, 14 * day, 32 << 10}, {16 << 10, -day, 8 << 10},
	} {
		if got := BlockSize(test.size, test.age); got != test.want {
			t.Errorf("BlockSize(%d, %v) = %d, want %d", test.size, test.age, got, test.want)
		}
	}
	for block, want := range map[int64]int{8 << 10: 6, 24 << 10: 6, 32 << 10: 7, 128 << 10: 8, 512 << 10: 9, 1 << 20: 10, 2 << 20: 11, 4 << 20: 12} {
		if got := BlockChecksumSize(block); got != want {
			t.Errorf("BlockChecksumSize(%d) = %d, want %d", block, got, want)
		}
	}
}

// FuzzBlockMap: whatever decodes can be encoded and decodes to the same again, with no more blocks than bytes for them.
func FuzzBlockMap(f *testing.F) {
	f.Add(unhex(f, fullMapHex), byte(0), byte(0))
	f.Add(unhex(f, incrMapHex), byte(0), byte(0))
	f.Add([]byte{0, 1, 9, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, byte(3), byte(2))
	f.Fuzz(func(t *testing.T, b []byte, size, sum byte) {
		blockSize, checksumSize := (int64(size)+1)*8192, 6+int(sum)%11
		m, err := DecodeBlockMap(b, blockSize, checksumSize)
		if err != nil {
			return
		}
		if len(m.Blocks)*checksumSize > len(b) {
			t.Fatalf("%d blocks from %d bytes", len(m.Blocks), len(b))
		}
		encoded, err := m.Encode()
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		again, err := DecodeBlockMap(encoded, blockSize, checksumSize)
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("encoded %x decodes to %+v (%v), want %+v", encoded, again, err, m)
		}
	})
}
