package engine

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// Objects on their way. Everything that is read of the source goes through a passage, which hands it on to the target at the same
// time, so that what was hashed is what was written:
//
//	source ─► passage ─► decrypt ─► decompress ─► SHA-1, compared with the manifest or the name
//	             └─► target
//
// With a recoder the passage writes nothing; it is the recoder that does, what comes out between decrypt and decompress.

// passage reads an object of the source, and gives all that is read to w.
type passage struct {
	ctx  context.Context
	r    io.Reader
	w    io.Writer // nil: nobody
	rate *rate
	note func(Event)
	n    int64 // bytes read
	werr error // what went wrong with w
}

// Read implements io.Reader.
func (g *passage) Read(p []byte) (int, error) {
	if g.werr != nil {
		return 0, g.werr
	}
	if err := g.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := g.r.Read(p)
	if n > 0 {
		g.n += int64(n)
		if werr := g.hand(p[:n]); werr != nil {
			g.werr = werr
			return 0, werr
		}
	}
	return n, err
}

func (g *passage) hand(p []byte) error {
	if err := g.rate.wait(g.ctx, len(p)); err != nil {
		return err
	}
	if g.w != nil {
		if _, err := g.w.Write(p); err != nil {
			return err
		}
	}
	g.note(Moved{int64(len(p))})
	return nil
}

// finish gives the error that counts: of the target before what the source's reader makes of it.
func (g *passage) finish(err error) error {
	if g.werr != nil {
		return g.werr
	}
	return err
}

// counting counts what is written of an object.
type counting struct {
	w io.Writer
	n int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// transfer copies one object and returns how each of its files is stored in the target.
func (c *backupCopy) transfer(ctx context.Context, u *copyUnit) (entries []repo.File, err error) {
	in, err := c.p.from.open(ctx, c.name(c.p.Stanza, u), 0, -1)
	if err != nil {
		return nil, sourceErr(err)
	}
	defer in.Close() // opened for reading: nothing to lose
	w, err := c.p.to.o.Storage.Create(ctx, c.object(u), storage.CreateOptions{Deferred: true, Size: u.size})
	if err != nil {
		return nil, err
	}
	defer w.Abort() // after Commit it does nothing
	out := &counting{w: w}
	g := &passage{ctx: ctx, r: in, rate: c.rate, note: c.p.from.o.Events}
	if c.k == nil {
		g.w = out
	}
	if entries, err = c.each(ctx, u, g, out); err != nil {
		return nil, g.finish(err)
	}
	// What no file lies in goes along where bytes pass as they are, and has to be seen to end well in any case.
	if _, err := io.Copy(io.Discard, onlyReader{g}); err != nil {
		return nil, g.finish(err)
	}
	if u.bundle != 0 && g.n != u.size {
		return nil, fmt.Errorf("%w: %d bytes, %d when it was listed", ErrCorrupt, g.n, u.size)
	}
	return entries, aside(ctx, func() error { return w.Commit(ctx) })
}

// each goes through the files of an object in their order.
func (c *backupCopy) each(ctx context.Context, u *copyUnit, g *passage, out *counting) ([]repo.File, error) {
	entries := make([]repo.File, len(u.files))
	for n, i := range u.files {
		f := &c.m.Files[i]
		entries[n] = *f
		r := io.Reader(g)
		if u.bundle != 0 {
			if f.BundleOffset < g.n {
				return nil, fmt.Errorf("%w: %s begins at %d, before the file in front of it ends", ErrCorrupt, f.Name, f.BundleOffset)
			}
			if err := skip(g, f.BundleOffset-g.n); err != nil {
				return nil, fmt.Errorf("%s: %w", f.Name, err)
			}
			r = io.LimitReader(g, f.RepoSize)
		}
		var err error
		switch {
		case c.k != nil:
			err = c.k.file(ctx, f, &entries[n], r, out)
		case f.BlockMapSize > 0:
			err = c.checkImage(f, r)
		default:
			err = c.checkFile(f, r)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return entries, nil
}

// skip reads n bytes that belong to no file.
func skip(r io.Reader, n int64) error {
	got, err := io.Copy(io.Discard, io.LimitReader(r, n))
	if err == nil && got < n {
		err = fmt.Errorf("%w: it ends %d bytes early", ErrCorrupt, n-got)
	}
	return err
}

// checkFile decodes a stored file and compares it with the manifest.
func (c *backupCopy) checkFile(f *repo.File, r io.Reader) error {
	_, _, _, spec := c.m.Object(c.p.Stanza, f)
	sums, err := repo.Decode(io.Discard, r, spec)
	if err != nil {
		return err
	}
	return checkSums(f, sums)
}

// checkSums compares what was read of a file with what the manifest says of it.
func checkSums(f *repo.File, sums repo.Sums) error {
	want := f.SHA1
	if f.Size == 0 {
		want = emptySHA1
	}
	switch {
	case sums.SHA1 != want:
		return fmt.Errorf("%w: SHA-1 is %s, the manifest says %s", ErrCorrupt, sums.SHA1, want)
	case sums.Size != f.Size:
		return fmt.Errorf("%w: %d bytes, the manifest says %d", ErrCorrupt, sums.Size, f.Size)
	case f.Size > 0 && sums.RepoSize != f.RepoSize:
		return fmt.Errorf("%w: %d bytes stored, the manifest says %d", ErrCorrupt, sums.RepoSize, f.RepoSize)
	case f.RepoSHA1 != "" && sums.RepoSHA1 != f.RepoSHA1:
		return fmt.Errorf("%w: SHA-1 of the stored bytes is %s, the manifest says %s", ErrCorrupt, sums.RepoSHA1, f.RepoSHA1)
	}
	return nil
}

// checkImage compares what a backup stores of a block incremental file with its checksum, and looks at its map. The SHA-1 of
// the whole file can't be compared: blocks of it are in other backups.
func (c *backupCopy) checkImage(f *repo.File, r io.Reader) error {
	h := sha1.New()
	tail := tailWriter{keep: int(f.BlockMapSize)}
	n, err := io.Copy(io.MultiWriter(h, &tail), onlyReader{r})
	if err != nil {
		return err
	}
	if err := checkStored(f, n, hex.EncodeToString(h.Sum(nil))); err != nil {
		return err
	}
	bm, err := repo.ReadBlockMap(&tail, f.BlockSize, f.BlockSumSize, c.m.CipherPass)
	if err == nil {
		err = checkBlocks(c.m, f, bm)
	}
	if err != nil {
		return errors.Join(ErrCorrupt, err)
	}
	return nil
}

func checkStored(f *repo.File, n int64, sum string) error {
	if n != f.RepoSize || sum != f.RepoSHA1 {
		return fmt.Errorf("%w: SHA-1 of the %d stored bytes is %s, the manifest says %s of %d", ErrCorrupt, n, sum, f.RepoSHA1, f.RepoSize)
	}
	return nil
}
