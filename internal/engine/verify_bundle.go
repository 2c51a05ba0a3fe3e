package engine

import (
	"cmp"
	"context"
	"io"
	"slices"

	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// verifyJob is what one worker reads at a time: one file, or files of one bundle in their order that lie close together.
type verifyJob []*repo.File

// jobs cuts the files up.
func verifyJobs(files []*repo.File) []verifyJob {
	var jobs []verifyJob
	var bundled []*repo.File
	for _, f := range files {
		if f.BundleID > 0 && f.Size > 0 {
			bundled = append(bundled, f)
		} else {
			jobs = append(jobs, verifyJob{f})
		}
	}
	slices.SortFunc(bundled, func(a, b *repo.File) int {
		return cmp.Or(cmp.Compare(a.Reference, b.Reference), cmp.Compare(a.BundleID, b.BundleID), cmp.Compare(a.BundleOffset, b.BundleOffset))
	})
	for from := 0; from < len(bundled); {
		first := bundled[from]
		to, end := from+1, first.BundleOffset+first.RepoSize
		for ; to < len(bundled); to++ {
			f := bundled[to]
			if f.Reference != first.Reference || f.BundleID != first.BundleID || f.BundleOffset < end || f.BundleOffset-end > restoreGap || f.BundleOffset+f.RepoSize-first.BundleOffset > restoreChunk {
				break
			}
			end = f.BundleOffset + f.RepoSize
		}
		jobs = append(jobs, bundled[from:to])
		from = to
	}
	return jobs
}

// do reads the files of one job, those of a bundle with one request. What is wrong with the bundle itself shows when its files
// are then asked for one by one. When the storage does not answer for it, it is not asked again for each.
func (v *verifier) do(ctx context.Context, m *repo.Manifest, j verifyJob) error {
	if len(j) == 1 {
		return v.file(ctx, m, j[0], nil)
	}
	object, at, _, _ := m.Object(v.s.o.Stanza, j[0])
	last := j[len(j)-1]
	var in *brokenReader
	r, err := v.s.open(ctx, object, at, last.BundleOffset+last.RepoSize-at)
	if storage.IsUnavailable(err) {
		return v.unreadAll(ctx, m, j, object, err)
	}
	if err == nil {
		defer r.Close() // opened for reading: nothing to lose
		in = &brokenReader{r: &ctxReader{ctx, r}}
	}
	for i, f := range j {
		if err := ctx.Err(); err != nil {
			return err
		}
		if in != nil {
			_, _ = io.CopyN(io.Discard, in, f.BundleOffset-at) // in keeps its error
			if storage.IsUnavailable(in.err) {
				return v.unreadAll(ctx, m, j[i:], object, in.err)
			}
		}
		if in == nil || in.err != nil {
			if err := v.file(ctx, m, f, nil); err != nil {
				return err
			}
			continue
		}
		part := &io.LimitedReader{R: in, N: f.RepoSize}
		if err := v.file(ctx, m, f, part); err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, onlyReader{part}) // what a damaged stream left over
		if storage.IsUnavailable(in.err) {
			if was, _ := v.state(fileKey(m, f)); was == isUnread { // and file has noted the object
				v.setUnread(m, j[i+1:])
				return nil
			}
			return v.unreadAll(ctx, m, j[i+1:], object, in.err) // what is known of f stays
		}
		at = f.BundleOffset + f.RepoSize
	}
	return nil
}

// setUnread notes of files that they could not be read.
func (v *verifier) setUnread(m *repo.Manifest, j verifyJob) {
	for _, f := range j {
		v.setState(fileKey(m, f), isUnread)
		if f.BlockMapSize > 0 {
			v.setState(imageKey(storedIn(m, f), f.Name), isUnread)
		}
	}
}

// unreadAll notes that an object, with these files in it, could not be read. No files: nothing is unknown for it.
func (v *verifier) unreadAll(ctx context.Context, m *repo.Manifest, j verifyJob, object string, err error) error {
	if len(j) == 0 {
		return nil
	}
	v.setUnread(m, j)
	_, cut := v.look(ctx, m.Label, object, err)
	return cut
}

// brokenReader keeps the error that ended a reader.
type brokenReader struct {
	r   io.Reader
	err error
}

func (b *brokenReader) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.r.Read(p)
	b.err = err
	return n, err
}
