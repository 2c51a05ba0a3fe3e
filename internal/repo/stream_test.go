package repo

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

// pages gives n bytes that look like a heap: pages with a header, line pointers, free space and rows of counters, words and
// some noise. The same n gives the same bytes.
func pages(n int) []byte {
	words := strings.Fields("account teller branch balance pending shipped returned customer invoice ledger north south")
	r := rand.New(rand.NewPCG(1, uint64(n)))
	out := make([]byte, 0, n+8192)
	row := uint32(1)
	for len(out) < n {
		page := make([]byte, 8192)
		binary.LittleEndian.PutUint64(page, 0x16000028<<8|uint64(len(out)/8192))
		binary.LittleEndian.PutUint16(page[8:], uint16(r.Uint32()))
		binary.LittleEndian.PutUint32(page[12:], 0x01fc00c0)
		binary.LittleEndian.PutUint32(page[16:], 0x20042000)
		lower, upper := 24, 8192
		for upper-lower > 200 {
			b := binary.LittleEndian.AppendUint32(nil, 731)
			b = append(b, make([]byte, 18)...)
			b = binary.LittleEndian.AppendUint32(b, row)
			b = binary.LittleEndian.AppendUint32(b, r.Uint32N(1<<20))
			b = fmt.Appendf(b, "%s %s %08x", words[r.IntN(len(words))], words[r.IntN(len(words))], r.Uint32())
			b = append(b, make([]byte, 60)...)
			upper -= (len(b) + 7) &^ 7
			copy(page[upper:], b)
			binary.LittleEndian.PutUint32(page[lower:], uint32(upper)|1<<15|uint32(len(b))<<17)
			lower += 4
			row++
		}
		out = append(out, page...)
	}
	return out[:n]
}

func sha1Hex(b []byte) string {
	sum := sha1.Sum(b)
	return hex.EncodeToString(sum[:])
}

