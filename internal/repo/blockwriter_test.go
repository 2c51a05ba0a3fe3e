package repo

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
)

// blockVersion is one generation of a file as a backup stored it.
type blockVersion struct {
	image []byte
	sums  BlockSums
	at    int64 // offset of the image in its object
}

// writeVersion stores content on top of prior; nil image when nothing was written.
func writeVersion(t testing.TB, content []byte, prior *BlockMap, o BlockWriterOptions, cut *rand.Rand) blockVersion {
	t.Helper()
	var out bytes.Buffer
	opened := 0
	o.Prior = prior
	w, err := NewBlockWriter(func() (io.Writer, error) { opened++; return &out, nil }, o)
	if err != nil {
		t.Fatal(err)
	}
	for rest := content; len(rest) > 0; {
		n := min(len(rest), 1+cut.IntN(3*8192))
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	sums, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	want := sha1.Sum(content)
	if sums.SHA1 != hex.EncodeToString(want[:]) || sums.Size != int64(len(content)) {
		t.Fatalf("sums %+v of %d bytes", sums, len(content))
	}
	if sums.Unchanged != (out.Len() == 0) || opened > 1 || opened == 0 != sums.Unchanged {
		t.Fatalf("unchanged %t, %d bytes written, opened %d times", sums.Unchanged, out.Len(), opened)
	}
	if !sums.Unchanged {
		stored := sha1.Sum(out.Bytes())
		if sums.RepoSize != int64(out.Len()) || sums.RepoSHA1 != hex.EncodeToString(stored[:]) {
			t.Fatalf("stored sums %+v do not fit %d bytes", sums, out.Len())
		}
	}
	return blockVersion{out.Bytes(), sums, o.Offset}
}

// rebuild puts a file together from the images of a chain, block by block: the slow obvious reader.
func rebuild(t testing.TB, m *BlockMap, chain []blockVersion, spec StreamSpec) []byte {
	t.Helper()
	spec.Raw = true
	var file []byte
	for i, b := range m.Blocks {
		v := chain[b.Reference]
		stored := v.image[b.Offset-v.at : b.Offset-v.at+b.Size]
		var super bytes.Buffer
		if _, err := Decode(&super, bytes.NewReader(stored), spec); err != nil {
			t.Fatalf("block %d: %v", i, err)
		}
		if int64(super.Len()) != b.SuperSize {
			t.Fatalf("block %d: super block of %d bytes, the map says %d", i, super.Len(), b.SuperSize)
		}
		from := b.Position * m.BlockSize
		file = append(file, super.Bytes()[from:min(from+m.BlockSize, b.SuperSize)]...)
	}
	return file
}

// TestBlockChains stores random histories of a file: rewritten, extended and truncated anywhere, and rebuilds every
// generation from the images.
func TestBlockChains(t *testing.T) {
	for seed := range uint64(24) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 7))
			types := []CompressType{None, GZ, LZ4, ZST, BZ2}
			compress := types[seed%4]
			spec := StreamSpec{Compress: compress, Level: DefaultLevel(compress)}
			if seed%8 >= 4 {
				spec.Pass = "block pass"
			}
			block := int64(8192 * (1 + rnd.IntN(3)))
			content := make([]byte, 1+rnd.IntN(40*8192))
			for i := range content {
				content[i] = byte(rnd.IntN(256)) & byte(i>>12) // neither zeros nor noise
			}
			var chain []blockVersion
			var prior *BlockMap
			for generation := range 6 {
				super := int64(256 << 10)
				if generation == 0 {
					super = 1 << 20
				}
				if seed%3 == 0 {
					super = 3 * 8192
				}
				o := BlockWriterOptions{BlockSize: block, ChecksumSize: BlockChecksumSize(block), SuperSize: super, Reference: generation,
					BundleID: uint64(rnd.IntN(3)), Offset: int64(rnd.IntN(2) * rnd.IntN(1<<20)), Spec: spec}
				v := writeVersion(t, content, prior, o, rnd)
				chain = append(chain, v)
				if v.sums.Unchanged {
					if generation == 0 {
						t.Fatal("a first generation can't be unchanged")
					}
				} else {
					m, err := ReadBlockMap(bytes.NewReader(v.image[int64(len(v.image))-v.sums.MapSize:]), block, o.ChecksumSize, spec.Pass)
					if err != nil {
						t.Fatal(err)
					}
					prior = m
				}
				if got := rebuild(t, prior, chain, spec); !bytes.Equal(got, content) {
					t.Fatalf("generation %d: %d bytes rebuilt, %d stored, or different ones", generation, len(got), len(content))
				}
				content = bytes.Clone(content)
				switch rnd.IntN(5) {
				case 0: // nothing changes
				case 1:
					content = content[:1+rnd.IntN(len(content))]
				case 2:
					content = append(content, bytes.Repeat([]byte{byte(generation)}, rnd.IntN(5*8192))...)
				default:
					for range 1 + rnd.IntN(6) {
						content[rnd.IntN(len(content))] ^= 0x55
					}
				}
			}
		})
	}
}

