package engine

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// output is an object that is created with the first byte written to it: a file's own, or a bundle.
type output struct {
	ctx    context.Context
	s      storage.Storage
	object string
	hint   int64
	w      storage.Writer
	size   int64
}

func (r *backupRun) newOutput(ctx context.Context, object string, hint int64) *output {
	return &output{ctx: ctx, s: r.s.o.Storage, object: object, hint: hint}
}

func (o *output) open() error {
	if o.w != nil {
		return nil
	}
	w, err := o.s.Create(o.ctx, o.object, storage.CreateOptions{Deferred: true, Size: o.hint})
	o.w = w
	return err
}

func (o *output) Write(p []byte) (int, error) {
	if err := o.open(); err != nil {
		return 0, err
	}
	n, err := o.w.Write(p)
	o.size += int64(n)
	return n, err
}

// commit publishes the object, if anything was written.
func (o *output) commit(ctx context.Context) error {
	if o.w == nil {
		return nil
	}
	return o.w.Commit(ctx)
}

func (o *output) abort() {
	if o.w != nil {
		o.w.Abort()
	}
}

// fileWork is one file on its way into the repository.
type fileWork struct {
	*backupRun
	todo
	f      *repo.File
	bundle int64
	shared *output // of the bundle; nil: the file has its own object
	buf    []byte
	file   *os.File
	src    io.Reader // what is read: never more than the size seen when the manifest was built
	pages  *pg.PageChecker
	read   int64 // bytes that went through
	maps   *mapsAhead
	nth    int // among the files of maps
}

// run stores the file and fills what is learned of it into the manifest entry. gone: it vanished, which is what dropped
// relations do; WAL replays the drop.
func (w *fileWork) run(ctx context.Context) (gone bool, err error) {
	if w.f.Name == controlName {
		_, data, err := pg.ReadControlAs(ctx, w.o.DataDir, w.s.o.PGVersion)
		if err != nil {
			return false, err
		}
		w.f.Size = int64(len(data))
		w.src = bytes.NewReader(data)
		return false, w.storeWhole(ctx)
	}
	// The file behind a link has its own name in the scan's map; nothing else may be a link by now.
	const how = os.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
	w.file, err = os.OpenFile(w.sourcePath(w.f.Name), how, 0)
	if errors.Is(err, fs.ErrNotExist) && w.standby != nil {
		// A standby may lack more than what was dropped, for instance a tablespace that is not mounted there. What the
		// primary has is as good.
		w.file, err = os.OpenFile(w.sc.path(w.f.Name), how, 0)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer w.file.Close() // opened for reading: nothing to lose
	w.src = io.LimitReader(readerOf(w.file), w.f.Size)
	if w.resumed != nil && w.stillGood(ctx, w.resumed, w.buf) {
		same, err := w.resumedMatches(ctx)
		if err != nil || same {
			return false, err
		}
	}
	size, sum := w.blockSize(w.f, w.prior)
	if w.compare && (size == 0 || w.prior.BlockMapSize == 0 || w.prior.BlockSize != size || w.prior.BlockSumSize != sum) { // else its blocks are compared as they are read
		same, err := w.unchanged(ctx)
		if err != nil || same {
			return false, err
		}
	}
	if size > 0 {
		return false, w.storeBlocks(ctx, size, sum)
	}
	return false, w.storeWhole(ctx)
}

// rewind starts reading from the beginning again.
func (w *fileWork) rewind() error {
	_, err := w.file.Seek(0, io.SeekStart)
	w.src = io.LimitReader(readerOf(w.file), w.f.Size)
	return err
}

// hashSource reads the whole file for its SHA-1 and size. A file that fits into the buffer stays there for storing.
func (w *fileWork) hashSource(ctx context.Context) (sum string, size int64, err error) {
	if w.f.Size <= int64(len(w.buf)) {
		n, err := io.ReadFull(w.src, w.buf[:w.f.Size])
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return "", 0, err
		}
		h := sha1.Sum(w.buf[:n])
		w.src = bytes.NewReader(w.buf[:n])
		return hex.EncodeToString(h[:]), int64(n), nil
	}
	h := sha1.New()
	size, err = io.CopyBuffer(h, onlyReader{&ctxReader{ctx, w.src}}, w.buf)
	return hex.EncodeToString(h.Sum(nil)), size, errors.Join(err, w.rewind())
}

// unchanged compares the contents with the prior backup; an equal file becomes a reference.
func (w *fileWork) unchanged(ctx context.Context) (bool, error) {
	sum, size, err := w.hashSource(ctx)
	if err != nil || sum != w.prior.SHA1 || size != w.prior.Size {
		return false, err
	}
	inherit(w.f, w.prior, w.backupRun.prior.Label)
	w.s.o.Events(Moved{size})
	return true, nil
}

