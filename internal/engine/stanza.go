package engine

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// CreateOutcome says what Create or Upgrade found and did.
type CreateOutcome string

const (
	Created  CreateOutcome = "created"
	Existed  CreateOutcome = "exists and is valid"
	Repaired CreateOutcome = "repaired"
	Upgraded CreateOutcome = "upgraded"
)

// Create makes the stanza for the cluster that c describes (format page, section 18). An existing stanza of the same
// cluster is left alone, one of another cluster is ErrStanzaMismatch. Cancelled: what was written is completed by the next call.
func (s *Stanza) Create(ctx context.Context, c pg.Control) (CreateOutcome, error) {
	if err := s.stopped(); err != nil {
		return "", err
	}
	release, err := s.lock("archive", "backup")
	if err != nil {
		return "", err
	}
	out, err := s.create(ctx, c)
	return out, errors.Join(err, release())
}

func (s *Stanza) create(ctx context.Context, c pg.Control) (CreateOutcome, error) {
	s.step("stanza-create", "look", s.o.Stanza)
	ai, aerr := repo.LoadArchiveInfo(ctx, s.o.Storage, s.o.Stanza, s.o.Pass)
	bi, berr := repo.LoadBackupInfo(ctx, s.o.Storage, s.o.Stanza, s.o.Pass)
	switch {
	case aerr == nil && berr == nil:
		if err := s.matches(ai, bi, c); err != nil {
			return "", err
		}
		return s.repairCopies(ctx, ai, bi)
	case errors.Is(aerr, fs.ErrNotExist) && errors.Is(berr, fs.ErrNotExist):
	case aerr == nil && errors.Is(berr, fs.ErrNotExist):
		// archive.info is written first; a creation that died in between is completed when nothing else is there.
		has, err := s.holdsAnything(ctx, ai)
		if err != nil {
			return "", fmt.Errorf("stanza %s: backup.info is missing; look for backups: %w", s.o.Stanza, err)
		}
		if has {
			return "", fmt.Errorf("stanza %s: backup.info is missing but archive.info exists and WAL or backups are present; to write it anew from them run: holdfast pg stanza-create --rebuild --stanza=%[1]s (%[2]w)", s.o.Stanza, berr)
		}
		if db := ai.DB(); db.SystemID != c.SystemID || db.Version != c.Version.String() {
			return "", fmt.Errorf("stanza %s: %w (system identifier %d, not %d)", s.o.Stanza, ErrStanzaMismatch, db.SystemID, c.SystemID)
		}
		bi = s.newBackupInfo(c)
		if err := repo.SaveBackupInfo(ctx, s.o.Storage, s.o.Stanza, bi, s.o.Pass); err != nil {
			return "", fmt.Errorf("stanza %s: save backup.info: %w", s.o.Stanza, err)
		}
		if _, err := s.repairCopies(ctx, ai, bi); err != nil { // that creation may have died before archive.info.copy
			return "", err
		}
		return Repaired, nil
	case aerr != nil && !errors.Is(aerr, fs.ErrNotExist):
		return "", s.notLoaded(ctx, repo.ArchiveDir(s.o.Stanza)+"/archive.info", aerr)
	case berr != nil && !errors.Is(berr, fs.ErrNotExist):
		return "", s.notLoaded(ctx, repo.BackupDir(s.o.Stanza)+"/backup.info", berr)
	default:
		return "", fmt.Errorf("stanza %s: archive.info is missing but backup.info exists; to write it anew from the WAL and the backups run: holdfast pg stanza-create --rebuild --stanza=%[1]s (%[2]w)", s.o.Stanza, aerr)
	}
	for _, dir := range []string{repo.ArchiveDir(s.o.Stanza), repo.BackupDir(s.o.Stanza)} {
		for info, err := range s.o.Storage.List(ctx, dir, storage.ListOptions{Recursive: true}) {
			if err != nil {
				return "", fmt.Errorf("stanza %s: list %s: %w", s.o.Stanza, dir, err)
			}
			return "", fmt.Errorf("stanza %s: no info files, yet %s exists: this is the remainder of another stanza; move it away or choose another repository directory", s.o.Stanza, info.Name)
		}
	}
	s.step("stanza-create", "write", s.o.Stanza)
	ai = &repo.ArchiveInfo{BackrestVersion: s.o.Version, Current: 1, CipherPass: s.subPass(),
		History: []repo.DB{{ID: 1, SystemID: c.SystemID, Version: c.Version.String()}}}
	if err := repo.SaveArchiveInfo(ctx, s.o.Storage, s.o.Stanza, ai, s.o.Pass); err != nil {
		return "", fmt.Errorf("stanza %s: save archive.info: %w", s.o.Stanza, err)
	}
	bi = s.newBackupInfo(c)
	if err := repo.SaveBackupInfo(ctx, s.o.Storage, s.o.Stanza, bi, s.o.Pass); err != nil {
		return "", fmt.Errorf("stanza %s: save backup.info: %w", s.o.Stanza, err)
	}
	return Created, s.createdAlone(ctx, ai, bi)
}

