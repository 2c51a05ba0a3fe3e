package engine

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
)

// What a diff or incr backup can be built on, for callers who choose the type of a backup.

// Base is what the repository has to build on.
type Base struct {
	Backups []repo.BackupLine // of the cluster as it is, oldest first
	Others  int               // of what the stanza was before: another system identifier or major version
	Control pg.Control
}

// Base looks what the repository has to build on for the cluster in dataDir. A stanza that was not upgraded to it is
// ErrStanzaMismatch.
func (s *Stanza) Base(ctx context.Context, dataDir string) (*Base, error) {
	ai, bi, err := s.loadInfos(ctx)
	if err != nil {
		return nil, err
	}
	if _, _, err := repo.Reconcile(ctx, s.o.Storage, s.o.Stanza, bi, s.o.Pass); err != nil {
		return nil, fmt.Errorf("stanza %s: %w", s.o.Stanza, err)
	}
	b := &Base{}
	if b.Control, err = s.readControl(ctx, dataDir); err != nil {
		return nil, fmt.Errorf("stanza %s: %w", s.o.Stanza, err)
	}
	if err := s.matches(ai, bi, b.Control); err != nil {
		return nil, err
	}
	for _, l := range bi.Backups {
		if l.DBID == bi.Current {
			b.Backups = append(b.Backups, l)
		} else {
			b.Others++
		}
	}
	return b, nil
}

// Prior is the backup that a diff or incr backup made now would build on, nil without.
func (b *Base) Prior(typ repo.BackupType) *repo.BackupLine {
	for i := len(b.Backups) - 1; i >= 0; i-- {
		if l := &b.Backups[i]; typ == repo.Incr || l.Type == repo.Full {
			return l
		}
	}
	return nil
}

// SinceFull are the newest full backup and all that came after it, oldest first; none without a full backup.
func (b *Base) SinceFull() []repo.BackupLine {
	for i := len(b.Backups) - 1; i >= 0; i-- {
		if b.Backups[i].Type == repo.Full {
			return b.Backups[i:]
		}
	}
	return nil
}

// PriorFacts is what of a backup must be as today for another to be built on it.
type PriorFacts struct {
	Compress     repo.CompressType
	ChecksumPage bool
	Block        bool
	Version      string // of the program that made it
	Damage       string // what is missing of it, or of what it is built on; empty: all is there
}

// ErrNoPrior says that a backup can't be built on because it, or what it is built on, can't be read. A store that could not
// be asked is another error.
var ErrNoPrior = errors.New("the backup can't be built on")

// LookAtPrior reads the manifests of a backup and of all that it is built on, and looks whether every object that they name
// is there with its size. The objects are not read. Damage is a fact; the error is for what kept it from looking, and ErrNoPrior for a
// manifest that is none.
func (s *Stanza) LookAtPrior(ctx context.Context, line *repo.BackupLine) (*PriorFacts, error) {
	bi, err := repo.LoadBackupInfo(ctx, s.o.Storage, s.o.Stanza, s.o.Pass)
	if err != nil {
		return nil, s.notLoaded(ctx, repo.BackupDir(s.o.Stanza)+"/backup.info", err)
	}
	var facts *PriorFacts
	for _, l := range append(slices.Clone(line.References), line.Label) {
		m, err := repo.LoadManifest(ctx, s.o.Storage, s.o.Stanza, l, bi.CipherPass)
		if cut := blind(ctx, err); cut != nil {
			return nil, fmt.Errorf("stanza %s: read backup %s, which the next one is to be built on: %w", s.o.Stanza, l, cut)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: manifest of %s: %w", ErrNoPrior, l, err)
		}
		damage, err := s.missingOf(ctx, m)
		if err != nil {
			return nil, fmt.Errorf("stanza %s: look at backup %s, which the next one is to be built on: %w", s.o.Stanza, l, err)
		}
		if facts == nil {
			facts = &PriorFacts{}
		}
		facts.Compress, facts.ChecksumPage, facts.Block, facts.Version = m.Options.CompressType, m.Options.ChecksumPage, m.BlockIncr, m.BackrestVersion
		if facts.Damage == "" {
			facts.Damage = damage
		}
	}
	return facts, nil
}

// TrimWALAround removes WAL of one history entry before the segment keep, on any timeline, like TrimWAL, but leaves of it what each
// backup in the repository needs to become consistent.
func (s *Stanza) TrimWALAround(ctx context.Context, db repo.DB, keep string) error {
	if !pg.IsSegmentName(keep) {
		return fmt.Errorf("stanza %s: remove WAL before %q: not the name of a WAL segment", s.o.Stanza, keep)
	}
	if err := s.stopped(); err != nil {
		return err
	}
	release, err := s.lock("backup")
	if err != nil {
		return err
	}
	return wrap(errors.Join(s.trimAround(ctx, db, keep), release()), "stanza %s: remove WAL before %s", s.o.Stanza, keep)
}

func (s *Stanza) trimAround(ctx context.Context, db repo.DB, keep string) error {
	bi, err := repo.LoadBackupInfo(ctx, s.o.Storage, s.o.Stanza, s.o.Pass)
	if err != nil {
		return err
	}
	if _, _, err := repo.Reconcile(ctx, s.o.Storage, s.o.Stanza, bi, s.o.Pass); err != nil {
		return err
	}
	p := &RemovePlan{s: s}
	if err := p.olderThan(ctx, repo.ArchiveDir(s.o.Stanza)+"/"+repo.ArchiveID(db.Version, db.ID), keep[8:24]); err != nil {
		return err
	}
	gone := slices.DeleteFunc(p.segments, func(name string) bool {
		at := path.Base(name)[8:24]
		return slices.ContainsFunc(bi.Backups, func(l repo.BackupLine) bool {
			return l.DBID == db.ID && l.ArchiveStart != "" && l.ArchiveStart[8:] <= at && at <= l.ArchiveStop[8:]
		})
	})
	return s.removeObjects(ctx, gone)
}
