package zstdfast

import "math/bits"

// coder is the finite state entropy code of one kind of symbol (4.1). States are from 1<<log to 2<<log − 1.
type coder struct {
	count  [64]uint32 // of each symbol
	share  [64]int32  // of the 1<<log states
	log    int
	change [64]change
	next   [512]uint16
}

// change is what a symbol does to a state: (state + bits) >> 16 bits leave it, and next[state >> those + to] follows it.
type change struct{ bits, to uint32 }

// How a code is told (3.1.1.3.2.1).
const (
	modeRLE = 1
	modeFSE = 2
)

// prepare makes the code for n symbols that were counted and appends its description. most is the format's limit for log.
func (t *coder) prepare(dst []byte, n, most int) (mode byte, _ []byte) {
	high, kinds := 0, 0
	for i, c := range t.count {
		if c > 0 {
			high, kinds = i, kinds+1
		}
	}
	if kinds == 1 {
		t.log, t.change[high], t.next[0] = 0, change{}, 0
		return modeRLE, append(dst, byte(high))
	}
	t.log = min(max(bits.Len(uint(n-1))-2, bits.Len(uint(high))+1, 5), most)
	t.spread(n, high)
	dst = t.describe(dst, high)
	t.build(high)
	return modeFSE, dst
}

// spread gives each symbol its share of the states, one at least.
func (t *coder) spread(n, high int) {
	left, largest := int32(1)<<t.log, 0
	scale := uint64(left) << 32 / uint64(n)
	for i, c := range t.count[:high+1] {
		t.share[i] = 0
		if c > 0 {
			t.share[i] = max(int32((uint64(c)*scale+1<<31)>>32), 1)
		}
		left -= t.share[i]
		if c > t.count[largest] {
			largest = i
		}
	}
	for i := 0; t.share[largest]+left <= t.share[largest]/2; i = (i + 1) % (high + 1) { // many rare symbols: all others give
		if t.share[i] > 1 {
			less := min(max(t.share[i]/8, 1), -left)
			t.share[i] -= less
			left += less
		}
	}
	t.share[largest] += left
}

// describe appends the shares (4.1.1).
func (t *coder) describe(dst []byte, high int) []byte {
	word, n := uint(t.log-5), 4
	put := func(v uint, width int) {
		word |= v << n
		for n += width; n >= 8; n -= 8 {
			dst = append(dst, byte(word))
			word >>= 8
		}
	}
	left := 1<<t.log + 1 // one more than the states that are not given away yet
	for i := 0; i <= high; i++ {
		v := int(t.share[i]) + 1
		// v is from 0 to left. The numbers that are too many for the bits less one get one more.
		width := bits.Len(uint(left))
		short := 1<<width - 1 - left
		switch {
		case v < short:
			put(uint(v), width-1)
		case v < 1<<(width-1):
			put(uint(v), width)
		default:
			put(uint(v+short), width)
		}
		left -= v - 1
		if v == 1 { // how many more zeros follow, 3 at a time
			more := 0
			for t.share[i+1] == 0 {
				more, i = more+1, i+1
			}
			for ; more >= 3; more -= 3 {
				put(3, 2)
			}
			put(uint(more), 2)
		}
	}
	if n > 0 {
		dst = append(dst, byte(word))
	}
	return dst
}

// build makes the tables from the shares.
func (t *coder) build(high int) {
	size := uint32(1) << t.log
	var symbol [512]uint8 // by state
	var first [65]uint32  // of a symbol's places in next
	at, step := uint32(0), size>>1+size>>3+3
	for i, share := range t.share[:high+1] {
		first[i+1] = first[i] + uint32(share)
		for range share {
			symbol[at&511] = uint8(i)
			at = (at + step) & (size - 1)
		}
	}
	place := first
	for i := range size {
		s := symbol[i&511] & 63
		t.next[place[s]&511] = uint16(size + i)
		place[s]++
	}
	for i, share := range t.share[:high+1] {
		v := uint32(share)
		if v == 0 {
			continue
		}
		// States from v<<most on give most bits away, those below one less; what stays is from v to 2v − 1.
		most := uint32(t.log - bits.Len32(v-1) + 1)
		if v == 1 {
			most = uint32(t.log)
		}
		t.change[i] = change{bits: most<<16 - v<<most, to: first[i] - v}
	}
}

// begin is a state from which the decoder gives the symbol: the last one it gives.
func (t *coder) begin(symbol uint8) uint32 {
	x := t.change[symbol&63]
	n := (x.bits + 1<<15) >> 16
	return uint32(t.next[((n<<16-x.bits)>>n+x.to)&511])
}

// The codes of lengths, the numbers of extra bits that they are followed by, and masks for those (3.1.1.3.2.1.1).
var (
	litsBits  = [64]uint8{16: 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	matchBits = [64]uint8{32: 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

	litsMask, matchMask = masks(litsBits), masks(matchBits)
	litsLow, matchLow   = lowCodes(litsBits), lowCodes(matchBits)
)

func masks(width [64]uint8) (m [64]uint32) {
	for code, n := range width {
		m[code] = 1<<n - 1
	}
	return m
}

// lowCodes are the codes of the lengths below 128.
func lowCodes(width [64]uint8) (low [128]uint8) {
	at := 0
	for code, n := range width {
		for i := at; i < min(at+1<<n, len(low)); i++ {
			low[i] = uint8(code)
		}
		at += 1 << n
	}
	return low
}

func litsCode(n uint32) uint8 {
	if n < 64 {
		return litsLow[n]
	}
	return uint8(bits.Len32(n) + 18)
}

// matchCode is of a length less 3.
func matchCode(n uint32) uint8 {
	if n < 128 {
		return matchLow[n]
	}
	return uint8(bits.Len32(n) + 35)
}
