package engine

import (
	"context"
	"fmt"
	"path"
	"time"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// WaitForSegments waits until every one of the named WAL segments is in the archive of the history entry db, at most
// timeout for the next one to appear (format page, section 11.4). ErrArchiveTimeout names the first one missing and what to
// look at. onFound (may be nil) is told each.
func (s *Stanza) WaitForSegments(ctx context.Context, db repo.DB, segments []string, timeout time.Duration) error {
	archiveID := repo.ArchiveID(db.Version, db.ID)
	deadline := s.o.Now().Add(timeout)
	pause := 5 * time.Millisecond
	for i := 0; i < len(segments); {
		have, err := s.segmentSet(ctx, repo.SegmentDir(s.o.Stanza, archiveID, segments[i]))
		if err != nil {
			return err
		}
		before := i
		for i < len(segments) && segments[i][:16] == segments[before][:16] && have[segments[i]] {
			i++
		}
		if i == len(segments) {
			return nil
		}
		if i > before {
			deadline, pause = s.o.Now().Add(timeout), 5*time.Millisecond
			continue
		}
		if s.o.Now().After(deadline) {
			return fmt.Errorf("stanza %s: %w: %s is not in %s after %s; look at archive_command and its errors in the PostgreSQL log (pg_stat_archiver), then run: holdfast pg check --stanza=%s",
				s.o.Stanza, ErrArchiveTimeout, segments[i], archiveID, timeout, s.o.Stanza)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(pause*2, 500*time.Millisecond)
	}
	return nil
}

// segmentSet lists which segments a 16-digit directory holds.
func (s *Stanza) segmentSet(ctx context.Context, dir string) (map[string]bool, error) {
	have := make(map[string]bool)
	for info, err := range s.o.Storage.List(ctx, dir, storage.ListOptions{}) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", dir, err)
		}
		if seg, _, _, ok := repo.ParseSegmentObject(path.Base(info.Name)); ok {
			have[seg] = true
		}
	}
	return have, nil
}

// WALObjects names the stored objects of the given segments of one history entry, and of every timeline history file
// beside them: what has to be copied along for a restore elsewhere. A segment that is not there is ErrWALMissing.
func (s *Stanza) WALObjects(ctx context.Context, db repo.DB, segments []string) ([]string, error) {
	base := repo.ArchiveDir(s.o.Stanza) + "/" + repo.ArchiveID(db.Version, db.ID)
	var names []string
	for info, err := range s.o.Storage.List(ctx, base, storage.ListOptions{}) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", base, err)
		}
		if !info.Dir && pg.IsHistoryName(path.Base(info.Name)) {
			names = append(names, info.Name)
		}
	}
	for i := 0; i < len(segments); {
		dir := repo.SegmentDir(s.o.Stanza, repo.ArchiveID(db.Version, db.ID), segments[i])
		have := make(map[string]string)
		for info, err := range s.o.Storage.List(ctx, dir, storage.ListOptions{}) {
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", dir, err)
			}
			if seg, _, _, ok := repo.ParseSegmentObject(path.Base(info.Name)); ok {
				have[seg] = info.Name
			}
		}
		for group := segments[i][:16]; i < len(segments) && segments[i][:16] == group; i++ {
			name, ok := have[segments[i]]
			if !ok {
				return nil, fmt.Errorf("stanza %s: WAL segment %s: %w", s.o.Stanza, segments[i], ErrWALMissing)
			}
			names = append(names, name)
		}
	}
	return names, nil
}
