package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"holdfast/internal/durable"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// DeleteOptions says how sure one has to be.
type DeleteOptions struct {
	DataDir string // of the cluster that archives here: its server must be down
	Force   bool   // do not ask for the server
}

// Delete removes the stanza with its backups and WAL from the repository (format page, section 18). The stanza must have
// been stopped (Stop, for this stanza by name), and its server must be down unless Force: otherwise archiving would fail
// until the disk of the server is full. A stanza that is not there is no error.
//
// First the manifests and info files go, then everything else, and the stop file last: until that, a Delete that failed is
// completed by the next. Takes the archive and the backup lock. Errors: ErrTargetRunning; the storage's.
func (s *Stanza) Delete(ctx context.Context, o DeleteOptions) error {
	fail := func(err error) error { return wrap(err, "stanza %s: delete", s.o.Stanza) }
	if s.o.LockDir == "" {
		return fail(errors.New("no lock directory is set, where the stop file would be"))
	}
	stop := repo.StopPath(s.o.LockDir, s.o.Stanza)
	if _, err := os.Lstat(stop); errors.Is(err, fs.ErrNotExist) {
		return fail(fmt.Errorf("the stanza is not stopped (%s is missing); run: holdfast pg stop --stanza=%s", stop, s.o.Stanza))
	} else if err != nil {
		return fail(fmt.Errorf("look for the stop file: %w", err))
	}
	if !o.Force {
		if o.DataDir == "" {
			return fail(errors.New("the data directory is not given, so it is not known whether its server is down; give --pg1-path or --force"))
		}
		pid, running, err := pg.Running(o.DataDir)
		if err != nil {
			return fail(err)
		}
		if running {
			return fail(fmt.Errorf("%w: %s, process %d; stop it, or give --force: then its archive_command fails from now on", ErrTargetRunning, o.DataDir, pid))
		}
	}
	release, err := s.lock(repo.LockArchive, repo.LockBackup)
	if err != nil {
		return err
	}
	err = s.delete(ctx)
	if err == nil {
		err = removeDurably(s.o.LockDir, stop)
	}
	return fail(errors.Join(err, release()))
}

// Absent says whether the repository holds nothing of the stanza.
func (s *Stanza) Absent(ctx context.Context) (bool, error) {
	for _, tree := range []string{repo.BackupDir(s.o.Stanza), repo.ArchiveDir(s.o.Stanza)} {
		if some, err := s.holds(ctx, tree); some || err != nil {
			return false, wrap(err, "stanza %s: list %s", s.o.Stanza, tree)
		}
	}
	return true, nil
}

// holds says whether anything is below a directory. In a store of objects only objects count: one that keeps versions may show
// the directories of those that were deleted.
func (s *Stanza) holds(ctx context.Context, dir string) (bool, error) {
	for _, err := range s.o.Storage.List(ctx, dir, storage.ListOptions{Recursive: !s.o.Storage.Abilities().Links}) {
		return err == nil, err
	}
	return false, nil
}

func (s *Stanza) delete(ctx context.Context) error {
	// backup.info knows no more than the directories: what is listed and has no manifest does not exist.
	for d, err := range repo.Labels(ctx, s.o.Storage, s.o.Stanza) {
		if err != nil {
			return fmt.Errorf("list the backups: %w", err)
		}
		s.step("stanza-delete", "manifest", string(d.Label))
		if err := s.removeManifest(ctx, d.Label); err != nil {
			return err
		}
	}
	trees := []string{repo.BackupDir(s.o.Stanza), repo.ArchiveDir(s.o.Stanza)}
	for i, file := range []string{"backup.info", "archive.info"} {
		s.step("stanza-delete", "catalogue", file)
		name := trees[i] + "/" + file
		if err := s.o.Storage.Remove(ctx, name, name+".copy"); err != nil {
			return err
		}
	}
	for _, tree := range trees {
		s.step("stanza-delete", "files", tree)
		if err := s.removeTree(ctx, tree); err != nil {
			return err
		}
	}
	return nil
}

// removeDurably deletes one file of this host; missing is no error.
func removeDurably(dir, file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.SyncDir(dir)
}
