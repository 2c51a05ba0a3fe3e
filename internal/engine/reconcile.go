package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"holdfast/internal/repo"
)

// reconcile brings bi in line with what is in the repository (repo.Reconcile). added are the backups that it did not list: they
// exist by their manifest, and whoever made them died before the rest was written.
func (s *Stanza) reconcile(ctx context.Context, bi *repo.BackupInfo) (changed bool, added []repo.Label, warnings []string, err error) {
	dirs, err := repo.ReadLabels(ctx, s.o.Storage, s.o.Stanza)
	if err != nil {
		return false, nil, nil, err
	}
	return s.reconcileDirs(ctx, bi, dirs)
}

// reconcileDirs is reconcile with the label directories that have just been read.
func (s *Stanza) reconcileDirs(ctx context.Context, bi *repo.BackupInfo, dirs []repo.LabelDir) (changed bool, added []repo.Label, warnings []string, err error) {
	listed := map[repo.Label]bool{}
	for _, l := range bi.Backups {
		listed[l.Label] = true
	}
	changed, warnings, err = repo.ReconcileDirs(ctx, s.o.Storage, s.o.Stanza, dirs, bi, s.o.Pass)
	for _, l := range bi.Backups {
		if !listed[l.Label] {
			added = append(added, l.Label)
		}
	}
	return changed, added, warnings, err
}

// passedOver is how many unlisted backups a backup passes over at most: more of them say that the storage is away.
const passedOver = 2

// reconcileReadable is reconcileDirs for a verb that removes nothing and builds on what is listed: a backup that is not listed and
// whose manifest the storage does not give out is left out, with a warning; unless a backup that is listed is built on one that is
// not: that one would be taken off the list with it.
func (s *Stanza) reconcileReadable(ctx context.Context, bi *repo.BackupInfo, dirs []repo.LabelDir) (added []repo.Label, warnings []string, err error) {
	var over []string
	for {
		_, added, warnings, err = s.reconcileDirs(ctx, bi, dirs)
		var unlisted *repo.UnlistedError
		if !errors.As(err, &unlisted) || len(over) == passedOver || ctx.Err() != nil || builtOnUnlisted(bi) {
			return added, append(warnings, over...), err
		}
		over = append(over, fmt.Sprintf("%v. This backup does without it", err))
		dirs = slices.DeleteFunc(slices.Clone(dirs), func(d repo.LabelDir) bool { return d.Label == unlisted.Label })
	}
}

// builtOnUnlisted says whether a listed backup's prior is not listed.
func builtOnUnlisted(bi *repo.BackupInfo) bool {
	return slices.ContainsFunc(bi.Backups, func(l repo.BackupLine) bool { return l.Type != repo.Full && bi.Find(l.Prior) == nil })
}

// completeHistory writes the history manifest of backups that were added, where it is missing. To be called before backup.info
// is saved with them, so that a run which dies in between is made good by the next.
func (s *Stanza) completeHistory(ctx context.Context, bi *repo.BackupInfo, added []repo.Label) error {
	for _, l := range added {
		name := repo.HistoryManifestPath(s.o.Stanza, l)
		if _, err := s.o.Storage.Stat(ctx, name); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look for %s: %w", name, err)
		}
		pass := bi.CipherPass
		if pass == "" {
			pass = s.o.Pass
		}
		m, err := repo.LoadManifest(ctx, s.o.Storage, s.o.Stanza, l, pass)
		if err == nil {
			err = repo.SaveHistoryManifest(ctx, s.o.Storage, s.o.Stanza, m, pass)
		}
		if err != nil {
			return fmt.Errorf("write the history manifest of backup %s, which lacks it: %w", l, err)
		}
	}
	return nil
}
