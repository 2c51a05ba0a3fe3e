package pg

import "encoding/binary"

const (
	checksumLanes = 32
	checksumRow   = 4 * checksumLanes // bytes of which each lane takes one word
	checksumPrime = 16777619          // FNV's
)

// checksumSeeds are the fixed start values of the 32 lanes, part of the page format.
var checksumSeeds = [checksumLanes]uint32{
	0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
	0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
	0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
	0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
}

// PageChecksum computes the checksum of a page at a number in its relation (PostgreSQL manual, 28.2 Data Checksums).
// The page is 32 columns of little endian words. Each column is hashed on its own, FNV-1a with a shifted copy mixed
// in, then with two words of zero; the column hashes and the page number are combined by exclusive or and brought into
// 1 … 65535. The checksum field itself counts as zero. The page is not changed; its length must be a multiple of 128.
func PageChecksum(page []byte, number uint32) uint16 {
	sum := number
	// Eight columns at a time are what fits the registers of a 64-bit machine; the page stays in the first cache.
	for lane := 0; lane < checksumLanes; lane += 8 {
		sum ^= checksumEight(page[4*lane:], (*[8]uint32)(checksumSeeds[lane:]), lane == 0)
	}
	return uint16(sum%65535) + 1
}

// mix takes one word into the hash of a column.
func mix(hash, word uint32) uint32 {
	hash ^= word
	return hash*checksumPrime ^ hash>>17
}

// checksumEight hashes eight neighbouring columns, the first of which starts at b, and combines them. With header set
// the checksum field of the page header, the low half of column 2 in the first row, is taken as zero.
func checksumEight(b []byte, seeds *[8]uint32, header bool) uint32 {
	word := func(row []byte, i int) uint32 { return binary.LittleEndian.Uint32(row[4*i:]) }
	mask := ^uint32(0)
	if header {
		mask = 0xFFFF0000
	}
	row := b[:32:32]
	h0 := mix(seeds[0], word(row, 0))
	h1 := mix(seeds[1], word(row, 1))
	h2 := mix(seeds[2], word(row, 2)&mask)
	h3 := mix(seeds[3], word(row, 3))
	h4 := mix(seeds[4], word(row, 4))
	h5 := mix(seeds[5], word(row, 5))
	h6 := mix(seeds[6], word(row, 6))
	h7 := mix(seeds[7], word(row, 7))
	for len(b) >= checksumRow+32 {
		b = b[checksumRow:]
		row := b[:32:32]
		h0 = mix(h0, word(row, 0))
		h1 = mix(h1, word(row, 1))
		h2 = mix(h2, word(row, 2))
		h3 = mix(h3, word(row, 3))
		h4 = mix(h4, word(row, 4))
		h5 = mix(h5, word(row, 5))
		h6 = mix(h6, word(row, 6))
		h7 = mix(h7, word(row, 7))
	}
	end := func(h uint32) uint32 { return mix(mix(h, 0), 0) }
	return end(h0) ^ end(h1) ^ end(h2) ^ end(h3) ^ end(h4) ^ end(h5) ^ end(h6) ^ end(h7)
}
