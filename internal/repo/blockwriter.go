package repo

import (
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"hash"
	"io"
)

// BlockWriterOptions says how one file is stored block by block (format page, section 9).
type BlockWriterOptions struct {
	BlockSize    int64 // bytes, a multiple of 8192; kept for a whole backup set
	ChecksumSize int
	SuperSize    int64     // original bytes at which a super block is closed; rounded up to whole blocks
	Prior        *BlockMap // of the file in the prior backup; nil: every block is stored
	Reference    int       // of this backup in the manifest's list of references
	BundleID     uint64    // 0: the file has an object of its own
	Offset       int64     // where the image begins in its object
	Spec         StreamSpec
}

// BlockSums is what is known of a file once it is stored.
type BlockSums struct {
	Sums
	MapSize int64 // stored bytes of the map at the end of the image
	// Unchanged: every block is in earlier backups and none went away: nothing was written, the prior's entry holds. The
	// caller compares SHA1 with the prior's: block checksums are short.
	Unchanged bool
}

// BlockWriter takes a file's bytes and writes the image of what changed: super blocks, then the map. It holds one super
// block in memory. Not for concurrent use.
type BlockWriter struct {
	o     BlockWriterOptions
	w     *countingWriter
	sum   hash.Hash
	size  int64
	super []byte // original bytes of the open super block
	fresh []int  // indexes in m.Blocks of the blocks in it
	m     BlockMap
	block []byte // the block that is filling up
	err   error
}

// countingWriter hashes and counts what goes to the object, which is opened with the first byte.
type countingWriter struct {
	open func() (io.Writer, error)
	w    io.Writer
	sum  hash.Hash
	size int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	if c.w == nil {
		w, err := c.open()
		if err != nil {
			return 0, err
		}
		c.w = w
	}
	n, err := c.w.Write(p)
	c.sum.Write(p[:n])
	c.size += int64(n)
	return n, err
}

// NewBlockWriter prepares the writer. open is called when the first byte is to be stored, at most once; a file that did not
// change never calls it. The error is about the options.
func NewBlockWriter(open func() (io.Writer, error), o BlockWriterOptions) (*BlockWriter, error) {
	if err := checkBlockParameters(o.BlockSize, o.ChecksumSize); err != nil {
		return nil, err
	}
	if o.Prior != nil && (o.Prior.BlockSize != o.BlockSize || o.Prior.ChecksumSize != o.ChecksumSize) {
		return nil, errors.New("the block size of a file must stay the same within a backup set")
	}
	o.Spec.Raw = true
	o.SuperSize = blocksIn(max(o.SuperSize, 1), o.BlockSize) * o.BlockSize
	m := BlockMap{BlockSize: o.BlockSize, ChecksumSize: o.ChecksumSize}
	if o.Prior != nil { // about as many again: growing by and by would hold the list twice
		m.Blocks = make([]BlockRef, 0, len(o.Prior.Blocks)+len(o.Prior.Blocks)/64)
	}
	return &BlockWriter{o: o, w: &countingWriter{open: open, sum: sha1.New()}, sum: sha1.New(), block: make([]byte, 0, o.BlockSize), m: m}, nil
}

// Write takes the next bytes of the file. The first error sticks.
func (b *BlockWriter) Write(p []byte) (int, error) {
	total := len(p)
	b.sum.Write(p)
	b.size += int64(total)
	for len(p) > 0 && b.err == nil {
		if len(b.block) == 0 && int64(len(p)) >= b.o.BlockSize { // whole blocks need no copy
			b.add(p[:b.o.BlockSize])
			p = p[b.o.BlockSize:]
			continue
		}
		n := copy(b.block[len(b.block):cap(b.block)], p)
		b.block, p = b.block[:len(b.block)+n], p[n:]
		if len(b.block) == cap(b.block) {
			b.add(b.block)
			b.block = b.block[:0]
		}
	}
	return total - len(p), b.err
}

// add decides whether one block is stored.
func (b *BlockWriter) add(block []byte) {
	var ref BlockRef
	ref.Checksum = b.m.Sum(block)
	i := len(b.m.Blocks)
	if b.o.Prior != nil && i < len(b.o.Prior.Blocks) && b.o.Prior.Blocks[i].Checksum == ref.Checksum {
		b.m.Blocks = append(b.m.Blocks, b.o.Prior.Blocks[i])
		return
	}
	ref.Reference, ref.BundleID, ref.Position = b.o.Reference, b.o.BundleID, int64(len(b.fresh))
	b.m.Blocks = append(b.m.Blocks, ref)
	b.fresh = append(b.fresh, i)
	b.super = append(b.super, block...)
	if int64(len(b.super)) >= b.o.SuperSize {
		b.flush()
	}
}

// flush stores the open super block.
func (b *BlockWriter) flush() {
	offset := b.o.Offset + b.w.size
	sw, err := NewStreamWriter(b.w, b.o.Spec)
	if err == nil {
		sw.Write(b.super) // its first error comes again from Close
		err = sw.Close()
	}
	if err != nil {
		b.err = err
		return
	}
	for _, i := range b.fresh {
		r := &b.m.Blocks[i]
		r.Offset, r.Size, r.SuperSize = offset, sw.Sums().RepoSize, int64(len(b.super))
	}
	b.super, b.fresh = b.super[:0], b.fresh[:0]
}

// Close stores what is left and the map. An empty file is an error: it has no blocks.
func (b *BlockWriter) Close() (BlockSums, error) {
	if len(b.block) > 0 && b.err == nil {
		b.add(b.block)
	}
	if len(b.fresh) > 0 && b.err == nil {
		b.flush()
	}
	if b.err != nil {
		return BlockSums{}, b.err
	}
	sums := BlockSums{Sums: Sums{Size: b.size, SHA1: hex.EncodeToString(b.sum.Sum(nil))}}
	if b.w.size == 0 && b.o.Prior != nil && len(b.m.Blocks) == len(b.o.Prior.Blocks) {
		sums.Unchanged = true
		return sums, nil
	}
	raw, err := b.m.Encode()
	if err != nil {
		return BlockSums{}, err
	}
	before := b.w.size
	sw, err := NewStreamWriter(b.w, StreamSpec{Compress: None, Pass: b.o.Spec.Pass, Raw: true})
	if err != nil {
		return BlockSums{}, err
	}
	sw.Write(raw) // as above
	if err = sw.Close(); err != nil {
		return BlockSums{}, err
	}
	sums.MapSize, sums.RepoSize = b.w.size-before, b.w.size
	sums.RepoSHA1 = hex.EncodeToString(b.w.sum.Sum(nil))
	return sums, nil
}

// ReadBlockMap reads the map at the end of an image, of which r gives the last mapSize bytes.
func ReadBlockMap(r io.Reader, blockSize int64, checksumSize int, pass Secret) (*BlockMap, error) {
	sr, err := NewStreamReader(r, StreamSpec{Compress: None, Pass: pass, Raw: true})
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(sr)
	if err = errors.Join(err, sr.Close()); err != nil {
		return nil, err
	}
	return DecodeBlockMap(raw, blockSize, checksumSize)
}
