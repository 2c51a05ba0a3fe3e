package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// maxHistory bounds what is read of a timeline history file, in bytes; one promotion adds less than 300.
const maxHistory = 4 << 20

// sameBeginning refuses the history file of a timeline that began elsewhere than the one of that number in the archive, of
// which there is WAL: with another history it could not be replayed any more. A history file that comes again, even with
// another reason in it, is written over, as is one that can't be read.
func (s *Stanza) sameBeginning(ctx context.Context, dir, name string, f *os.File, pass repo.Secret) error {
	entries, err := pg.ParseHistory(f)
	if _, serr := f.Seek(0, io.SeekStart); serr != nil {
		return serr
	}
	if err != nil {
		return nil // it says nothing, and PostgreSQL wants it archived
	}
	r, err := s.o.Storage.Open(ctx, dir+"/"+name, 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer r.Close() // opened for reading: nothing to lose
	var text strings.Builder
	_, err = repo.Decode(&text, io.LimitReader(&ctxReader{ctx, r}, maxHistory), repo.StreamSpec{Compress: repo.None, Pass: pass})
	if err != nil && !errors.Is(err, repo.ErrCorrupt) {
		return fmt.Errorf("compare it with the one in the archive: %w", err)
	}
	there, perr := pg.ParseHistory(strings.NewReader(text.String()))
	if err != nil || perr != nil {
		return nil
	}
	same := slices.EqualFunc(entries, there, func(a, b pg.TimelineEntry) bool { return a.Timeline == b.Timeline && a.Switch == b.Switch })
	if same {
		return nil
	}
	for info, err := range s.o.Storage.List(ctx, dir, storage.ListOptions{}) {
		if err != nil {
			return fmt.Errorf("list %s: %w", dir, err)
		}
		if base := path.Base(info.Name); info.Dir && isSegmentDir(base) && base[:8] == name[:8] {
			return fmt.Errorf("%w: %s/%s is of a timeline that began elsewhere, and its WAL is there; two servers were promoted apart from each other: make this one anew from the other or a backup, or give it a stanza of its own", ErrArchiveConflict, dir, name)
		}
	}
	return nil
}
