package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// The backup lock is that of this host. On another one somebody may back up to the same repository, expire or upgrade at the
// same time. Nothing here keeps them apart; it makes sure that what one takes away from the other is not called a backup.

// saveCopy saves the manifest of the unfinished backup, and remembers what it saved.
func (r *backupRun) saveCopy(ctx context.Context) error {
	s := r.s
	sum, err := repo.SaveManifestCopy(ctx, s.o.Storage, s.o.Stanza, r.m, r.bi.CipherPass)
	if err != nil {
		return err
	}
	r.saved.sum = sum
	r.saved.info, err = s.o.Storage.Stat(ctx, r.copyName())
	return wrap(err, "look at %s, which was just written", r.copyName())
}

// saved is what a backup knows of the backup.manifest.copy that it wrote last.
type saved struct {
	sum  string
	info storage.Info
}

func (r *backupRun) copyName() string { return repo.ManifestPath(r.s.o.Stanza, r.m.Label) + ".copy" }

// stillOurs fails when the unfinished manifest is not there as it was saved: a backup by another host has taken this one for
// dead and removed or resumed it. By size and time stamp, which costs nothing.
func (r *backupRun) stillOurs(ctx context.Context) error {
	info, err := r.s.o.Storage.Stat(ctx, r.copyName())
	if err == nil && (info.Size != r.saved.info.Size || !info.ModTime.Equal(r.saved.info.ModTime)) {
		err = errTakenOver
	}
	return r.notOurs(err)
}

// stillOursExactly is stillOurs by the content.
func (r *backupRun) stillOursExactly(ctx context.Context) error {
	sum, err := repo.ManifestCopySum(ctx, r.s.o.Storage, r.s.o.Stanza, r.m.Label)
	if err == nil && sum != r.saved.sum {
		err = errTakenOver
	}
	return r.notOurs(err)
}

// allThere fails when something that this backup stored is not there with its size. stillOursExactly does not see a removal that
// began between a look at the unfinished manifest and the save after it: the save puts back what the removal took away. What another
// host, which resumes this backup in that moment, stores anew with the same name and size is not told from ours.
func (r *backupRun) allThere(ctx context.Context) error {
	if r.s.o.Storage.Abilities().Appends { // nobody can remove anything, nor look
		return nil
	}
	missing, err := r.s.missingOf(ctx, r.m)
	if err == nil && missing != "" {
		err = fmt.Errorf("%s: the files of this backup were removed or written anew while it ran; see whether another host backs up to this repository, and run the backup again", missing)
	}
	return err
}

var errTakenOver = errors.New("somebody else wrote it")

func (r *backupRun) notOurs(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s is gone: the files of this backup were removed while it ran; see whether another host backs up to this repository, and run the backup again", r.copyName())
	case errors.Is(err, errTakenOver):
		return fmt.Errorf("%s is not what this backup saved: another host has taken it over while it ran; let only one host back up to this repository at a time, and run the backup again", r.copyName())
	}
	return err
}

// removeUnfinished removes the directory of a backup that was never completed, unless it is by now.
func (s *Stanza) removeUnfinished(ctx context.Context, l repo.Label) error {
	switch _, err := s.o.Storage.Stat(ctx, repo.ManifestPath(s.o.Stanza, l)); {
	case err == nil:
		s.warn("backup %s stays: another host has just completed it", l)
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("look whether backup %s is complete: %w", l, err)
	}
	return s.removeTree(ctx, repo.BackupDir(s.o.Stanza)+"/"+string(l))
}

// refresh reads the info files again. The lock holds only this host: on another one backups may have been let expire or been
// annotated, or the stanza upgraded, while this one ran.
func (r *backupRun) refresh(ctx context.Context) error {
	s := r.s
	ai, bi, dirs, err := s.loadAll(ctx)
	if err != nil {
		return err
	}
	if _, _, err := s.reconcileReadable(ctx, bi, dirs); err != nil {
		return err
	}
	for _, l := range r.m.References {
		if l != r.m.Label && bi.Find(l) == nil {
			return fmt.Errorf("backup %s, which this %s backup is built on, was removed while it ran: make the backup again", l, r.Type)
		}
	}
	r.ai, r.bi = ai, bi
	return nil
}
