package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// RebuildResult says what Rebuild wrote.
type RebuildResult struct {
	Files   []string     `json:"files"`   // written anew; empty: both were fine
	Backups []repo.Label `json:"backups"` // listed in backup.info now
	History []string     `json:"history"` // archive ids of the stanza's clusters
}

// Rebuild writes archive.info or backup.info anew from what else is in the repository, when neither the file nor its copy
// can be read: manifests know their backups and clusters, WAL segments their cluster. c is the cluster that the stanza is
// to go on with; it has to be the newest of those found. Annotations made after a backup are lost. In an encrypted
// repository the files hold the only copy of the passphrases of what they describe: nothing can be rebuilt there.
// Cancelled or failed: what was written is complete; the next call does the rest.
func (s *Stanza) Rebuild(ctx context.Context, c pg.Control) (*RebuildResult, error) {
	if err := s.stopped(); err != nil {
		return nil, err
	}
	release, err := s.lock(repo.LockArchive, repo.LockBackup)
	if err != nil {
		return nil, err
	}
	res, err := s.rebuild(ctx, c)
	return res, wrap(errors.Join(err, release()), "rebuild the info files of stanza %s", s.o.Stanza)
}

func (s *Stanza) rebuild(ctx context.Context, c pg.Control) (*RebuildResult, error) {
	ai, aerr := repo.LoadArchiveInfo(ctx, s.o.Storage, s.o.Stanza, s.o.Pass)
	bi, berr := repo.LoadBackupInfo(ctx, s.o.Storage, s.o.Stanza, s.o.Pass)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	res := &RebuildResult{}
	if aerr != nil || berr != nil {
		if s.o.Pass != "" {
			return nil, fmt.Errorf("the repository is encrypted, and the passphrases of WAL and backups are in the lost file only: restore it from a copy of the repository (%w)", errors.Join(aerr, berr))
		}
		if err := s.reallyLost(ctx, aerr, berr); err != nil {
			return nil, err
		}
		history, err := s.findHistory(ctx, ai, bi)
		if err != nil {
			return nil, err
		}
		current := history[len(history)-1]
		if current.SystemID != c.SystemID || current.Version != c.Version.String() {
			return nil, fmt.Errorf("%w: the newest cluster in the repository has system identifier %d, version %s; the data directory %d, %s", ErrStanzaMismatch, current.SystemID, current.Version, c.SystemID, c.Version)
		}
		if berr != nil {
			bi = &repo.BackupInfo{BackrestVersion: s.o.Version, Current: current.ID, History: history}
			_, added, warnings, err := s.reconcile(ctx, bi)
			if err != nil {
				return nil, err
			}
			if err := s.completeHistory(ctx, bi, added); err != nil {
				return nil, err
			}
			for _, w := range warnings {
				s.warn("%s", w)
			}
			s.step("rebuild", "write", "backup.info")
			if err := repo.SaveBackupInfo(ctx, s.o.Storage, s.o.Stanza, bi, ""); err != nil {
				return nil, fmt.Errorf("save backup.info: %w", err)
			}
			res.Files = append(res.Files, "backup.info")
		}
		if aerr != nil {
			ai = &repo.ArchiveInfo{BackrestVersion: s.o.Version, Current: current.ID}
			for _, db := range history {
				ai.History = append(ai.History, repo.DB{ID: db.ID, SystemID: db.SystemID, Version: db.Version})
			}
			s.step("rebuild", "write", "archive.info")
			if err := repo.SaveArchiveInfo(ctx, s.o.Storage, s.o.Stanza, ai, ""); err != nil {
				return nil, fmt.Errorf("save archive.info: %w", err)
			}
			res.Files = append(res.Files, "archive.info")
		}
	}
	for _, l := range bi.Backups {
		res.Backups = append(res.Backups, l.Label)
	}
	for _, db := range ai.History {
		res.History = append(res.History, repo.ArchiveID(db.Version, db.ID))
	}
	return res, nil
}

// reallyLost makes sure that what is about to be written anew is missing or damaged, and not only out of reach for the
// moment or encrypted: it may know what nothing else does.
func (s *Stanza) reallyLost(ctx context.Context, aerr, berr error) error {
	for name, why := range map[string]error{repo.ArchiveDir(s.o.Stanza) + "/archive.info": aerr, repo.BackupDir(s.o.Stanza) + "/backup.info": berr} {
		if why == nil {
			continue
		}
		faults, err := repo.CheckCopies(ctx, s.o.Storage, name, s.o.Pass)
		if err == nil && len(faults) < 2 {
			err = fmt.Errorf("one of its copies is whole and yet can't be used, so that it is not written anew: %w", why)
		}
		if err != nil {
			return err
		}
		for _, f := range faults {
			if !damaged(f.Err) {
				return fmt.Errorf("%s is not lost, but it can't be read now: %w", f.Object, f.Err)
			}
		}
	}
	return nil
}

