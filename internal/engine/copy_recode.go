package engine

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"holdfast/internal/repo"
)

// recoder gives the files of a backup another passphrase, or takes it away. The compressed bytes stay what they are:
//
//	source ─► decrypt ─┬► decompress ─► SHA-1, compared with the manifest
//	                   └► encrypt ─► target
//
// Stored sizes and checksums change with that, and with the sizes the places in bundles. The places of super blocks are in the
// block maps, also in those of later backups, which are written anew.
type recoder struct {
	c *backupCopy

	mu      sync.Mutex
	origins map[repo.Label]*origin
}

// origin is where an earlier backup stores its block incremental files, on both sides.
type origin struct {
	src, dst  *repo.Manifest // without the files that are of no interest
	reference int            // the backup's own number in its maps
}

// specs are how a file is stored on either side.
func (k *recoder) specs(f *repo.File) (in, out repo.StreamSpec) {
	_, _, _, in = k.c.m.Object(k.c.p.Stanza, f)
	out = in
	out.Pass = k.c.t.CipherPass
	return in, out
}

// recode passes one stored stream on under another passphrase. text gets its original bytes.
func recode(dst, text io.Writer, src io.Reader, in, out repo.StreamSpec) (read, written repo.Sums, err error) {
	shell := func(s repo.StreamSpec) repo.StreamSpec {
		return repo.StreamSpec{Compress: repo.None, Pass: s.Pass, Raw: s.Raw}
	}
	decrypted, err := repo.NewStreamReader(src, shell(in))
	if err != nil {
		return read, written, err
	}
	defer decrypted.Close() // opened for reading: nothing to lose
	encrypted, err := repo.NewStreamWriter(dst, shell(out))
	if err != nil {
		return read, written, err
	}
	sums, err := repo.Decode(text, &through{decrypted, encrypted}, repo.StreamSpec{Compress: in.Compress, Raw: in.Raw})
	if err = errors.Join(err, encrypted.Close()); err != nil {
		return read, written, err
	}
	read = repo.Sums{Size: sums.Size, SHA1: sums.SHA1, RepoSize: decrypted.Sums().RepoSize, RepoSHA1: decrypted.Sums().RepoSHA1}
	return read, encrypted.Sums(), nil
}

// through is io.TeeReader with the error of the writer before everything else.
type through struct {
	r io.Reader
	w io.Writer
}

func (t *through) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if n > 0 {
		if _, werr := t.w.Write(p[:n]); werr != nil {
			return 0, werr
		}
	}
	return n, err
}

// file recodes one file. e, a copy of f, becomes what the target's manifest says of it.
func (k *recoder) file(ctx context.Context, f, e *repo.File, r io.Reader, out *counting) error {
	if f.BundleID != 0 {
		e.BundleOffset = out.n
	}
	if f.BlockMapSize > 0 {
		return k.image(ctx, f, e, r, out)
	}
	in, spec := k.specs(f)
	read, written, err := recode(out, io.Discard, r, in, spec)
	if err != nil {
		return err
	}
	if err := checkSums(f, read); err != nil {
		return err
	}
	e.RepoSize = written.RepoSize
	plain := in.Compress == repo.None && in.Pass == "" // then the manifest has no checksum of the stored bytes because it would be the same
	switch {
	case spec.Compress == repo.None && spec.Pass == "" || f.Size == 0 && f.RepoSHA1 == "":
		e.RepoSHA1 = ""
	case f.RepoSHA1 != "" || plain:
		e.RepoSHA1 = written.RepoSHA1
	}
	return nil
}

// superBlock is one super block of an image.
type superBlock struct {
	offset, size int64 // as stored
	length       int64 // of its original bytes
}

// ownSupers lists the super blocks that a map has of one backup, in the order in which they are stored.
func ownSupers(bm *repo.BlockMap, reference int) []superBlock {
	var list []superBlock
	for i := range bm.Blocks {
		if b := &bm.Blocks[i]; b.Reference == reference {
			list = append(list, superBlock{b.Offset, b.Size, b.SuperSize})
		}
	}
	slices.SortFunc(list, func(a, b superBlock) int { return cmp.Compare(a.offset, b.offset) })
	return slices.Compact(list)
}

