package zstdfast

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// samples are texts of every kind that the encoder treats in its own way, by name.
func samples() map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	noise := func(n int, symbols byte) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
			if symbols > 0 {
				b[i] %= symbols
			}
		}
		return b
	}
	var rows, mixed, far []byte
	for i := range 40_000 {
		rows = fmt.Appendf(rows, "row %d of %x, state %d\n", i, r.Uint32()%997, i%13)
	}
	for len(mixed) < 3<<20 {
		mixed = append(mixed, noise(r.IntN(9000), byte(r.Uint32()))...)
		mixed = append(mixed, rows[r.IntN(1000):][:r.IntN(20_000)]...)
		mixed = append(mixed, make([]byte, r.IntN(200_000))...)
	}
	far = append(append(noise(4<<20, 0), make([]byte, 3<<20)...), rows[:100_000]...)
	far = append(far, far[:MaxFrame-len(far)]...) // matches from the other end of the largest frame
	s := map[string][]byte{
		"rows": rows, "mixed": mixed, "far": far, "zeros": make([]byte, MaxFrame),
		"noise": noise(1<<20, 0), "nibbles": noise(1<<20, 16), "two": noise(300_000, 2), "three": noise(999, 3),
		"a long run of literals, then a long match": append(append(noise(66_000, 7), bytes.Repeat([]byte{9}, 65_000)...), rows[:9]...),
		"raw, then compressed, then raw":            append(append(noise(maxBlock, 0), rows[:maxBlock]...), noise(maxBlock, 0)...),
	}
	for _, n := range []int{0, 1, 2, 3, 4, 15, 16, 17, 18, 19, 20, 21, 31, 32, 33, 255, 256, 257, 1023, 1024, 4095, 4096, 16383, 16384, maxBlock - 1, maxBlock, maxBlock + 1, 2*maxBlock + 17} {
		s[fmt.Sprint("rows ", n)] = rows[:n]
		s[fmt.Sprint("zeros ", n)] = make([]byte, n)
		s[fmt.Sprint("noise ", n)] = noise(n, 0)
		s[fmt.Sprint("nibbles ", n)] = noise(n, 16)
		s[fmt.Sprint("skewed ", n)] = bytes.ReplaceAll(noise(n, 40), []byte{1}, []byte{0})
	}
	return s
}

// bound is what Append promises at most.
func bound(n int) int { return n + 12 + 3*((n+maxBlock-1)/maxBlock) }

// check compresses text and reads it back with the library's decoder.
func check(t *testing.T, e *Encoder, d *zstd.Decoder, text []byte) []byte {
	t.Helper()
	frame := e.Append([]byte("before"), text)[len("before"):]
	if len(frame) > bound(len(text)) {
		t.Errorf("%d bytes became %d", len(text), len(frame))
	}
	got, err := d.DecodeAll(frame, nil)
	if err != nil {
		t.Fatalf("the frame of %d bytes does not decode: %v", len(text), err)
	}
	if !bytes.Equal(got, text) {
		t.Fatalf("%d bytes came back as %d others", len(text), len(got))
	}
	return frame
}

func newDecoder(t testing.TB) *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// TestTwoDecoders: the library's decoder and the format's own program give back every sample, whichever came before.
func TestTwoDecoders(t *testing.T) {
	var e Encoder
	d := newDecoder(t)
	var all, want []byte
	for range 2 {
		for name, text := range samples() {
			frame := check(t, &e, d, text)
			if again := new(Encoder).Append(nil, text); !bytes.Equal(frame, again) {
				t.Errorf("%s: another encoder makes another frame", name)
			}
			all, want = append(all, frame...), append(want, text...)
		}
	}
	if got := throughProgram(t, all); !bytes.Equal(got, want) {
		t.Errorf("the zstd program gives %d bytes, other than the %d that went in", len(got), len(want))
	}
}

// TestFullWord: a sequence whose extra bits and rare states, with what was left of the one before, fill a word of the bit stream to
// its last bit. That takes long literals before a long match, an offset of a size that no other has, and many sequences more.
func TestFullWord(t *testing.T) {
	var e Encoder
	d := newDecoder(t)
	r := rand.New(rand.NewPCG(3, 4))
	noise := func(dst []byte, n int) []byte {
		for range n {
			dst = append(dst, byte(r.Uint32()))
		}
		return dst
	}
	for range 100 { // about every eighth has just the bits left over
		text := noise(nil, 66_000+r.IntN(2000))
		text = append(text, bytes.Repeat([]byte{1, 2}, 18_000)...)
		words := [8][]byte{}
		for i := range words {
			words[i] = noise(nil, 6)
		}
		for len(text) < maxBlock {
			i := r.IntN(len(words))
			text = append(text, words[i]...)
			if r.IntN(3) == 0 {
				words[i] = noise(nil, 6)
			}
		}
		check(t, &e, d, text[:maxBlock])
	}
}

func throughProgram(t testing.TB, stored []byte) []byte {
	t.Helper()
	cmd := exec.Command("zstd", "-dc")
	cmd.Stdin = bytes.NewReader(stored)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("zstd -dc: %v: %s (run: make setup)", err, errs.Bytes())
	}
	return out.Bytes()
}

// TestSmallEnough: no more than a tenth over the general encoder at its fastest level.
func TestSmallEnough(t *testing.T) {
	general, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		t.Fatal(err)
	}
	defer general.Close()
	for name, text := range samples() {
		ours, theirs := len(new(Encoder).Append(nil, text)), len(general.EncodeAll(text, nil))
		if ours > theirs+theirs/10+20 {
			t.Errorf("%s: %d bytes become %d, %d with the general encoder", name, len(text), ours, theirs)
		}
	}
}

func TestTooMuch(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a frame with a window that decoders may refuse")
		}
	}()
	new(Encoder).Append(nil, make([]byte, MaxFrame+1))
}

// FuzzAppend compresses the input as it is, and as the recipe of a longer text: bytes in turns say how much of what was
// made so far comes again, and from how far back.
func FuzzAppend(f *testing.F) {
	for _, text := range samples() {
		f.Add(text[:min(len(text), 5000)])
	}
	e, d := new(Encoder), newDecoder(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		check(t, e, d, text)
		long := grown(text, 300_000)
		if frame := check(t, e, d, long); len(text)%64 == 7 { // a process each time is dear
			if !bytes.Equal(throughProgram(t, frame), long) {
				t.Fatal("the zstd program gives other bytes")
			}
		}
	})
}

func grown(recipe []byte, most int) []byte {
	var out []byte
	for i := 0; i+3 < len(recipe) && len(out) < most; i += 4 {
		out = append(out, recipe[i:i+1+int(recipe[i]&3)]...)
		length, back := 1<<(recipe[i+1]&15)+int(recipe[i+1]), 1+int(recipe[i+2])<<(recipe[i+3]&15)
		for range min(length, most-len(out)) {
			if back > len(out) {
				out = append(out, byte(length))
			} else {
				out = append(out, out[len(out)-back])
			}
		}
	}
	return out
}