// encode stores data in writes of chunk bytes and checks the sums.
func encode(t testing.TB, data []byte, spec StreamSpec, chunk int) []byte {
	t.Helper()
	var stored bytes.Buffer
	w, err := NewStreamWriter(&stored, spec)
	if err != nil {
		t.Fatal(err)
	}
	for rest := data; len(rest) > 0; {
		n := min(chunk, len(rest))
		if m, err := w.Write(rest[:n]); err != nil || m != n {
			t.Fatalf("Write: %d, %v", m, err)
		}
		rest = rest[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatalf("second Close: %v", err)
	}
	want := Sums{int64(len(data)), sha1Hex(data), int64(stored.Len()), sha1Hex(stored.Bytes())}
	if got := w.Sums(); got != want {
		t.Fatalf("sums %+v, want %+v", got, want)
	}
	return stored.Bytes()
}

func specs() []StreamSpec {
	var all []StreamSpec
	for _, c := range []CompressType{None, GZ, LZ4, ZST, BZ2} {
		for _, pass := range []Secret{"", "hunter2"} {
			for _, raw := range []bool{false, true} {
				all = append(all, StreamSpec{Compress: c, Level: DefaultLevel(c), Pass: pass, Raw: raw})
			}
		}
	}
	return all
}

func specName(s StreamSpec) string {
	return fmt.Sprintf("%s,%d,encrypted=%t,raw=%t", s.Compress, s.Level, s.Pass != "", s.Raw)
}

var streamSizes = []int{0, 1, 15, 16, 8191, 8192, bufferSize - 16, bufferSize, bufferSize + 1, 1<<20 + 3}

func TestStreamRoundTrip(t *testing.T) {
	for _, spec := range specs() {
		t.Run(specName(spec), func(t *testing.T) {
			for _, size := range streamSizes {
				data := pages(size)
				for _, chunk := range []int{1000, 64 << 10, 1 << 30} {
					stored := encode(t, data, spec, chunk)
					for name, src := range map[string]io.Reader{
						"plain": bytes.NewReader(stored), "half": iotest.HalfReader(bytes.NewReader(stored)),
						"data with EOF": iotest.DataErrReader(bytes.NewReader(stored)),
					} {
						var back bytes.Buffer
						sums, err := Decode(&back, src, spec)
						if err != nil {
							t.Fatalf("size %d, chunk %d, %s: %v", size, chunk, name, err)
						}
						want := Sums{int64(size), sha1Hex(data), int64(len(stored)), sha1Hex(stored)}
						if sums != want || !bytes.Equal(back.Bytes(), data) {
							t.Fatalf("size %d, chunk %d, %s: sums %+v, want %+v", size, chunk, name, sums, want)
						}
					}
				}
			}
		})
	}
}

// TestStreamReaderBehaves hands the reader to the standard library's examiner, and reads byte by byte.
func TestStreamReaderBehaves(t *testing.T) {
	data := pages(20000)
	for _, spec := range specs() {
		stored := encode(t, data, spec, 8192)
		r, err := NewStreamReader(iotest.OneByteReader(bytes.NewReader(stored)), spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(r, data); err != nil {
			t.Errorf("%s: %v", specName(spec), err)
		}
		r.Close()
		r.Close()
		if _, err := r.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("%s: Read after Close gives %v", specName(spec), err)
		}
	}
}

func TestStreamLevels(t *testing.T) {
	data := pages(200_000)
	for _, c := range []CompressType{GZ, LZ4, ZST, BZ2} {
		lowest, highest := LevelRange(c)
		for level := lowest; level <= highest; level++ {
			spec := StreamSpec{Compress: c, Level: level}
			var back bytes.Buffer
			if _, err := Decode(&back, bytes.NewReader(encode(t, data, spec, 1<<20)), spec); err != nil || !bytes.Equal(back.Bytes(), data) {
				t.Errorf("%s level %d: %v", c, level, err)
			}
		}
		for _, level := range []int{lowest - 1, highest + 1} {
			if _, err := NewStreamWriter(io.Discard, StreamSpec{Compress: c, Level: level}); err == nil {
				t.Errorf("%s level %d is accepted", c, level)
			}
		}
	}
	if _, err := NewStreamReader(strings.NewReader(""), StreamSpec{Compress: "rar"}); err == nil {
		t.Error("reading rar is accepted")
	}
}

// TestStreamTruncated cuts a stored stream at every place: never a good end, and never more than was stored.
func TestStreamTruncated(t *testing.T) {
	data := pages(9000)
	for _, spec := range specs() {
		if spec.Compress == None && spec.Pass == "" {
			continue // only its size tells
		}
		stored := encode(t, data, spec, 4096)
		for n := range stored {
			if spec.Compress == None && n%8 == 0 {
				continue // between two blocks of ciphertext: text that ends like padding looks like the end
			}
			var back bytes.Buffer
			_, err := Decode(&back, bytes.NewReader(stored[:n]), spec)
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s cut at %d of %d: error %v", specName(spec), n, len(stored), err)
			}
			if spec.Pass == "" && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%s cut at %d of %d: error %v is not an unexpected EOF", specName(spec), n, len(stored), err)
			}
			if !bytes.HasPrefix(data, back.Bytes()) {
				t.Fatalf("%s cut at %d: wrong bytes delivered", specName(spec), n)
			}
		}
	}
}

func TestStreamTrailingData(t *testing.T) {
	data := pages(9000)
	for _, spec := range specs() {
		if spec.Compress == None || spec.Pass != "" {
			continue
		}
		stored := encode(t, data, spec, 4096)
		for _, junk := range []string{"\x00", "x", "junk and more of it", "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"} {
			var back bytes.Buffer
			_, err := Decode(&back, strings.NewReader(string(stored)+junk), spec)
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s followed by %q: error %v", specName(spec), junk, err)
			}
			if len(junk) >= 4 && spec.Compress != BZ2 && !errors.Is(err, ErrTrailingData) { // bzip2 is read by a decoder that looks for a second stream itself
				t.Errorf("%s followed by %q: error %v is not ErrTrailingData", specName(spec), junk, err)
			}
			if !bytes.Equal(back.Bytes(), data) {
				t.Errorf("%s followed by %q: %d of %d bytes delivered", specName(spec), junk, back.Len(), len(data))
			}
		}
	}
}

