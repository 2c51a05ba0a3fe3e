package engine

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// restoreWorker restores files one after the other.
type restoreWorker struct {
	*restoreRun
	buf   []byte // copyBuffer bytes
	image []byte // of a small block incremental file, see smallImage
}

// target is where one file goes.
type restoreTarget struct {
	*repo.File
	root *os.Root
	rel  string
}

// do restores one job: it finds out what is right already and reads the rest, with one request per run of slices that lie
// close together.
func (w *restoreWorker) do(ctx context.Context, j restoreJob) error {
	var wanted []restoreTarget
	for _, i := range j.files {
		if err := ctx.Err(); err != nil {
			return err
		}
		f := &w.m.Files[i]
		t, read, err := w.look(ctx, f)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		if read {
			wanted = append(wanted, t)
		}
	}
	for len(wanted) > 0 {
		if t := wanted[0]; t.BlockMapSize > 0 && t.RepoSize > smallImage { // has readers of its own
			if err := w.blocks(ctx, t, nil); err != nil {
				return fmt.Errorf("%s: %w", t.Name, err)
			}
			wanted = wanted[1:]
			continue
		}
		n, end := 1, wanted[0].BundleOffset+wanted[0].RepoSize
		for ; n < len(wanted); n++ {
			t := wanted[n]
			if t.BundleOffset < end || t.BundleOffset-end > restoreGap || t.BlockMapSize > 0 && t.RepoSize > smallImage {
				break
			}
			end = t.BundleOffset + t.RepoSize
		}
		if err := w.slices(ctx, wanted[:n], end); err != nil {
			return err
		}
		wanted = wanted[n:]
	}
	return nil
}

// look restores what needs no reading from the repository; for the rest it says where it goes.
func (w *restoreWorker) look(ctx context.Context, f *repo.File) (t restoreTarget, read bool, err error) {
	root, rel := w.place(f.Name)
	if root == nil {
		return t, false, errors.New("the manifest has no target for this file")
	}
	t = restoreTarget{File: f, root: root.root, rel: rel}
	switch f.Name {
	case controlName:
		t.rel += controlSuffix
	case tablespaceMap, leftName: // the links are made already; ours is there
		return t, false, nil
	case autoConfName:
		if w.Type == TargetPreserve {
			if _, err := t.root.Lstat(t.rel); err == nil {
				return t, false, nil
			}
		}
	}
	if w.isEmptied(f.Name) {
		return t, false, w.empty(t)
	}
	if w.Delta && f.Name != controlName {
		if kept, err := w.keep(ctx, t); kept || err != nil {
			return t, false, err
		}
	}
	if f.Size == 0 {
		return t, false, w.write(t, func(*os.File) error { return nil })
	}
	return t, true, nil
}

// slices reads the wanted files of one object, the last of which ends at end, with one request.
func (w *restoreWorker) slices(ctx context.Context, wanted []restoreTarget, end int64) error {
	object, at, length, _ := w.m.Object(w.Stanza, wanted[0].File)
	if wanted[0].BundleID > 0 {
		length = end - at
	}
	in, err := w.s.open(ctx, object, at, length)
	if err != nil {
		return fmt.Errorf("%s: %w", wanted[0].Name, err)
	}
	defer in.Close()
	for _, t := range wanted {
		if t.BundleID > 0 {
			if _, err := io.CopyN(io.Discard, in, t.BundleOffset-at); err != nil {
				return fmt.Errorf("%s: %w", t.Name, w.damaged(object, err))
			}
			at = t.BundleOffset + t.RepoSize
		}
		if err := w.slice(ctx, t, object, io.LimitReader(in, t.RepoSize)); err != nil {
			return fmt.Errorf("%s: %w", t.Name, err)
		}
	}
	return nil
}

// slice restores a file whose stored bytes r gives.
func (w *restoreWorker) slice(ctx context.Context, t restoreTarget, object string, r io.Reader) error {
	if t.BlockMapSize == 0 {
		return w.write(t, func(out *os.File) error { return w.whole(ctx, t, object, r, out) })
	}
	if w.image == nil {
		w.image = make([]byte, smallImage)
	}
	image := w.image[:t.RepoSize]
	if _, err := io.ReadFull(r, image); err != nil {
		return w.damaged(object, err)
	}
	return w.blocks(ctx, t, image)
}

