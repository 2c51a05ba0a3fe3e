package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
)

// Looks at single things, for those who want to know all that is wrong and not the first of it. None changes anything.

// SameCluster compares what a server says of itself with the control file of a data directory: ErrOtherServer.
func SameCluster(f pg.ServerFacts, control pg.Control, dataDir string) error {
	return sameCluster(f, control, dataDir)
}

// ArchiveSettings says what in a primary's settings keeps it from archiving at all: ErrArchiveOff, ErrArchiveCommand.
func ArchiveSettings(ctx context.Context, conn *pg.Conn, f pg.ServerFacts) error {
	return archiveSettings(ctx, conn, f, false)
}

// Stopped says whether the stanza is told to do nothing (Stop): ErrStopped.
func (s *Stanza) Stopped() error { return s.stopped() }

// InfoFaults looks at both info files and their copies, one of which suffices: what is wrong with the other is named.
func (s *Stanza) InfoFaults(ctx context.Context) ([]string, error) {
	var found []string
	for _, name := range []string{repo.ArchiveDir(s.o.Stanza) + "/archive.info", repo.BackupDir(s.o.Stanza) + "/backup.info"} {
		faults, err := repo.CheckCopies(ctx, s.o.Storage, name, s.o.Pass)
		if err != nil {
			return nil, fmt.Errorf("stanza %s: %w", s.o.Stanza, err)
		}
		for _, f := range faults {
			found = append(found, fmt.Sprintf("%s: %v", f.Object, f.Err))
		}
	}
	return found, nil
}

// HasSegment says whether a WAL segment of the cluster is in the archive.
func (s *Stanza) HasSegment(ctx context.Context, systemID uint64, version pg.Version, segment string) (bool, error) {
	db, err := s.Cluster(ctx, systemID, version.String())
	if err != nil {
		return false, err
	}
	if !pg.IsSegmentName(segment) {
		return false, nil
	}
	_, err = s.segmentObject(ctx, repo.ArchiveID(db.Version, db.ID), segment)
	if errors.Is(err, ErrWALMissing) || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Backlog is what waits in a data directory to be archived.
type Backlog struct {
	Files  int
	First  string    // the first that will be archived
	Oldest time.Time // since when the one waits that waits longest
}

// WaitingWAL looks at what PostgreSQL wants archived.
func WaitingWAL(dataDir string) (Backlog, error) {
	ready, err := readySegments(filepath.Join(dataDir, "pg_wal"))
	if err != nil || len(ready) == 0 {
		return Backlog{}, err
	}
	b := Backlog{Files: len(ready), First: ready[0]}
	for _, name := range ready {
		info, err := os.Stat(filepath.Join(dataDir, "pg_wal/archive_status", name+".ready"))
		if err == nil && (b.Oldest.IsZero() || info.ModTime().Before(b.Oldest)) { // else it has been archived meanwhile
			b.Oldest = info.ModTime()
		}
	}
	return b, nil
}