// TestStreamSeveral is what the original accepts, or should: several members or frames in a row.
func TestStreamSeveral(t *testing.T) {
	data := pages(30000)
	for _, c := range []CompressType{GZ, LZ4, ZST, BZ2} {
		spec := StreamSpec{Compress: c, Level: DefaultLevel(c)}
		stored := append(encode(t, data[:10000], spec, 4096), encode(t, nil, spec, 1)...)
		stored = append(stored, encode(t, data[10000:], spec, 4096)...)
		var back bytes.Buffer
		sums, err := Decode(&back, bytes.NewReader(stored), spec)
		if err != nil || !bytes.Equal(back.Bytes(), data) || sums.RepoSize != int64(len(stored)) {
			t.Errorf("%s: %v, %d of %d bytes", c, err, back.Len(), len(data))
		}
		if _, err := Decode(io.Discard, bytes.NewReader(stored[:len(stored)-1]), spec); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s, last member cut: %v", c, err)
		}
	}
}

var errBroken = errors.New("the disk went away")

// TestStreamSourceError: what the source says comes through unchanged, even when it calls itself an unexpected EOF, and is
// not taken for damage of the stored bytes.
func TestStreamSourceError(t *testing.T) {
	data := pages(300_000)
	for _, spec := range specs() {
		stored := encode(t, data, spec, 1<<20)
		for _, cause := range []error{errBroken, io.ErrUnexpectedEOF} {
			for _, n := range []int{0, 3, len(stored) / 2, len(stored)} {
				src := io.MultiReader(bytes.NewReader(stored[:n]), iotest.ErrReader(cause))
				_, err := Decode(io.Discard, src, spec)
				if !errors.Is(err, cause) || errors.Is(err, ErrCorrupt) {
					t.Errorf("%s, source fails at %d with %v: error %v", specName(spec), n, cause, err)
				}
			}
		}
	}
}

// failingWriter takes n bytes and then fails; short makes it lie instead.
type failingWriter struct {
	n     int
	short bool
}

func (f *failingWriter) Write(p []byte) (int, error) {
	if len(p) <= f.n {
		f.n -= len(p)
		return len(p), nil
	}
	n := f.n
	f.n = 0
	if f.short {
		return n, nil
	}
	return n, errBroken
}

func TestStreamTargetError(t *testing.T) {
	data := pages(1 << 20)
	for _, spec := range specs() {
		size := len(encode(t, data, spec, 1<<20))
		for _, n := range []int{0, 10, size / 2, size - 1} {
			for _, short := range []bool{false, true} {
				w, err := NewStreamWriter(&failingWriter{n, short}, spec)
				if err != nil {
					t.Fatal(err)
				}
				want := errBroken
				if short {
					want = io.ErrShortWrite
				}
				_, err = w.Write(data)
				if err != nil && !errors.Is(err, want) {
					t.Errorf("%s: Write gives %v", specName(spec), err)
				}
				if err := w.Close(); !errors.Is(err, want) {
					t.Errorf("%s, target fails at %d: Close gives %v", specName(spec), n, err)
				}
				if err := w.Close(); !errors.Is(err, want) {
					t.Errorf("%s: second Close gives %v", specName(spec), err)
				}
				if w.Sums() != (Sums{}) {
					t.Errorf("%s: sums of an incomplete stream: %+v", specName(spec), w.Sums())
				}
				if _, err := w.Write(data); err == nil {
					t.Errorf("%s: Write after Close is accepted", specName(spec))
				}
			}
		}
	}
	// The encoders that failed must not spoil the next streams.
	for _, spec := range specs() {
		var back bytes.Buffer
		if _, err := Decode(&back, bytes.NewReader(encode(t, data, spec, 1<<20)), spec); err != nil || !bytes.Equal(back.Bytes(), data) {
			t.Errorf("%s after failures: %v", specName(spec), err)
		}
	}
}