// resumedMatches decides whether what an interrupted run stored is still the file: by the time stamp, or with delta by its
// contents.
func (w *fileWork) resumedMatches(ctx context.Context) (bool, error) {
	if w.delta || w.compareResumed || mayLag(w.resume, w.f) {
		sum, size, err := w.hashSource(ctx)
		if err != nil {
			return false, err
		}
		if sum != w.resumed.SHA1 || size != w.resumed.Size {
			return false, nil
		}
	}
	adopt(w.f, w.resumed)
	w.s.o.Events(Moved{w.f.Size})
	w.s.o.Events(FileDone{"backup", w.f.Name, w.f.Size, w.f.RepoSize, w.f.SHA1})
	return true, nil
}

// checker prepares the page checks of a file that is about to be read.
func (w *fileWork) checker() {
	if !w.ChecksumPage || w.f.Size == 0 || w.file == nil || !isPaged(w.f.Name) {
		return
	}
	file := w.file
	w.pages = pg.NewPageChecker(w.control.PageSize, pg.PageSegmentNumber(path.Base(w.f.Name)), func(off int64, page []byte) (int, error) { return file.ReadAt(page, off) })
	if w.o.NoPageHeaders {
		w.pages.IgnoreHeaders()
	}
}

// forget clears what the entry may say from an earlier life; names, owner, size and time stamp stay.
func forget(f *repo.File) {
	*f = repo.File{Name: f.Name, Owner: f.Owner, Size: f.Size, SizeOrig: -1, Timestamp: f.Timestamp}
}

// storeWhole is the write chain of a whole file: read → pages checked → SHA-1 → compress → encrypt → object or bundle.
func (w *fileWork) storeWhole(ctx context.Context) error {
	forget(w.f)
	w.f.BundleID = w.bundle
	object, _, _, spec := w.m.Object(w.s.o.Stanza, w.f)
	spec.Level = w.level
	out := w.shared
	if out == nil {
		out = w.newOutput(ctx, object, w.f.Size)
		defer out.abort()
	}
	begin := out.size
	w.checker()
	n, err := io.ReadFull(w.src, w.buf[:min(int64(len(w.buf)), max(w.f.Size, 1))])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return err
	}
	if n == 0 && w.shared != nil { // truncated to nothing since the scan: a bundle stores nothing of it
		w.f.BundleID = 0
		w.finish(repo.Sums{SHA1: emptySHA1})
		return nil
	}
	if err := out.open(); err != nil {
		return err
	}
	sw, err := newStream(out, spec, w.f.Size)
	if err != nil {
		return err
	}
	if err := w.pump(ctx, sw, n); err != nil {
		return errors.Join(err, sw.Close())
	}
	if err := sw.Close(); err != nil {
		return err
	}
	if w.shared == nil {
		if err := out.commit(ctx); err != nil {
			return err
		}
	} else {
		w.f.BundleOffset = begin
	}
	w.finish(sw.Sums())
	return nil
}

// emptySHA1 is the hash of nothing.
const emptySHA1 = "da39a3ee5e6b4b0d3255bfef95601890afd80709"

// storeBlocks stores what changed of a file since the prior backup, block by block. Nothing changed: a reference.
func (w *fileWork) storeBlocks(ctx context.Context, size int64, sum int) error {
	old, asked, err := (*repo.BlockMap)(nil), false, error(nil)
	if w.maps != nil {
		old, asked, err = w.maps.take(w.nth)
	}
	if !asked {
		old, err = w.priorMap(ctx, w.prior, size, sum)
	}
	if err != nil {
		return err
	}
	for {
		sums, begin, err := w.writeImage(ctx, size, sum, old)
		switch {
		case err != nil:
			return err
		case sums.Size == 0: // truncated to nothing
			w.src = bytes.NewReader(nil)
			return w.storeWhole(ctx)
		case sums.Unchanged && sums.SHA1 == w.prior.SHA1:
			inherit(w.f, w.prior, w.backupRun.prior.Label)
			return nil
		case sums.Unchanged: // two blocks with one short checksum: rarer than a broken disk, and not worth a wrong backup
			if err := w.rewind(); err != nil {
				return err
			}
			old = nil
			continue
		}
		w.f.BundleID, w.f.BundleOffset = w.bundle, begin
		w.f.BlockSize, w.f.BlockSumSize, w.f.BlockMapSize = size, sum, sums.MapSize
		w.finish(sums.Sums)
		return nil
	}
}

