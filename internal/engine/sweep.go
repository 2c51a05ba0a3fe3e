package engine

import (
	"context"
	"fmt"
	"time"

	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// sweepAfter is how long ago an unfinished object must have been begun before it is taken for that of a writer that died: none
// of ours takes as long, files of PostgreSQL being at most a segment of a relation.
const sweepAfter = 24 * time.Hour

// sweep removes what writers that died left below the stanza on an object store: uploads in parts, which cost money and are
// listed nowhere else. A file system shows its temporary files to everybody, and looking for them would mean to walk through all
// of it. What can't be swept is a warning, for it may need a right that the rest does not.
func (s *Stanza) sweep(ctx context.Context, verb string) error {
	sw, ok := s.o.Storage.(storage.Sweeper)
	if a := s.o.Storage.Abilities(); !ok || !a.Sweeps || !a.Remote || a.Links {
		return nil
	}
	before := s.o.Now().Add(-sweepAfter)
	for _, dir := range []string{repo.ArchiveDir(s.o.Stanza), repo.BackupDir(s.o.Stanza)} {
		n, err := sw.Sweep(ctx, dir, before)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			s.warn("unfinished uploads below %s, which cost space, could not be looked for: %v", dir, err)
			return nil
		}
		if n > 0 {
			s.step(verb, "sweep", fmt.Sprintf("%d unfinished objects below %s, begun more than a day ago, are removed", n, dir))
		}
	}
	return nil
}