// createdAlone makes sure that both files of a new stanza, and their copies, are ours. Another host may have created it at the
// same moment, and what is encrypted with passphrases that are not kept is lost.
func (s *Stanza) createdAlone(ctx context.Context, ai *repo.ArchiveInfo, bi *repo.BackupInfo) error {
	nowAI, nowBI, err := s.loadInfos(ctx)
	if err != nil {
		return err
	}
	alone := nowAI.CipherPass == ai.CipherPass && nowBI.CipherPass == bi.CipherPass && nowAI.DB().SystemID == ai.DB().SystemID
	for _, name := range []string{repo.ArchiveDir(s.o.Stanza) + "/archive.info", repo.BackupDir(s.o.Stanza) + "/backup.info"} {
		faults, err := repo.CheckCopies(ctx, s.o.Storage, name, s.o.Pass)
		if err != nil {
			return err
		}
		for _, f := range faults {
			if !damaged(f.Err) {
				return fmt.Errorf("stanza %s: read again what was written: %s: %w", s.o.Stanza, f.Object, f.Err)
			}
			alone = false
		}
	}
	if !alone {
		return fmt.Errorf("stanza %s: another host has created it at the same moment; on one of them run again: holdfast pg stanza-create --stanza=%[1]s", s.o.Stanza)
	}
	return nil
}

func (s *Stanza) newBackupInfo(c pg.Control) *repo.BackupInfo {
	return &repo.BackupInfo{BackrestVersion: s.o.Version, Current: 1, CipherPass: s.subPass(),
		History: []repo.DB{{ID: 1, SystemID: c.SystemID, Version: c.Version.String(), ControlVersion: c.ControlVersion, CatalogVersion: c.CatalogVersion}}}
}

// subPass makes the passphrase kept inside an info file: 48 random bytes in base64 (format page, section 8.3).
func (s *Stanza) subPass() repo.Secret {
	if s.o.Pass == "" {
		return ""
	}
	var b [48]byte
	rand.Read(b[:]) // crypto/rand.Read never fails (Go 1.24)
	return repo.Secret(base64.StdEncoding.EncodeToString(b[:]))
}

// holdsAnything says whether the stanza has WAL or a backup beside its info files.
func (s *Stanza) holdsAnything(ctx context.Context, ai *repo.ArchiveInfo) (bool, error) {
	for _, db := range ai.History {
		for _, err := range s.o.Storage.List(ctx, repo.ArchiveDir(s.o.Stanza)+"/"+repo.ArchiveID(db.Version, db.ID), storage.ListOptions{}) {
			return true, err
		}
	}
	for l, err := range repo.Labels(ctx, s.o.Storage, s.o.Stanza) {
		return err == nil && l.Label != "", err
	}
	return false, nil
}

// repairCopies writes a missing, damaged or outdated main or copy again, so that one damaged file never ends a stanza.
func (s *Stanza) repairCopies(ctx context.Context, ai *repo.ArchiveInfo, bi *repo.BackupInfo) (CreateOutcome, error) {
	out := Existed
	for _, f := range []struct {
		name string
		save func() error
	}{
		{repo.ArchiveDir(s.o.Stanza) + "/archive.info", func() error {
			return repo.SaveArchiveInfo(ctx, s.o.Storage, s.o.Stanza, ai, s.o.Pass)
		}},
		{repo.BackupDir(s.o.Stanza) + "/backup.info", func() error {
			return repo.SaveBackupInfo(ctx, s.o.Storage, s.o.Stanza, bi, s.o.Pass)
		}},
	} {
		faults, err := repo.CheckCopies(ctx, s.o.Storage, f.name, s.o.Pass)
		if err != nil {
			return "", fmt.Errorf("stanza %s: %w", s.o.Stanza, err)
		}
		if len(faults) == 0 {
			continue
		}
		for _, fault := range faults {
			// What the storage can't read now may be newer than the copy: only what is there and wrong is written over.
			if !errors.Is(fault.Err, fs.ErrNotExist) && !errors.Is(fault.Err, repo.ErrFormat) && !errors.Is(fault.Err, repo.ErrChecksum) && !errors.Is(fault.Err, repo.ErrCorrupt) {
				return "", fmt.Errorf("stanza %s: %s: %w", s.o.Stanza, fault.Object, fault.Err)
			}
		}
		if err := f.save(); err != nil {
			return "", fmt.Errorf("stanza %s: save %s: %w", s.o.Stanza, f.name, err)
		}
		out = Repaired
	}
	return out, nil
}