// writeImage is the write chain of a file stored in blocks.
func (w *fileWork) writeImage(ctx context.Context, size int64, sum int, old *repo.BlockMap) (sums repo.BlockSums, begin int64, err error) {
	forget(w.f)
	out := w.shared
	if out == nil {
		object := fmt.Sprintf("%s/%s/%s.pgbi", repo.BackupDir(w.Stanza), w.m.Label, w.f.Name)
		out = w.newOutput(ctx, object, 0)
		defer out.abort()
	}
	begin = out.size
	super := w.o.BlockSizes.SuperFull
	if w.m.Type != repo.Full {
		super = w.o.BlockSizes.SuperDiff
	}
	bw, err := repo.NewBlockWriter(func() (io.Writer, error) { return out, out.open() }, repo.BlockWriterOptions{
		BlockSize: size, ChecksumSize: sum, SuperSize: super, Prior: old, Reference: len(w.m.References) - 1,
		BundleID: uint64(w.bundle), Offset: begin, Spec: repo.StreamSpec{Compress: w.Compress, Level: w.level, Pass: w.m.CipherPass}})
	if err != nil {
		return sums, begin, err
	}
	w.checker()
	if err := w.pump(ctx, bw, 0); err != nil {
		return sums, begin, err
	}
	if w.read == 0 {
		return sums, begin, nil
	}
	if sums, err = bw.Close(); err != nil {
		return sums, begin, err
	}
	if w.shared == nil {
		err = out.commit(ctx)
	}
	return sums, begin, err
}

// finish fills the entry of a file that was stored.
func (w *fileWork) finish(sums repo.Sums) {
	f := w.f
	if sums.Size != f.Size {
		f.SizeOrig, f.Size = f.Size, sums.Size
	}
	f.SHA1, f.RepoSize = sums.SHA1, sums.RepoSize
	if sums.RepoSHA1 != sums.SHA1 && sums.RepoSize > 0 {
		f.RepoSHA1 = sums.RepoSHA1
	}
	if w.pages != nil && f.Size > 0 {
		w.pageVerdict(f, w.pages)
	}
	w.s.o.Events(FileDone{"backup", f.Name, f.Size, f.RepoSize, f.SHA1})
}

// pump moves the file through the chain; n bytes of it are in the buffer already.
func (w *fileWork) pump(ctx context.Context, dst io.Writer, n int) error {
	w.read = 0
	var err error
	for {
		if cerr := ctx.Err(); cerr != nil {
			return cerr
		}
		if n == 0 {
			if n, err = io.ReadFull(w.src, w.buf); err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				return err
			}
		}
		if n == 0 {
			return nil
		}
		if err := w.rate.wait(ctx, n); err != nil {
			return err
		}
		if w.pages != nil {
			if _, err := w.pages.Write(w.buf[:n]); err != nil {
				return err
			}
		}
		if _, err := dst.Write(w.buf[:n]); err != nil {
			return err
		}
		w.read += int64(n)
		w.s.o.Events(Moved{int64(n)})
		n = 0
	}
}

// isPaged: files that hold pages with checksums (format page, section 10).
func isPaged(name string) bool {
	if !databaseDir().MatchString(path.Dir(name)) {
		return false
	}
	base := path.Base(name)
	return base != "pg_filenode.map" && base != "PG_VERSION" && name != controlName && !strings.HasPrefix(base, "pg_internal.init")
}

// storeBytes stores a small file that is in memory, under its own name.
func (r *backupRun) storeBytes(ctx context.Context, f *repo.File, data []byte) error {
	f.Size = int64(len(data))
	w := fileWork{backupRun: r, f: f, src: bytes.NewReader(data), buf: make([]byte, 16<<10)}
	return w.storeWhole(ctx)
}

// pageVerdict records bad pages; they are warnings, never a reason to have no backup (format page, section 10).
func (r *backupRun) pageVerdict(f *repo.File, pages *pg.PageChecker) {
	bad, aligned := pages.Finish()
	f.PageChecked, f.PageOK = true, aligned && len(bad) == 0
	if f.PageOK {
		return
	}
	if !aligned {
		r.s.warn("%s: its size %d is not a multiple of the page size", filepath.Join(r.o.DataDir, strings.TrimPrefix(f.Name, "pg_data/")), f.Size)
		return
	}
	for _, b := range bad {
		f.PageErrors = append(f.PageErrors, repo.PageRange(b))
	}
	r.s.warn("%s: page checksums do not match in %d range(s), the first at page %d; the file is backed up as it is: restore the relation from an older backup or look at the disk", f.Name, len(bad), bad[0].First)
}
