package engine

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// planArchive finds the WAL that goes, one archive id after the other, oldest first. Memory grows with the segments of the
// directories that are partly removed, not with the archive.
func (p *ExpirePlan) planArchive(ctx context.Context, ai *repo.ArchiveInfo, r *retention) error {
	if r.archive == 0 && r.o.ArchiveBefore == "" {
		return nil
	}
	ids, err := p.archiveIDs(ctx, ai)
	if err != nil {
		return err
	}
	for _, id := range ids {
		c := r.cut(id.ID, p.kept)
		switch {
		case c.all:
		case c.none:
			err = p.wholeDir(ctx, repo.ArchiveID(id.Version, id.ID), "")
		default:
			err = p.planWAL(ctx, repo.ArchiveID(id.Version, id.ID), &c)
		}
		if err != nil {
			return err
		}
	}
	for _, w := range p.WAL {
		p.WALFiles += w.Files
		p.WALBytes += w.Bytes
	}
	return nil
}

// archiveIDs lists the clusters whose WAL directory is there. A current id only if both info files call it that: after a
// stanza-upgrade that died, the WAL of neither may go as a whole.
func (p *ExpirePlan) archiveIDs(ctx context.Context, ai *repo.ArchiveInfo) (ids []repo.DB, err error) {
	base := repo.ArchiveDir(p.Stanza)
	for info, err := range p.s.o.Storage.List(ctx, base, storage.ListOptions{}) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", base, err)
		}
		name := path.Base(info.Name)
		version, id, ok := repo.ParseArchiveID(name)
		if !info.Dir || !ok {
			continue
		}
		known := func(db repo.DB) bool { return db.ID == id && db.Version == version }
		switch {
		case !slices.ContainsFunc(ai.History, known) || !slices.ContainsFunc(p.bi.History, known):
			p.warn("%s stays: it is not in the history of both archive.info and backup.info", info.Name)
		case id == ai.Current && id != p.bi.Current:
			p.warn("%s stays: archive.info has it as the current cluster, backup.info has another; run: holdfast pg stanza-upgrade --stanza=%s", info.Name, p.Stanza)
		default:
			ids = append(ids, repo.DB{ID: id, Version: version})
		}
	}
	slices.SortFunc(ids, func(a, b repo.DB) int { return cmp.Compare(a.ID, b.ID) })
	return ids, nil
}

// planWAL goes through one archive id: timeline history files before the first timeline that any backup is on, directories of
// which nothing stays, and segments of the others up to the one from which on everything does.
func (p *ExpirePlan) planWAL(ctx context.Context, archiveID string, c *walCut) error {
	base := repo.ArchiveDir(p.Stanza) + "/" + archiveID
	histories := ExpiredWAL{ArchiveID: archiveID, Dir: archiveID}
	for info, err := range p.s.o.Storage.List(ctx, base, storage.ListOptions{}) {
		if err != nil {
			return fmt.Errorf("list %s: %w", base, err)
		}
		name := path.Base(info.Name)
		switch {
		case !info.Dir:
			if pg.IsHistoryName(name) && name[:8] < c.histories {
				histories.add(info)
			}
		case !isSegmentDir(name) || name > c.from[:16]:
		case !c.stays(name):
			if err := p.wholeDir(ctx, archiveID, name); err != nil {
				return err
			}
		default:
			if err := p.partOfDir(ctx, archiveID, name, c); err != nil {
				return err
			}
		}
	}
	if histories.Files > 0 {
		p.WAL = append(p.WAL, histories)
	}
	return nil
}

// isSegmentDir reports whether name is 16 upper-case hex digits.
func isSegmentDir(name string) bool { return len(name) == 16 && pg.IsSegmentName(name+"00000000") }

// wholeDir takes a 16-digit directory with all that is in it, or with dir "" all of the archive id.
func (p *ExpirePlan) wholeDir(ctx context.Context, archiveID, dir string) error {
	w := ExpiredWAL{ArchiveID: archiveID, Dir: path.Join(archiveID, dir), Whole: true}
	return p.scan(ctx, w, func(string) bool { return true })
}

func (p *ExpirePlan) partOfDir(ctx context.Context, archiveID, dir string, c *walCut) error {
	w := ExpiredWAL{ArchiveID: archiveID, Dir: path.Join(archiveID, dir)}
	return p.scan(ctx, w, func(name string) bool {
		return len(name) >= 24 && pg.IsSegmentName(name[:24]) && !c.stays(name[:24])
	})
}

// scan adds to the plan what is in w.Dir and goes.
func (p *ExpirePlan) scan(ctx context.Context, w ExpiredWAL, goes func(base string) bool) error {
	full := repo.ArchiveDir(p.Stanza) + "/" + w.Dir
	apart := true // from the segments before
	for info, err := range p.s.o.Storage.List(ctx, full, storage.ListOptions{Recursive: true}) {
		if err != nil {
			return fmt.Errorf("list %s: %w", full, err)
		}
		base := path.Base(info.Name)
		segment := len(base) >= 24 && pg.IsSegmentName(base[:24])
		switch {
		case !goes(base):
			apart = apart || segment
			continue
		case segment && apart:
			w.Ranges, apart = append(w.Ranges, SegmentRange{First: base[:24]}), false
		}
		if segment {
			w.Ranges[len(w.Ranges)-1].Last = base[:24]
		}
		w.add(info)
	}
	if w.Files > 0 || w.Whole {
		p.WAL = append(p.WAL, w)
	}
	return nil
}

func (w *ExpiredWAL) add(info storage.Info) {
	w.Files++
	w.Bytes += info.Size
	if !w.Whole {
		w.Names = append(w.Names, info.Name)
	}
}
