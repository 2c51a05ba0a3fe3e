package engine

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"slices"
	"syscall"

	"holdfast/internal/repo"
)

// A block incremental file is put together from super blocks of several backups (format page, section 9):
//
//	map of the newest image → wanted blocks → sorted by backup and place → one request per run of super blocks
//	  → each super block decoded as a stream, its wanted blocks written at their places → SHA-1 of the whole file
//
// Memory is the map (about 100 bytes per block) and two buffers, whatever the sizes of blocks and super blocks.

const (
	smallImage    = 4 << 20  // an image of up to so many bytes is read at once and kept while its file is restored
	maxReuseBlock = 16 << 20 // blocks of what stands at the target are compared up to this size, in bytes
	mapPerBlock   = 128      // no writer needs more bytes of map per block
)

// blocks restores one block incremental file. image is all that is stored of it in its own backup, nil when that is too
// much to hold.
func (w *restoreWorker) blocks(ctx context.Context, t restoreTarget, image []byte) error {
	bf, err := w.blockFile(ctx, t, image)
	if err != nil {
		return err
	}
	if w.Delta && t.BlockSize <= maxReuseBlock {
		done, err := w.reuse(ctx, bf)
		if done || err != nil {
			return err
		}
	}
	return w.write(t, func(out *os.File) error {
		all := make([]int32, len(bf.m.Blocks))
		for i := range all {
			all[i] = int32(i)
		}
		return bf.fill(ctx, out, all)
	})
}

// blockFile is a block incremental file with its map read.
type blockFile struct {
	restoreTarget
	w      *restoreWorker
	m      *repo.BlockMap
	object string // of its own backup
	offset int64  // of image in object
	image  []byte
	spec   repo.StreamSpec
}

func (w *restoreWorker) blockFile(ctx context.Context, t restoreTarget, image []byte) (*blockFile, error) {
	bf := &blockFile{restoreTarget: t, w: w, image: image}
	var length int64
	bf.object, bf.offset, length, bf.spec = w.m.Object(w.Stanza, t.File)
	want := (t.Size + t.BlockSize - 1) / t.BlockSize
	if (t.BlockMapSize-mapPerBlock)/mapPerBlock > want {
		return nil, fmt.Errorf("%w: a block map of %d bytes for %d blocks; %s", ErrCorrupt, t.BlockMapSize, want, w.verifyHint())
	}
	stored := io.Reader(nil)
	if image != nil {
		stored = bytes.NewReader(image[length-t.BlockMapSize:])
	} else {
		in, err := w.s.open(ctx, bf.object, bf.offset+length-t.BlockMapSize, t.BlockMapSize)
		if err != nil {
			return nil, err
		}
		defer in.Close()
		stored = in
	}
	var err error
	if bf.m, err = repo.ReadBlockMap(stored, t.BlockSize, t.BlockSumSize, bf.spec.Pass); err != nil {
		if cut := blind(ctx, err); cut != nil {
			return nil, cut
		}
		return nil, fmt.Errorf("%w: %s: block map: %w; %s", ErrCorrupt, bf.object, err, w.verifyHint())
	}
	if int64(len(bf.m.Blocks)) != want {
		return nil, fmt.Errorf("%w: %s: block map of %d blocks, the file of %d bytes has %d; %s", ErrCorrupt, bf.object, len(bf.m.Blocks), t.Size, want, w.verifyHint())
	}
	for i := range bf.m.Blocks {
		b := &bf.m.Blocks[i]
		if b.Reference >= len(w.m.References) {
			return nil, fmt.Errorf("%w: %s: block %d is in backup number %d, and the manifest names %d; %s", ErrCorrupt, bf.object, i, b.Reference, len(w.m.References), w.verifyHint())
		}
		if b.SuperSize-b.Position*t.BlockSize < bf.length(i) || b.SuperSize-b.Position*t.BlockSize != bf.length(i) && bf.length(i) != t.BlockSize {
			return nil, fmt.Errorf("%w: %s: block %d is not as long as its place in the file; %s", ErrCorrupt, bf.object, i, w.verifyHint())
		}
	}
	return bf, nil
}

// length is how many bytes block i has.
func (bf *blockFile) length(i int) int64 {
	return min(bf.BlockSize, bf.Size-int64(i)*bf.BlockSize)
}

// reuse brings what stands at the target up to date, block by block. Not done: nothing usable stands there, or the blocks'
// short checksums deceived, which the SHA-1 of the whole file told.
func (w *restoreWorker) reuse(ctx context.Context, bf *blockFile) (done bool, err error) {
	info, err := bf.root.Lstat(bf.rel)
	if errors.Is(err, fs.ErrNotExist) || err == nil && (!info.Mode().IsRegular() || linkCount(info) > 1) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	out, err := bf.root.OpenFile(bf.rel, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrPermission) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if info.Size() > bf.Size {
		if err := out.Truncate(bf.Size); err != nil {
			return false, err
		}
	}
	var wanted []int32
	block := make([]byte, bf.BlockSize)
	for i := range bf.m.Blocks {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		b := block[:bf.length(i)]
		n, err := out.ReadAt(b, int64(i)*bf.BlockSize)
		if err != nil && err != io.EOF {
			return false, err
		}
		if n < len(b) || bf.m.Sum(b) != bf.m.Blocks[i].Checksum {
			wanted = append(wanted, int32(i))
			continue
		}
		w.s.o.Events(Moved{int64(len(b))})
	}
	if len(wanted) == len(bf.m.Blocks) {
		return false, nil
	}
	err = bf.fill(ctx, out, wanted)
	if errors.Is(err, errWholeFile) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, w.complete(bf.restoreTarget, out)
}