// TestStreamFraming pins the bytes that the format page's table names.
func TestStreamFraming(t *testing.T) {
	for _, test := range []struct {
		spec StreamSpec
		want string // hex of the first bytes
	}{
		{StreamSpec{Compress: GZ, Level: 6}, "1f8b0800000000000003"},
		{StreamSpec{Compress: GZ, Level: 9}, "1f8b0800000000000203"},
		{StreamSpec{Compress: GZ, Level: 1}, "1f8b0800000000000403"},
		{StreamSpec{Compress: GZ, Level: 6, Raw: true}, "78"},
		{StreamSpec{Compress: LZ4, Level: 1}, "04224d186440"},
		{StreamSpec{Compress: LZ4, Level: 1, Raw: true}, "04224d186040"},
		{StreamSpec{Compress: ZST, Level: 3}, "28b52ffd"},
		{StreamSpec{Compress: None, Pass: "x"}, "53616c7465645f5f"},
	} {
		for _, size := range []int{0, 100, 100_000} {
			stored := encode(t, pages(size), test.spec, 8192)
			if got := hex.EncodeToString(stored); !strings.HasPrefix(got, test.want) {
				t.Errorf("%s of %d bytes begins with %.20s, want %s", specName(test.spec), size, got, test.want)
			}
		}
	}
	// Raw encryption is salt and ciphertext; each text has its own salt.
	a := encode(t, []byte("a"), StreamSpec{Compress: None, Pass: "x", Raw: true}, 1)
	b := encode(t, []byte("a"), StreamSpec{Compress: None, Pass: "x", Raw: true}, 1)
	if len(a) != 8+16 || bytes.Equal(a[:8], b[:8]) {
		t.Errorf("raw encryption gives %x and %x", a, b)
	}
}

func TestStreamWrongPass(t *testing.T) {
	data := pages(9000)
	for _, spec := range specs() {
		if spec.Pass == "" {
			continue
		}
		stored := encode(t, data, spec, 4096)
		spec.Pass = "hunter3"
		sums, err := Decode(io.Discard, bytes.NewReader(stored), spec)
		// One in 256 salts makes the padding look right by chance; then only the checksum tells.
		if err == nil && sums.SHA1 == sha1Hex(data) || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s with the wrong pass: %v", specName(spec), err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter") {
			t.Errorf("the pass is in the error: %v", err)
		}
	}
	if _, err := Decode(io.Discard, bytes.NewReader(data), StreamSpec{Compress: None, Pass: "x"}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("reading what is not encrypted: %v", err)
	}
}

// TestStreamReaderLegacyLZ4: frames of the legacy kind have no end mark, so a cut one looks whole.
func TestStreamReaderLegacyLZ4(t *testing.T) {
	_, err := Decode(io.Discard, strings.NewReader("\x02\x21\x4c\x18\x02\x00\x00\x00\x10x"), StreamSpec{Compress: LZ4})
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("a legacy frame gives %v", err)
	}
}

// FuzzStreamReader: no panic, no false good end (what is decoded is what its sums say), bounded output.
func FuzzStreamReader(f *testing.F) {
	types := []CompressType{None, GZ, LZ4, ZST, BZ2}
	for i, c := range types {
		for _, raw := range []bool{false, true} {
			for _, pass := range []Secret{"", "p"} {
				spec := StreamSpec{Compress: c, Level: DefaultLevel(c), Raw: raw, Pass: pass}
				f.Add(encode(f, pages(3000), spec, 1000), byte(i), raw, pass != "")
				f.Add(encode(f, nil, spec, 1000), byte(i), raw, pass != "")
			}
		}
	}
	f.Add([]byte("BZh91AY&SY\x19\x31\x65\x3d\x00\x00\x00\x81\x00\x02\x44\xa0\x00\x21\x9a\x68\x33\x4d\x07\x33\x8b\xb9\x22\x9c\x28\x48\x0c\x98\xb2\x9e\x80"), byte(4), false, false)
	f.Fuzz(func(t *testing.T, stored []byte, typ byte, raw, encrypted bool) {
		spec := StreamSpec{Compress: types[int(typ)%len(types)], Raw: raw}
		if encrypted {
			spec.Pass = "p"
		}
		r, err := NewStreamReader(bytes.NewReader(stored), spec)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		h := sha1.New()
		n, err := io.Copy(h, io.LimitReader(r, 8<<20))
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("error of no known kind: %v", err)
		}
		if sums := r.Sums(); err == nil && n < 8<<20 {
			want := Sums{n, hex.EncodeToString(h.Sum(nil)), int64(len(stored)), sha1Hex(stored)}
			if sums != want {
				t.Fatalf("sums %+v, want %+v", sums, want)
			}
		}
	})
}
