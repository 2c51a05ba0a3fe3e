package engine

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"

	"holdfast/internal/repo"
)

// imageKey stands for what one backup stores of a block incremental file.
func imageKey(label repo.Label, name string) uint64 {
	return maphash.Comparable(keySeed, [...]any{"image", label, name})
}

// image reads what one backup stores of a block incremental file, and makes sure of the blocks that it leaves to earlier
// backups: by what is known of their images, or when nothing is, because only this backup is verified or because a manifest
// is lost, by putting the file together.
func (v *verifier) image(ctx context.Context, m *repo.Manifest, f *repo.File, at part, spec repo.StreamSpec) (outcome, error) {
	own, object := storedIn(m, f), at.object
	bm, err := v.ownImage(ctx, f, at, spec)
	if silent, cut := v.look(ctx, m.Label, object, err); silent || cut != nil {
		v.setState(imageKey(own, f.Name), isUnread)
		return isUnread, cut
	}
	v.read(at.length, f.Size)
	is := isSound
	if err != nil {
		is = isDamaged
	}
	v.setState(imageKey(own, f.Name), is)
	if err == nil {
		err = checkBlocks(m, f, bm)
	}
	if err != nil {
		v.find(m.Label, object, "%s: %v", f.Name, err)
		return isDamaged, nil
	}
	assemble, asked := v.set != "", map[int]bool{}
	for i := range bm.Blocks {
		ref := bm.Blocks[i].Reference
		if label := m.References[ref]; label != own && !asked[ref] {
			asked[ref] = true
			was, read := v.state(imageKey(label, f.Name))
			switch {
			case read && was == isDamaged:
				v.find(m.Label, object, "%s: blocks of it are in the damaged backup %s", f.Name, label)
				return isDamaged, nil
			case read && was == isUnread:
				is = isUnread
			}
			assemble = assemble || !read
		}
	}
	if !assemble || is == isUnread {
		return is, nil
	}
	err = v.assemble(ctx, m, f, bm)
	if silent, cut := v.look(ctx, m.Label, object, err); silent || cut != nil {
		return isUnread, cut
	}
	if err != nil {
		v.find(m.Label, object, "%s: put together from its blocks: %v", f.Name, err)
		return isDamaged, nil
	}
	return isSound, nil
}

// ownImage compares the stored bytes of an image with their checksum and returns its map.
func (v *verifier) ownImage(ctx context.Context, f *repo.File, at part, spec repo.StreamSpec) (*repo.BlockMap, error) {
	r, err := v.openPart(ctx, at)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("missing")
	}
	if err != nil {
		return nil, err
	}
	h := sha1.New()
	tail := tailWriter{keep: int(f.BlockMapSize)}
	_, err = io.Copy(io.MultiWriter(h, &tail), &ctxReader{ctx, r})
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, err
	}
	if sum := hex.EncodeToString(h.Sum(nil)); sum != f.RepoSHA1 {
		return nil, fmt.Errorf("SHA-1 of the stored blocks is %s, should be %s", sum, f.RepoSHA1)
	}
	return repo.ReadBlockMap(&tail, f.BlockSize, f.BlockSumSize, spec.Pass)
}

// checkBlocks says what a restore would refuse in a map.
func checkBlocks(m *repo.Manifest, f *repo.File, bm *repo.BlockMap) error {
	if want := (f.Size + f.BlockSize - 1) / f.BlockSize; int64(len(bm.Blocks)) != want {
		return fmt.Errorf("the block map has %d blocks, a file of %d bytes needs %d", len(bm.Blocks), f.Size, want)
	}
	for i := range bm.Blocks {
		b := &bm.Blocks[i]
		if b.Reference >= len(m.References) {
			return errors.New("the block map names a backup that the manifest does not know")
		}
		if n := min(f.BlockSize, f.Size-int64(i)*f.BlockSize); min(b.SuperSize-b.Position*f.BlockSize, f.BlockSize) != n {
			return fmt.Errorf("block %d is not as long as its place in the file", i)
		}
	}
	return nil
}

// assemble reads every block of a file, in the file's order, and compares the SHA-1 of the whole. The blocks of one backup
// come in the order in which it stores them, so that one open super block for each backup is enough.
func (v *verifier) assemble(ctx context.Context, m *repo.Manifest, f *repo.File, bm *repo.BlockMap) error {
	type super struct {
		offset int64
		data   bytes.Buffer
	}
	open := map[int]*super{}
	h := sha1.New()
	for i := range bm.Blocks {
		b := &bm.Blocks[i]
		s := open[b.Reference]
		if s == nil || s.offset != b.Offset {
			if s == nil {
				s = &super{}
				open[b.Reference] = s
			}
			s.offset = b.Offset
			s.data.Reset()
			if err := v.superBlock(ctx, m, f, b, &s.data); err != nil {
				return err
			}
		}
		at := b.Position * f.BlockSize
		h.Write(s.data.Bytes()[at:min(at+f.BlockSize, b.SuperSize)])
	}
	if sum := hex.EncodeToString(h.Sum(nil)); sum != f.SHA1 {
		return fmt.Errorf("SHA-1 is %s, should be %s", sum, f.SHA1)
	}
	return nil
}

// superBlock decodes the super block of b into dst; it is exactly as long as the map says.
func (v *verifier) superBlock(ctx context.Context, m *repo.Manifest, f *repo.File, b *repo.BlockRef, dst *bytes.Buffer) error {
	at := *f
	at.Reference, at.BundleID = m.References[b.Reference], int64(b.BundleID)
	object, _, _, spec := m.Object(v.s.o.Stanza, &at)
	r, err := v.s.open(ctx, object, b.Offset, b.Size)
	if err != nil {
		return err
	}
	defer r.Close() // opened for reading: nothing to lose
	sr, err := repo.NewStreamReader(&ctxReader{ctx, r}, spec)
	if err != nil {
		return fmt.Errorf("%s: %w", object, err)
	}
	defer sr.Close() // as above
	n, err := io.Copy(dst, io.LimitReader(sr, b.SuperSize+1))
	if err == nil && n != b.SuperSize {
		err = fmt.Errorf("%w: %d bytes, the map says %d", repo.ErrCorrupt, n, b.SuperSize)
	}
	return wrap(err, "%s: super block at %d", object, b.Offset)
}

// tailWriter keeps the last bytes written to it, for reading afterwards.
type tailWriter struct {
	keep int
	b    []byte
}

func (t *tailWriter) Write(p []byte) (int, error) {
	t.b = append(t.b, p[max(0, len(p)-t.keep):]...)
	if extra := len(t.b) - t.keep; extra > 0 {
		t.b = append(t.b[:0], t.b[extra:]...)
	}
	return len(p), nil
}

func (t *tailWriter) Read(p []byte) (int, error) {
	if len(t.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, t.b)
	t.b = t.b[n:]
	return n, nil
}
