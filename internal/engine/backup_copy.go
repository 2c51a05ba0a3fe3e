package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// copyBuffer is how much of a file one worker reads at once, in bytes.
const copyBuffer = 1 << 20

const controlName = "pg_data/global/pg_control"

// copyFiles stores every file of the manifest, the largest first. Files whose time stamp lies in the current second or
// later are copied only when that second is over: written again within it they would keep their time stamp, and a later
// incremental backup would take them for unchanged (format page, section 13.4).
func (r *backupRun) copyFiles(ctx context.Context) error {
	files := r.m.Files
	order := make([]int, len(files))
	var total int64
	for i := range files {
		order[i] = i
		total += files[i].Size
	}
	hot := func(i int) bool { return files[i].Timestamp >= r.m.TimeCopyStart-1 }
	slices.SortFunc(order, func(a, b int) int {
		if ha, hb := hot(a), hot(b); ha != hb {
			if ha {
				return 1
			}
			return -1
		}
		if files[a].Size != files[b].Size {
			return int(min(max(files[b].Size-files[a].Size, -1), 1))
		}
		return a - b
	})
	r.s.step("backup", "copy", string(r.m.Label))
	r.s.o.Events(Amount{"backup", len(files), total})
	jobs := make(chan int)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(jobs)
		waited := false
		for _, i := range order {
			if !waited && hot(i) {
				waited = true
				if err := sleepUntil(ctx, r.s.o.Now, time.Unix(r.m.TimeCopyStart, 0)); err != nil {
					return err
				}
			}
			select {
			case jobs <- i:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	vanished := make([]bool, len(files))
	var mu sync.Mutex
	for range r.o.ProcessMax {
		g.Go(func() error {
			buf := make([]byte, copyBuffer)
			for i := range jobs {
				gone, err := r.copyFile(ctx, &files[i], buf)
				if err != nil {
					return fmt.Errorf("%s: %w", files[i].Name, err)
				}
				vanished[i] = gone
				if files[i].PageChecked && !files[i].PageOK {
					mu.Lock()
					r.res.PageErrors = append(r.res.PageErrors, files[i].Name)
					mu.Unlock()
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
			return cause
		}
		return err
	}
	slices.Sort(r.res.PageErrors)
	i := -1
	r.m.Files = slices.DeleteFunc(files, func(repo.File) bool { i++; return vanished[i] })
	r.res.Vanished = len(order) - len(r.m.Files)
	if !slices.ContainsFunc(r.m.Files, func(f repo.File) bool { return f.Name == controlName }) {
		return errors.New("global/pg_control was not copied: the data directory was removed during the backup")
	}
	return nil
}

func sleepUntil(ctx context.Context, now func() time.Time, t time.Time) error {
	for {
		d := t.Sub(now())
		if d <= 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(min(d, time.Second)):
		}
	}
}

// copyFile stores one file and fills what is learned of it into the manifest entry. gone: it vanished, which is what
// dropped relations do; WAL replays the drop.
func (r *backupRun) copyFile(ctx context.Context, f *repo.File, buf []byte) (gone bool, err error) {
	if f.Name == controlName {
		_, data, err := pg.ReadControl(ctx, r.o.DataDir)
		if err != nil {
			return false, err
		}
		return false, r.storeBytes(ctx, f, data)
	}
	real := r.sc.path(f.Name)
	// The file behind a link has its own name in s.real; nothing else may be a link by now.
	src, err := os.OpenFile(real, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer src.Close()
	var pages *pg.PageChecker
	if r.ChecksumPage && f.Size > 0 && isPaged(f.Name) {
		pages = pg.NewPageChecker(r.control.PageSize, pg.PageSegmentNumber(path.Base(f.Name)), func(off int64, page []byte) (int, error) { return src.ReadAt(page, off) })
	}
	// Never more than the size seen when the manifest was built: what comes later is in the WAL.
	if err := r.storeFile(ctx, f, io.LimitReader(src, f.Size), pages, buf); err != nil {
		return false, err
	}
	return false, nil
}

// isPaged: files that hold pages with checksums (format page, section 10).
func isPaged(name string) bool {
	if !databaseDir.MatchString(path.Dir(name)) {
		return false
	}
	base := path.Base(name)
	return base != "pg_filenode.map" && base != "PG_VERSION" && name != controlName && !strings.HasPrefix(base, "pg_internal.init")
}

func (r *backupRun) storeBytes(ctx context.Context, f *repo.File, data []byte) error {
	f.Size = int64(len(data))
	return r.storeFile(ctx, f, strings.NewReader(string(data)), nil, make([]byte, 16<<10))
}

// storeFile is the write chain of a backup: read → pages checked → SHA-1 → compress → encrypt → object.
func (r *backupRun) storeFile(ctx context.Context, f *repo.File, src io.Reader, pages *pg.PageChecker, buf []byte) error {
	object, _, _, spec := r.m.Object(r.s.o.Stanza, f)
	spec.Level = r.o.Level
	w, err := r.s.o.Storage.Create(ctx, object, storage.CreateOptions{Deferred: true, Size: f.Size})
	if err != nil {
		return err
	}
	defer w.Abort()
	sw, err := repo.NewStreamWriter(w, spec)
	if err != nil {
		return err
	}
	if err := r.pump(ctx, sw, src, pages, buf); err != nil {
		return errors.Join(err, sw.Close())
	}
	if err := sw.Close(); err != nil {
		return err
	}
	if err := w.Commit(ctx); err != nil {
		return err
	}
	sums := sw.Sums()
	if sums.Size != f.Size {
		f.SizeOrig, f.Size = f.Size, sums.Size
	}
	f.SHA1, f.RepoSize = sums.SHA1, sums.RepoSize
	if sums.RepoSHA1 != sums.SHA1 {
		f.RepoSHA1 = sums.RepoSHA1
	}
	if pages != nil {
		r.pageVerdict(f, pages)
	}
	r.s.o.Events(FileDone{"backup", f.Name, f.Size, f.RepoSize, f.SHA1})
	return nil
}

func (r *backupRun) pump(ctx context.Context, sw io.Writer, src io.Reader, pages *pg.PageChecker, buf []byte) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(src, buf)
		if n > 0 {
			if pages != nil {
				if _, err := pages.Write(buf[:n]); err != nil {
					return err
				}
			}
			if _, err := sw.Write(buf[:n]); err != nil {
				return err
			}
			r.s.o.Events(Moved{int64(n)})
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
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