// whole is the read chain of a restore: stored bytes → decrypt → decompress → SHA-1 → file.
func (w *restoreWorker) whole(ctx context.Context, t restoreTarget, object string, r io.Reader, out *os.File) error {
	_, _, _, spec := w.m.Object(w.Stanza, t.File)
	sr, err := repo.NewStreamReader(r, spec)
	if err != nil {
		return fmt.Errorf("%s: %w", object, err)
	}
	defer sr.Close()
	var size int64
	for {
		n, rerr := io.ReadFull(sr, w.buf)
		if err := w.rate.wait(ctx, n); err != nil {
			return err
		}
		if size += int64(n); size > t.Size {
			return w.mismatch(t, object, "more than the file's bytes")
		}
		if _, err := out.Write(w.buf[:n]); err != nil {
			return err
		}
		w.s.o.Events(Moved{int64(n)})
		if rerr == io.EOF || rerr == io.ErrUnexpectedEOF && sr.Sums().SHA1 != "" {
			break
		}
		if rerr != nil {
			return w.damaged(object, rerr)
		}
	}
	if sums := sr.Sums(); sums.SHA1 != t.SHA1 || sums.Size != t.Size {
		return w.mismatch(t, object, fmt.Sprintf("SHA-1 %s and %d bytes", sums.SHA1, sums.Size))
	}
	return nil
}

// write makes the file, lets fill write its content, and gives it mode, owner and time. What stood there is replaced.
func (w *restoreWorker) write(t restoreTarget, fill func(out *os.File) error) (err error) {
	out, err := t.root.OpenFile(t.rel, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrExist) && w.Overwrites {
		if err := t.root.RemoveAll(t.rel); err != nil {
			return err
		}
		out, err = t.root.OpenFile(t.rel, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := fill(out); err != nil {
		return err
	}
	return w.complete(t, out)
}

// complete gives a file whose content is right its mode, owner and time.
func (w *restoreWorker) complete(t restoreTarget, out *os.File) error {
	if w.syncEach {
		if err := out.Sync(); err != nil {
			return err
		}
	}
	if w.own.apply { // before the mode: chown takes bits away
		uid, gid := w.own.resolve(t.Owner)
		if err := out.Chown(uid, gid); err != nil {
			return err
		}
	}
	if err := out.Chmod(fileMode(t.File)); err != nil {
		return err
	}
	mtime := time.Unix(t.Timestamp, 0)
	if err := t.root.Chtimes(t.rel, mtime, mtime); err != nil {
		return err
	}
	w.s.o.Events(FileDone{"restore", t.Name, t.Size, t.RepoSize, t.SHA1})
	return nil
}

func fileMode(f *repo.File) fs.FileMode {
	if f.Mode == 0 {
		return 0o600
	}
	return fs.FileMode(f.Mode)
}

// hashFile is the SHA-1 of the first size bytes of f, with io.ErrUnexpectedEOF when there are fewer.
func (w *restoreWorker) hashFile(ctx context.Context, f *os.File, size int64) (string, error) {
	h := sha1.New()
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := f.ReadAt(w.buf[:min(int64(len(w.buf)), size-at)], at)
		h.Write(w.buf[:n])
		if at += int64(n); err == io.EOF && at < size {
			return "", io.ErrUnexpectedEOF
		} else if err != nil && err != io.EOF {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// damaged names the object that can't be read, and says so when that is for its content.
func (w *restoreWorker) damaged(object string, err error) error {
	if storage.IsUnavailable(err) {
		return fmt.Errorf("%s: %w", object, err)
	}
	if errors.Is(err, repo.ErrCorrupt) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %s: %w; %s", ErrCorrupt, object, err, w.verifyHint())
	}
	return fmt.Errorf("%s: %w", object, err)
}

func (w *restoreWorker) mismatch(t restoreTarget, object, got string) error {
	return fmt.Errorf("%w: %s gives %s, the manifest says SHA-1 %s and %d bytes; %s", ErrCorrupt, object, got, t.SHA1, t.Size, w.verifyHint())
}

func (w *restoreWorker) verifyHint() string {
	return fmt.Sprintf("run: holdfast pg verify --stanza=%s --set=%s", w.Stanza, w.Label)
}