// image recodes what this backup stores of a block incremental file: each super block by itself, and a map with the new places.
func (k *recoder) image(ctx context.Context, f, e *repo.File, r io.Reader, out *counting) error {
	c := k.c
	in, spec := k.specs(f)
	bm, err := k.readMap(ctx, c.p.from, c.p.Stanza, c.m, f)
	if err != nil {
		return err
	}
	if err := checkBlocks(c.m, f, bm); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	h, stored := sha1.New(), &counting{w: io.Discard}
	r = io.TeeReader(r, io.MultiWriter(h, stored))
	own := len(c.m.References) - 1
	begin, sum := out.n, sha1.New()
	dst := &counting{w: io.MultiWriter(out, sum)}
	places := map[int64]superBlock{}
	var text bytes.Buffer
	for _, sb := range ownSupers(bm, own) {
		if sb.offset != f.BundleOffset+stored.n {
			return fmt.Errorf("%w: the map has a super block at %d, the one before it ends at %d", ErrCorrupt, sb.offset, f.BundleOffset+stored.n)
		}
		at := out.n
		text.Reset()
		if _, _, err := recode(dst, &text, io.LimitReader(r, sb.size), in, spec); err != nil {
			return err
		}
		if err := checkSuper(bm, own, sb, text.Bytes()); err != nil {
			return err
		}
		places[sb.offset] = superBlock{at, out.n - at, sb.length}
	}
	if _, err := io.Copy(io.Discard, onlyReader{r}); err != nil {
		return err
	}
	if err := checkStored(f, stored.n, hex.EncodeToString(h.Sum(nil))); err != nil {
		return err
	}
	if err := k.move(ctx, f, bm, own, places); err != nil {
		return err
	}
	raw, err := bm.Encode()
	if err != nil {
		return err
	}
	at := out.n
	sw, err := repo.NewStreamWriter(dst, repo.StreamSpec{Compress: repo.None, Pass: spec.Pass, Raw: true})
	if err != nil {
		return err
	}
	_, err = sw.Write(raw)
	if err = errors.Join(err, sw.Close()); err != nil {
		return err
	}
	e.RepoSize, e.BlockMapSize, e.RepoSHA1 = out.n-begin, out.n-at, hex.EncodeToString(sum.Sum(nil))
	return nil
}

// checkSuper compares the blocks of a super block with the checksums in the map.
func checkSuper(bm *repo.BlockMap, own int, sb superBlock, text []byte) error {
	if int64(len(text)) != sb.length {
		return fmt.Errorf("%w: super block at %d has %d bytes, the map says %d", ErrCorrupt, sb.offset, len(text), sb.length)
	}
	for i := range bm.Blocks {
		b := &bm.Blocks[i]
		if b.Reference != own || b.Offset != sb.offset {
			continue
		}
		at := b.Position * bm.BlockSize
		if bm.Sum(text[at:min(at+bm.BlockSize, sb.length)]) != b.Checksum {
			return fmt.Errorf("%w: block %d is not what the map says", ErrCorrupt, i)
		}
	}
	return nil
}

// move gives the blocks of a map their places in the target. places are those of the backup's own super blocks.
func (k *recoder) move(ctx context.Context, f *repo.File, bm *repo.BlockMap, own int, places map[int64]superBlock) error {
	known := map[int]map[int64]superBlock{own: places}
	for i := range bm.Blocks {
		b := &bm.Blocks[i]
		of := known[b.Reference]
		if of == nil {
			var err error
			if of, err = k.earlier(ctx, k.c.m.References[b.Reference], f.Name); err != nil {
				return err
			}
			known[b.Reference] = of
		}
		to, ok := of[b.Offset]
		if !ok || to.length != b.SuperSize {
			return fmt.Errorf("%w: the map names a super block at %d in backup %s, which does not store one there", ErrCorrupt, b.Offset, k.c.m.References[b.Reference])
		}
		b.Offset, b.Size = to.offset, to.size
	}
	return nil
}

