package engine

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// clearUnfinished looks at label directories that are no backups, which is what interrupted runs leave. The newest one is
// taken over if this run may (format page, section 15); the others are removed.
func (r *backupRun) clearUnfinished(ctx context.Context, dirs []repo.LabelDir) error {
	s := r.s
	var left []repo.Label
	for _, d := range dirs {
		if !d.Manifest {
			left = append(left, d.Label)
		}
	}
	if n := len(left); n > 0 && r.o.Resume && r.Type == repo.Full {
		old, err := repo.LoadManifestCopy(ctx, s.o.Storage, s.o.Stanza, left[n-1], r.bi.CipherPass)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil { // damaged, or out of reach at the moment? A store that is away is no reason to remove what is in it
			if _, rerr := repo.ManifestCopySum(ctx, s.o.Storage, s.o.Stanza, left[n-1]); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				return fmt.Errorf("read the manifest of the interrupted backup %s, to resume it: %w; run the backup again when the repository can be read", left[n-1], rerr)
			}
		}
		if why := r.notResumable(left[n-1], old, err); why != "" {
			s.warn("backup %s was interrupted and can't be resumed: %s", left[n-1], why)
		} else {
			s.warn("backup %s was interrupted: it is resumed", left[n-1])
			r.resume, left = old, left[:n-1]
		}
	}
	for _, l := range left {
		s.warn("backup %s was interrupted: its files are removed", l)
		if err := s.removeUnfinished(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

func (r *backupRun) notResumable(label repo.Label, old *repo.Manifest, err error) string {
	switch {
	case err != nil:
		return "its manifest can't be read: " + err.Error()
	case old.BackrestVersion != r.s.o.Version:
		return fmt.Sprintf("it was made by version %s", old.BackrestVersion)
	case old.Type != repo.Full || label.Type() != repo.Full:
		return "only full backups are"
	case old.Options.CompressType != r.Compress:
		return fmt.Sprintf("it was compressed with %s", old.Options.CompressType)
	case old.DB.SystemID != r.db.SystemID || old.DB.Version != r.db.Version:
		return "it is of another cluster"
	case label < r.newest:
		return "there are newer backups"
	}
	return ""
}

// resumeFiles finds out which stored files of the interrupted run may be kept, and removes everything else of it. They
// keep their label, and with it their place.
func (r *backupRun) resumeFiles(ctx context.Context, work []todo) error {
	if r.resume == nil {
		return nil
	}
	if old := r.resume; !r.delta && (old.Options.Online != r.m.Options.Online || old.ArchiveStart != "" && !strings.HasPrefix(old.ArchiveStart, r.m.ArchiveStart[:min(8, len(r.m.ArchiveStart))])) {
		r.s.warn("backup %s was interrupted on another timeline, or one of the two is offline: what it stored is compared by checksum", old.Label)
		r.compareResumed = true
	}
	keep := map[string]bool{}
	old := &repo.Manifest{Files: r.resume.Files}
	old.Sort()
	for i := range work {
		f := &r.m.Files[work[i].index]
		was := old.File(f.Name)
		if was == nil || was.SHA1 == "" || was.Size == 0 || was.Size != f.Size || was.BundleID != 0 || was.Reference != "" || f.Name == controlName ||
			was.Timestamp != f.Timestamp && !r.delta || r.ChecksumPage && isPaged(f.Name) && !was.PageChecked {
			continue
		}
		work[i].resumed = was
		object, _, _, _ := r.resume.Object(r.s.o.Stanza, was)
		keep[object] = true
	}
	dir := repo.BackupDir(r.s.o.Stanza) + "/" + string(r.resume.Label)
	var drop []string
	for info, err := range r.s.o.Storage.List(ctx, dir, storage.ListOptions{Recursive: true}) {
		if err != nil {
			return fmt.Errorf("list %s: %w", dir, err)
		}
		if info.Name == repo.ManifestPath(r.s.o.Stanza, r.resume.Label) {
			return fmt.Errorf("backup %s was taken for an interrupted one, and another host has just completed it; let one host at a time back up to this repository, and run the backup again", r.resume.Label)
		}
		if !keep[info.Name] {
			drop = append(drop, info.Name)
		}
	}
	return wrap(r.s.o.Storage.Remove(ctx, drop...), "remove what can't be resumed of backup %s", r.resume.Label)
}

// stillGood reads what an interrupted run stored of a file and compares it with that run's manifest.
func (r *backupRun) stillGood(ctx context.Context, was *repo.File, buf []byte) bool {
	object, _, length, _ := r.resume.Object(r.s.o.Stanza, was)
	in, err := r.s.o.Storage.Open(ctx, object, 0, -1)
	if err != nil {
		return false
	}
	defer in.Close() // opened for reading: nothing to lose
	h := sha1.New()
	n, err := io.CopyBuffer(h, onlyReader{in}, buf)
	want := was.RepoSHA1
	if want == "" {
		want = was.SHA1
	}
	return err == nil && n == length && hex.EncodeToString(h.Sum(nil)) == want
}

// onlyReader hides other methods of a reader, so that io.CopyBuffer uses the buffer.
type onlyReader struct{ io.Reader }

// adopt takes over what an interrupted run knows of a file that it stored.
func adopt(f, was *repo.File) {
	now := *f
	*f = *was
	f.Name, f.Owner, f.Timestamp = now.Name, now.Owner, now.Timestamp
}