// damaged: the object is not there or its bytes are wrong, as opposed to a storage that can't be asked, or a passphrase that
// is missing.
func damaged(err error) bool {
	if errors.Is(err, repo.ErrSealed) || storage.IsUnavailable(err) {
		return false
	}
	for _, known := range []error{fs.ErrNotExist, repo.ErrFormat, repo.ErrChecksum, repo.ErrCorrupt, repo.ErrTrailingData} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// findHistory collects the clusters that the stanza has had, ascending by id; at least one.
func (s *Stanza) findHistory(ctx context.Context, ai *repo.ArchiveInfo, bi *repo.BackupInfo) ([]repo.DB, error) {
	found := map[int]repo.DB{}
	add := func(db repo.DB, where string) error {
		was, known := found[db.ID]
		if known && (was.SystemID != db.SystemID || was.Version != db.Version) {
			return fmt.Errorf("history id %d is cluster %d (version %s), but %d (%s) by %s: parts of two repositories are mixed", db.ID, was.SystemID, was.Version, db.SystemID, db.Version, where)
		}
		if !known || was.CatalogVersion == 0 {
			found[db.ID] = db
		}
		return nil
	}
	if bi != nil {
		for _, db := range bi.History {
			if err := add(db, "backup.info"); err != nil {
				return nil, err
			}
		}
	}
	for d, err := range repo.Labels(ctx, s.o.Storage, s.o.Stanza) {
		if err != nil {
			return nil, err
		}
		if !d.Manifest {
			continue
		}
		m, err := repo.LoadManifest(ctx, s.o.Storage, s.o.Stanza, d.Label, "")
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			if !damaged(err) {
				return nil, err // forgotten by backup.info it would expire
			}
			s.warn("backup %s can't be used: %v", d.Label, err)
			continue
		}
		if err := add(m.DB, "the manifest of backup "+string(d.Label)); err != nil {
			return nil, err
		}
	}
	if ai != nil {
		for _, db := range ai.History {
			if err := add(db, "archive.info"); err != nil {
				return nil, err
			}
		}
	}
	if err := s.addArchives(ctx, found, add); err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: there is neither a backup nor WAL; run: holdfast pg stanza-create --stanza=%s", ErrStanzaMissing, s.o.Stanza)
	}
	var history []repo.DB
	for _, db := range found {
		history = append(history, db)
	}
	slices.SortFunc(history, func(a, b repo.DB) int { return a.ID - b.ID })
	return history, nil
}

// addArchives adds clusters of which there is only WAL: the header of a segment names its cluster.
func (s *Stanza) addArchives(ctx context.Context, found map[int]repo.DB, add func(repo.DB, string) error) error {
	for info, err := range s.o.Storage.List(ctx, repo.ArchiveDir(s.o.Stanza), storage.ListOptions{}) {
		if err != nil {
			return err
		}
		version, id, ok := repo.ParseArchiveID(path.Base(info.Name))
		if _, known := found[id]; !info.Dir || !ok || known {
			continue
		}
		head, err := s.anyHeader(ctx, info.Name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // an empty directory
		}
		if err != nil {
			return fmt.Errorf("find out whose WAL is in %s: %w", info.Name, err)
		}
		db := repo.DB{ID: id, SystemID: head.SystemID, Version: version, ControlVersion: head.Version.ControlVersion(), CatalogVersion: head.Version.CatalogVersion()}
		if err := add(db, info.Name); err != nil {
			return err
		}
	}
	return nil
}

// anyHeader reads the header of the first segment below an archive id that can be read; fs.ErrNotExist: there is none.
func (s *Stanza) anyHeader(ctx context.Context, dir string) (pg.WALHeader, error) {
	last := error(fs.ErrNotExist)
	for info, err := range s.o.Storage.List(ctx, dir, storage.ListOptions{Recursive: true}) {
		if err != nil {
			return pg.WALHeader{}, err
		}
		if _, _, c, ok := repo.ParseSegmentObject(path.Base(info.Name)); ok {
			h, err := s.segmentHeader(ctx, info.Name, c)
			if err == nil {
				return h, nil
			}
			if storage.IsUnavailable(err) {
				return h, err
			}
			last = err
		}
	}
	return pg.WALHeader{}, last
}

func (s *Stanza) segmentHeader(ctx context.Context, object string, c repo.CompressType) (pg.WALHeader, error) {
	r, err := s.o.Storage.Open(ctx, object, 0, -1)
	if err != nil {
		return pg.WALHeader{}, err
	}
	defer r.Close() // opened for reading: nothing to lose
	sr, err := repo.NewStreamReader(r, repo.StreamSpec{Compress: c})
	if err != nil {
		return pg.WALHeader{}, err
	}
	defer sr.Close() // as above
	var b [8192]byte
	n := 0
	for n < len(b) && err == nil {
		var k int
		k, err = sr.Read(b[n:])
		n += k
	}
	return pg.ParseWALHeader(b[:n])
}