func TestBlockWriterRefuses(t *testing.T) {
	open := func() (io.Writer, error) { return io.Discard, nil }
	good := BlockWriterOptions{BlockSize: 8192, ChecksumSize: 6, SuperSize: 1 << 20}
	for name, o := range map[string]BlockWriterOptions{
		"block size":          {BlockSize: 8000, ChecksumSize: 6},
		"checksum size":       {BlockSize: 8192, ChecksumSize: 5},
		"other blocks before": {BlockSize: 8192, ChecksumSize: 6, Prior: &BlockMap{BlockSize: 16384, ChecksumSize: 6}},
	} {
		if _, err := NewBlockWriter(open, o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	w, err := NewBlockWriter(open, good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(); err == nil {
		t.Error("an empty file has no blocks, yet Close succeeds")
	}
	broken := io.ErrClosedPipe
	w, err = NewBlockWriter(func() (io.Writer, error) { return nil, broken }, good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 2<<20)); err != broken {
		t.Errorf("Write to a store that can't be opened: %v", err)
	}
	if _, err := w.Close(); err != broken {
		t.Errorf("Close after a failed Write: %v", err)
	}
}

// FuzzBlockChain: whatever two generations hold, both are rebuilt.
func FuzzBlockChain(f *testing.F) {
	f.Add([]byte("first"), []byte("second, longer"), uint16(0), true)
	f.Add(bytes.Repeat([]byte{1}, 20000), bytes.Repeat([]byte{1}, 9000), uint16(100), false)
	f.Fuzz(func(t *testing.T, a, b []byte, offset uint16, sealed bool) {
		if len(a) == 0 || len(b) == 0 {
			return
		}
		a, b = bytes.Repeat(a, 1+8192/len(a)), bytes.Repeat(b, 1+8192/len(b))
		spec := StreamSpec{Compress: LZ4, Level: 1}
		if sealed {
			spec.Pass = "p"
		}
		rnd := rand.New(rand.NewPCG(uint64(offset), 1))
		o := BlockWriterOptions{BlockSize: 8192, ChecksumSize: 6, SuperSize: 16384, Offset: int64(offset), Spec: spec}
		first := writeVersion(t, a, nil, o, rnd)
		read := func(v blockVersion) *BlockMap {
			m, err := ReadBlockMap(bytes.NewReader(v.image[int64(len(v.image))-v.sums.MapSize:]), 8192, 6, spec.Pass)
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		m := read(first)
		o.Reference = 1
		second := writeVersion(t, b, m, o, rnd)
		want := b
		if !second.sums.Unchanged {
			m = read(second)
		} else if !bytes.Equal(a, b) {
			return // two different blocks with one checksum of six bytes
		}
		if got := rebuild(t, m, []blockVersion{first, second}, spec); !bytes.Equal(got, want) {
			t.Fatal("the second generation is rebuilt wrongly")
		}
	})
}