// errWholeFile says that every block was read and the file is still not what the manifest says.
var errWholeFile = errors.New("the file put together from its blocks")

// fill writes the wanted blocks and compares the SHA-1 of the whole file.
func (bf *blockFile) fill(ctx context.Context, out *os.File, wanted []int32) error {
	blocks := bf.m.Blocks
	slices.SortFunc(wanted, func(a, b int32) int {
		x, y := &blocks[a], &blocks[b]
		return cmp.Or(cmp.Compare(x.Reference, y.Reference), cmp.Compare(x.Offset, y.Offset), cmp.Compare(x.Position, y.Position))
	})
	sink := &blockSink{out: out, sum: sha1.New()}
	for len(wanted) > 0 {
		first := &blocks[wanted[0]]
		n, end, last := 1, first.Offset+first.Size, first.Offset
		for ; n < len(wanted); n++ {
			b := &blocks[wanted[n]]
			if b.Reference != first.Reference || b.Offset != last && (b.Offset < end || b.Offset-end > restoreGap) {
				break
			}
			last, end = b.Offset, b.Offset+b.Size
		}
		if err := bf.run(ctx, sink, wanted[:n], end); err != nil {
			return err
		}
		wanted = wanted[n:]
	}
	got := hex.EncodeToString(sink.sum.Sum(nil))
	if sink.next != bf.Size {
		var err error
		if got, err = bf.w.hashFile(ctx, out, bf.Size); err != nil {
			return err
		}
	}
	if got != bf.SHA1 {
		return fmt.Errorf("%w: %w", errWholeFile, bf.w.mismatch(bf.restoreTarget, bf.object, "SHA-1 "+got))
	}
	return nil
}

// run reads super blocks of one backup that lie close together, to the position end of their object, with one request.
func (bf *blockFile) run(ctx context.Context, sink *blockSink, wanted []int32, end int64) error {
	first := &bf.m.Blocks[wanted[0]]
	f := *bf.File
	f.Reference, f.BundleID = bf.w.m.References[first.Reference], int64(first.BundleID)
	object, _, _, _ := bf.w.m.Object(bf.w.Stanza, &f)
	var in io.Reader
	if from := first.Offset - bf.offset; object == bf.object && from >= 0 && end-bf.offset <= int64(len(bf.image)) {
		in = bytes.NewReader(bf.image[from : end-bf.offset])
	} else {
		r, err := bf.w.s.open(ctx, object, first.Offset, end-first.Offset)
		if err != nil {
			return err
		}
		defer r.Close()
		in = r
	}
	for at := first.Offset; len(wanted) > 0; {
		b := &bf.m.Blocks[wanted[0]]
		if err := bf.w.rate.wait(ctx, int(b.SuperSize)); err != nil {
			return err
		}
		n := 1
		for n < len(wanted) && bf.m.Blocks[wanted[n]].Offset == b.Offset {
			n++
		}
		_, err := io.CopyN(io.Discard, in, b.Offset-at)
		if err == nil {
			err = bf.superBlock(sink, wanted[:n], io.LimitReader(in, b.Size))
		}
		if err != nil {
			return bf.w.damaged(object, fmt.Errorf("super block at %d: %w", b.Offset, err))
		}
		at = b.Offset + b.Size
		wanted = wanted[n:]
	}
	return nil
}

// superBlock decodes one super block, to its end, and writes its wanted blocks, which are in the order of their positions.
func (bf *blockFile) superBlock(sink *blockSink, wanted []int32, stored io.Reader) error {
	sr, err := repo.NewStreamReader(stored, bf.spec)
	if err != nil {
		return err
	}
	defer sr.Close()
	at := int64(0)
	pass := func(dst io.Writer, n int64) error {
		got, err := io.CopyBuffer(dst, io.LimitReader(sr, n), bf.w.buf)
		if at += got; err == nil && got < n {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	for _, i := range wanted {
		if err := pass(onlyWriter{io.Discard}, bf.m.Blocks[i].Position*bf.BlockSize-at); err != nil {
			return err
		}
		sink.at = int64(i) * bf.BlockSize
		if err := pass(sink, bf.length(int(i))); err != nil {
			return err
		}
		bf.w.s.o.Events(Moved{bf.length(int(i))})
	}
	size := bf.m.Blocks[wanted[0]].SuperSize
	if err := pass(onlyWriter{io.Discard}, size-at); err != nil {
		return err
	}
	if n, err := io.ReadFull(sr, bf.w.buf[:1]); n > 0 || err != io.EOF {
		return errors.Join(fmt.Errorf("%w: more than the %d bytes that the map says", repo.ErrCorrupt, size), err)
	}
	return nil
}

// onlyWriter keeps io.CopyBuffer to its buffer.
type onlyWriter struct{ io.Writer }

// blockSink writes a file's blocks at their places, and has their SHA-1 as long as they come in the file's order.
type blockSink struct {
	out  *os.File
	at   int64
	sum  hash.Hash
	next int64 // what has been hashed, in bytes from the begin
}

func (s *blockSink) Write(p []byte) (int, error) {
	if s.at == s.next {
		s.sum.Write(p)
		s.next += int64(len(p))
	}
	n, err := s.out.WriteAt(p, s.at)
	s.at += int64(n)
	return n, err
}