// Upgrade makes the cluster that c describes the stanza's current one, after pg_upgrade or a new initdb. Backups and WAL
// of the cluster before stay (section 18). Create's conditions hold.
func (s *Stanza) Upgrade(ctx context.Context, c pg.Control) (CreateOutcome, error) {
	if err := s.stopped(); err != nil {
		return "", err
	}
	release, err := s.lock("archive", "backup")
	if err != nil {
		return "", err
	}
	out, err := s.upgrade(ctx, c)
	return out, errors.Join(err, release())
}

func (s *Stanza) upgrade(ctx context.Context, c pg.Control) (CreateOutcome, error) {
	ai, bi, err := s.loadInfos(ctx)
	if err != nil {
		return "", err
	}
	acur, bcur := ai.DB(), bi.DB()
	same := func(d repo.DB) bool { return d.SystemID == c.SystemID && d.Version == c.Version.String() }
	// An upgrade that died may have left copies of before, of either file: they are looked at whatever else is to be done.
	if same(acur) && same(bcur) {
		return s.repairCopies(ctx, ai, bi)
	}
	s.step("stanza-upgrade", "write", s.o.Stanza)
	// A run that died between the two files has advanced only one: the other joins it under the same id.
	id := max(ai.Current, bi.Current) + 1
	if same(acur) || same(bcur) {
		id = max(ai.Current, bi.Current)
	}
	db := repo.DB{ID: id, SystemID: c.SystemID, Version: c.Version.String(), ControlVersion: c.ControlVersion, CatalogVersion: c.CatalogVersion}
	if !same(bcur) {
		bi.History, bi.Current, bi.BackrestVersion = append(bi.History, db), id, s.o.Version
		if err := repo.SaveBackupInfo(ctx, s.o.Storage, s.o.Stanza, bi, s.o.Pass); err != nil {
			return "", fmt.Errorf("stanza %s: save backup.info: %w", s.o.Stanza, err)
		}
	}
	if !same(acur) {
		db.ControlVersion, db.CatalogVersion = 0, 0
		ai.History, ai.Current, ai.BackrestVersion = append(ai.History, db), id, s.o.Version
		if err := repo.SaveArchiveInfo(ctx, s.o.Storage, s.o.Stanza, ai, s.o.Pass); err != nil {
			return "", fmt.Errorf("stanza %s: save archive.info: %w", s.o.Stanza, err)
		}
	}
	if _, err := s.repairCopies(ctx, ai, bi); err != nil {
		return "", err
	}
	return Upgraded, nil
}

// loadInfos loads both info files; a stanza that is not there is ErrStanzaMissing.
func (s *Stanza) loadInfos(ctx context.Context) (*repo.ArchiveInfo, *repo.BackupInfo, error) {
	var ai *repo.ArchiveInfo
	var bi *repo.BackupInfo
	err := s.together(ctx, func(ctx context.Context) (err error) {
		ai, err = s.loadArchiveInfo(ctx)
		return err
	}, func(ctx context.Context) (err error) {
		if bi, err = repo.LoadBackupInfo(ctx, s.o.Storage, s.o.Stanza, s.o.Pass); err != nil {
			err = s.notLoaded(ctx, repo.BackupDir(s.o.Stanza)+"/backup.info", err)
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return ai, bi, nil
}

func (s *Stanza) loadArchiveInfo(ctx context.Context) (*repo.ArchiveInfo, error) {
	ai, err := repo.LoadArchiveInfo(ctx, s.o.Storage, s.o.Stanza, s.o.Pass)
	if err != nil {
		return nil, s.notLoaded(ctx, repo.ArchiveDir(s.o.Stanza)+"/archive.info", err)
	}
	return ai, nil
}

// matches compares the stanza's current entry with a cluster's control file.
func (s *Stanza) matches(ai *repo.ArchiveInfo, bi *repo.BackupInfo, c pg.Control) error {
	for _, e := range []struct {
		file string
		db   repo.DB
	}{{"archive.info", ai.DB()}, {"backup.info", bi.DB()}} {
		if e.db.SystemID != c.SystemID || e.db.Version != c.Version.String() {
			return fmt.Errorf("stanza %s: %w: %s says version %s, system identifier %d; the data directory has version %s, %d; if the cluster was upgraded or made anew run: holdfast pg stanza-upgrade --stanza=%s",
				s.o.Stanza, ErrStanzaMismatch, e.file, e.db.Version, e.db.SystemID, c.Version, c.SystemID, s.o.Stanza)
		}
	}
	return nil
}

// readControl reads a cluster's control file.
func (s *Stanza) readControl(ctx context.Context, dataDir string) (pg.Control, error) {
	c, _, err := pg.ReadControlAs(ctx, dataDir, s.o.PGVersion)
	return c, err
}

// wrap adds a message to an error and leaves nil alone.
func wrap(err error, format string, a ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(a, err)...)
}