// earlier tells where the super blocks that an earlier backup stores of a file are in the target, by their places in the source.
func (k *recoder) earlier(ctx context.Context, l repo.Label, name string) (map[int64]superBlock, error) {
	o, err := k.origin(ctx, l)
	if err != nil {
		return nil, err
	}
	sf, tf := o.src.File(name), o.dst.File(name)
	if sf == nil || tf == nil {
		return nil, fmt.Errorf("%w: backup %s stores no blocks of it", ErrCorrupt, l)
	}
	sm, err := k.readMap(ctx, k.c.p.from, k.c.p.Stanza, o.src, sf)
	if err != nil {
		return nil, err
	}
	tm, err := k.readMap(ctx, k.c.p.to, k.c.p.ToStanza, o.dst, tf)
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	from, to := ownSupers(sm, o.reference), ownSupers(tm, o.reference)
	if len(from) != len(to) {
		return nil, fmt.Errorf("target: backup %s: %d super blocks, the source has %d: remove the backup there and copy it again", l, len(to), len(from))
	}
	places := map[int64]superBlock{}
	for i := range from {
		places[from[i].offset] = to[i]
	}
	return places, nil
}

// readMap reads the map at the end of the image that a backup stores of a file.
func (k *recoder) readMap(ctx context.Context, s *Stanza, stanza string, m *repo.Manifest, f *repo.File) (*repo.BlockMap, error) {
	object, offset, length, spec := m.Object(stanza, f)
	in, err := s.o.Storage.Open(ctx, object, offset+length-f.BlockMapSize, f.BlockMapSize)
	if err != nil {
		if s == k.c.p.from {
			err = sourceErr(err)
		}
		return nil, err
	}
	bm, err := repo.ReadBlockMap(&ctxReader{ctx, in}, f.BlockSize, f.BlockSumSize, spec.Pass)
	if err = errors.Join(err, in.Close()); err != nil {
		return nil, fmt.Errorf("block map in %s: %w", object, err)
	}
	return bm, nil
}

// origin loads what both sides know of the block incremental files of an earlier backup, once.
func (k *recoder) origin(ctx context.Context, l repo.Label) (*origin, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if o := k.origins[l]; o != nil {
		return o, nil
	}
	p := k.c.p
	src, err := repo.LoadManifest(ctx, p.from.o.Storage, p.Stanza, l, p.src.bi.CipherPass)
	if err != nil {
		return nil, sourceErr(err)
	}
	dst, err := repo.LoadManifest(ctx, p.to.o.Storage, p.ToStanza, l, p.dst.bi.CipherPass)
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	o := &origin{src: src, dst: dst, reference: len(src.References) - 1}
	for _, m := range []*repo.Manifest{src, dst} {
		m.Files = slices.Clip(slices.DeleteFunc(m.Files, func(f repo.File) bool { return f.BlockMapSize == 0 || f.Reference != "" }))
	}
	if k.origins == nil {
		k.origins = map[repo.Label]*origin{}
	}
	k.origins[l] = o
	return o, nil
}

// references makes the entries of files that are in earlier backups say how they are stored there in the target. What a backup
// leaves to an earlier one its prior has too, with the same place; only where it does not, that earlier one is asked.
func (k *recoder) references(ctx context.Context) error {
	c := k.c
	missing := map[repo.Label][]int{}
	if c.m.Prior != "" {
		for i := range c.m.Files {
			if c.m.Files[i].Reference != "" {
				missing[c.m.Prior] = append(missing[c.m.Prior], i)
			}
		}
	}
	for l := c.m.Prior; l != ""; {
		list := missing[l]
		delete(missing, l)
		tm, err := repo.LoadManifest(ctx, c.p.to.o.Storage, c.p.ToStanza, l, c.p.dst.bi.CipherPass)
		if err != nil {
			return fmt.Errorf("target: %w", err)
		}
		for _, i := range list {
			f := &c.m.Files[i]
			e := tm.File(f.Name)
			switch {
			case e != nil && e.SHA1 == f.SHA1 && e.Size == f.Size && cmp.Or(e.Reference, l) == f.Reference:
				storedAs(&c.t.Files[i], e)
			case f.Reference == l || f.Size > 0 && f.SHA1 == "":
				return fmt.Errorf("%w: %s is in backup %s, which does not have it", ErrCorrupt, f.Name, f.Reference)
			default:
				missing[f.Reference] = append(missing[f.Reference], i)
			}
		}
		l = ""
		for next := range missing {
			l = next
		}
	}
	return nil
}
