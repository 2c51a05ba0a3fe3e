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

// sweep removes what writers that died left below the stanza: on an object store uploads in parts, which cost money and are
// listed nowhere else, on a file system temporary files. It is called with the stanza's lock held; the age protects the writers
// that do not take it, archive-push and those of other hosts. What can't be swept is a warning, for it may need a right that the
// rest does not.
func (s *Stanza) sweep(ctx context.Context, verb string) error {
	sw, ok := s.o.Storage.(storage.Sweeper)
	a := s.o.Storage.Abilities()
	if !ok || !a.Sweeps {
		return nil
	}
	dirs := [2]string{repo.ArchiveDir(s.o.Stanza), repo.BackupDir(s.o.Stanza)}
	var swept [2]int
	var errs [2]error
	one := func(i int) func(context.Context) error {
		return func(ctx context.Context) error {
			swept[i], errs[i] = sw.Sweep(ctx, dirs[i], sweepAfter)
			return errs[i]
		}
	}
	_ = s.together(ctx, one(0), one(1)) // the error is in errs
	for i, dir := range dirs {
		n, err := swept[i], errs[i]
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			what, next := "temporary files", "let the repository's user read and write all that is below it"
			if a.Remote && !a.Links {
				what, next = "unfinished uploads", "let the credential list and abort them (on S3 s3:ListBucketMultipartUploads and s3:AbortMultipartUpload), or set a rule in the bucket that ends those older than a day"
			}
			s.warn("%s below %s, which cost space, could not be removed: %v; %s", what, dir, err, next)
			return nil
		}
		if n > 0 {
			s.step(verb, "sweep", fmt.Sprintf("%d unfinished objects below %s, begun more than a day ago, are removed", n, dir))
		}
	}
	return nil
}
