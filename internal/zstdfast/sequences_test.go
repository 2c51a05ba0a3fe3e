package zstdfast

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/huff0"
)

// TestAnySequences writes blocks of sequences that find would hardly ever choose, for the limits of the bit stream are theirs: the
// longest literals and matches, the farthest offsets, symbols that come once among thousands of others.
func TestAnySequences(t *testing.T) {
	e, d := new(Encoder), newDecoder(t)
	e.Append(nil, make([]byte, 100)) // its rooms are made
	r := rand.New(rand.NewPCG(5, 6))
	early := make([]byte, MaxFrame-maxBlock)
	for i := range early {
		early[i] = byte(r.Uint32())
	}
	full := 0
	for round := range 1500 {
		before := early[:round%4*maxBlock]
		if round%100 == 99 {
			before = early
		}
		text, n := chosen(e, r, before)
		frame := binary.LittleEndian.AppendUint32([]byte{0x28, 0xb5, 0x2f, 0xfd, 2<<6 | 1<<5}, uint32(len(text)))
		for at := 0; at < len(before); at += maxBlock {
			h := maxBlock << 3
			frame = append(append(frame, byte(h), byte(h>>8), byte(h>>16)), before[at:at+maxBlock]...)
		}
		start := len(frame)
		frame = e.appendSequences(e.appendLiterals(append(frame, 0, 0, 0)), n)
		h := (len(frame)-start-3)<<3 | kindCompressed<<1 | 1
		if h>>3 > maxBlock {
			continue // the format does not allow it; find's caller stores it as it is
		}
		frame[start], frame[start+1], frame[start+2] = byte(h), byte(h>>8), byte(h>>16)
		got, err := d.DecodeAll(frame, nil)
		if err != nil || !bytes.Equal(got, text) {
			t.Fatalf("round %d: %d sequences behind %d bytes: %v, %d bytes of %d", round, n, len(before), err, len(got), len(text))
		}
		full++
	}
	if full < 500 {
		t.Errorf("only %d blocks were small enough", full)
	}
}

// chosen fills e with random sequences of one block and gives the text that they stand for behind what is before.
func chosen(e *Encoder, r *rand.Rand, before []byte) (text []byte, n int) {
	text = append(make([]byte, 0, len(before)+maxBlock), before...)
	e.lits, e.huff.Reuse = 0, huff0.ReusePolicyNone
	left := maxBlock
	literals := func(k int) {
		for range k {
			c := byte(r.Uint32()) % 23
			e.text[e.lits], text = c, append(text, c)
			e.lits++
		}
		left -= k
	}
	rare := 1 << (4 + r.IntN(9))
	for most := 1 + r.IntN(9000); n < most && left > 1000; n++ {
		lits, match := r.IntN(3), 3+r.IntN(4)
		if r.IntN(rare) == 0 {
			lits = r.IntN(1 << r.IntN(18))
		}
		if r.IntN(rare) == 0 {
			match = 3 + r.IntN(1<<r.IntN(18))
		}
		wide := n == 1 && rare > 64 // as wide as can be, and the only one: with rare states it may fill a word
		if wide {
			lits, match = 1<<16+r.IntN(3000), 3+1<<15+r.IntN(3000)
		}
		if len(text) == 0 {
			lits = max(lits, 1)
		}
		lits = min(lits, left-match)
		if lits < 0 {
			lits, match = 1, 3
		}
		literals(lits)
		width := bits.Len(uint(len(text)))
		back := 1 + r.IntN(min(len(text), 1<<(1+r.IntN(width))))
		switch {
		case wide:
			back = len(text) - r.IntN(min(len(text), 1000))
		case r.IntN(4) > 0:
			back = min(4, len(text)) // the common one
		case rare > 64:
			back = min(back, 1000)
		}
		for range match {
			text = append(text, text[len(text)-back])
		}
		left -= match
		e.seqs[n] = sequence{offset: uint32(back) + 3, lits: uint32(lits), match: uint32(match - 3)}
	}
	literals(r.IntN(min(left, 500) + 1))
	return text, n
}
