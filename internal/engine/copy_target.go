package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// The stanza on the target: whether it is there, which cluster each of its history ids is, and which backups it has.

// target loads the target's info files, or makes up those of a new stanza, and finds each cluster's place in its history.
func (p *CopyPlan) target(ctx context.Context) error {
	var err error
	if p.dst, p.Creates, err = p.to.copyTarget(ctx, p.src, &p.o); err != nil {
		return err
	}
	if p.o.Reencrypt && p.dst.ai.CipherPass != "" && p.dst.ai.CipherPass == p.src.ai.CipherPass {
		return fmt.Errorf("%w: its WAL has the passphrase of the source's, from an earlier copy without re-encryption: begin a new target, or copy without re-encryption", ErrCopyConflict)
	}
	var used []int
	for _, b := range p.Backups {
		used = append(used, b.line.DBID)
	}
	if p.Clusters, _, err = placeClusters(p.dst, p.src, used); err != nil {
		return err
	}
	for i := range p.Backups {
		b := &p.Backups[i]
		for _, c := range p.Clusters {
			if c.from.ID == b.line.DBID {
				b.db = c.to
			}
		}
	}
	return p.retain()
}

// copyTarget loads the info files of a stanza that is to be copied to. creates: at least one is missing, and the stanza holds
// nothing yet; what is returned for it is what has to be written.
func (s *Stanza) copyTarget(ctx context.Context, src infos, o *CopyOptions) (dst infos, creates bool, err error) {
	ai, aerr := repo.LoadArchiveInfo(ctx, s.o.Storage, s.o.Stanza, s.o.Pass)
	bi, berr := repo.LoadBackupInfo(ctx, s.o.Storage, s.o.Stanza, s.o.Pass)
	noArchive, noBackup := errors.Is(aerr, fs.ErrNotExist), errors.Is(berr, fs.ErrNotExist)
	switch {
	case aerr == nil && berr == nil:
		return infos{ai, bi}, false, sameHistory(ai, bi)
	case aerr != nil && !noArchive:
		return dst, false, s.notLoaded(ctx, repo.ArchiveDir(s.o.Stanza)+"/archive.info", aerr)
	case berr != nil && !noBackup:
		return dst, false, s.notLoaded(ctx, repo.BackupDir(s.o.Stanza)+"/backup.info", berr)
	case noArchive && !noBackup:
		return dst, false, fmt.Errorf("stanza %s: archive.info is missing but backup.info exists; to write it anew run on the target: holdfast pg stanza-create --rebuild --stanza=%[1]s (%[2]w)", s.o.Stanza, aerr)
	}
	// A creation that died may have left archive.info alone; with anything else beside it, something was lost.
	for _, dir := range []string{repo.ArchiveDir(s.o.Stanza), repo.BackupDir(s.o.Stanza)} {
		for info, err := range s.o.Storage.List(ctx, dir, storage.ListOptions{Recursive: true}) {
			if err != nil {
				return dst, false, fmt.Errorf("stanza %s: list %s: %w", s.o.Stanza, dir, err)
			}
			if name := repo.ArchiveDir(s.o.Stanza) + "/archive.info"; info.Name != name && info.Name != name+".copy" {
				return dst, false, fmt.Errorf("stanza %s: there is no backup.info, yet %s exists: this is the remainder of another stanza; move it away or choose another target", s.o.Stanza, info.Name)
			}
		}
	}
	dst = infos{ai, s.infosLike(src, o).bi}
	if noArchive {
		dst.ai = s.infosLike(src, o).ai
	}
	return dst, true, nil
}

// infosLike are the info files of a new stanza with the clusters of src and no backups. WAL keeps the source's passphrase
// where both sides are encrypted and nothing else is asked for.
func (s *Stanza) infosLike(src infos, o *CopyOptions) infos {
	ai := &repo.ArchiveInfo{BackrestVersion: s.o.Version, Current: src.bi.Current, CipherPass: s.subPass()}
	if ai.CipherPass != "" && src.ai.CipherPass != "" && !o.Reencrypt {
		ai.CipherPass = src.ai.CipherPass
	}
	for _, db := range src.bi.History {
		ai.History = append(ai.History, repo.DB{ID: db.ID, SystemID: db.SystemID, Version: db.Version})
	}
	return infos{ai, &repo.BackupInfo{BackrestVersion: s.o.Version, Current: src.bi.Current, CipherPass: s.subPass(), History: slices.Clone(src.bi.History)}}
}

// isCluster compares the identity of two history entries.
func isCluster(a, b repo.DB) bool { return a.SystemID == b.SystemID && a.Version == b.Version }

// findCluster is the history id of a cluster: the same id as in the source if it is the same cluster's, else the newest.
func findCluster(history []repo.DB, db repo.DB) (found repo.DB) {
	for _, h := range history {
		if isCluster(h, db) && (found.ID == 0 || found.ID != db.ID) {
			found = h
		}
	}
	return found
}

// placeClusters finds the history ids of the clusters that have the ids used in src in the target's history. Ids are a
// repository's own: a cluster may have another one there. A cluster that is not in the target's history is added, provided
// that it came after the target's current one in the source too: the stanza was upgraded since the last copy. Everything
// else is ErrStanzaMismatch. dst is changed; changed says that it has to be saved.
func placeClusters(dst, src infos, used []int) (out []CopyCluster, changed bool, err error) {
	used = slices.Clone(used)
	slices.Sort(used)
	for _, id := range slices.Compact(used) {
		db := findDB(src.bi.History, id)
		if db.ID == 0 {
			return nil, false, fmt.Errorf("source: %w: history id %d of a backup is not in backup.info", repo.ErrFormat, id)
		}
		c := CopyCluster{From: repo.ArchiveID(db.Version, db.ID), SystemID: db.SystemID, from: db, to: findCluster(dst.bi.History, db)}
		if c.to.ID == 0 {
			if c.to = findCluster(dst.ai.History, db); c.to.ID == 0 {
				if err := mayFollow(dst, src, db); err != nil {
					return nil, false, err
				}
				c.to = repo.DB{ID: newestID(dst) + 1, SystemID: db.SystemID, Version: db.Version}
			}
			c.New = true
			c.to.ControlVersion, c.to.CatalogVersion = db.ControlVersion, db.CatalogVersion
			dst.bi.History, changed = append(dst.bi.History, c.to), true
			dst.bi.Current = max(dst.bi.Current, c.to.ID)
		}
		if c.to.ControlVersion != db.ControlVersion || c.to.CatalogVersion != db.CatalogVersion {
			return nil, false, fmt.Errorf("%w: system identifier %d is a cluster with catalog version %d in the target, %d in the source", ErrStanzaMismatch, db.SystemID, c.to.CatalogVersion, db.CatalogVersion)
		}
		if findDB(dst.ai.History, c.to.ID).ID == 0 {
			dst.ai.History, changed = append(dst.ai.History, repo.DB{ID: c.to.ID, SystemID: db.SystemID, Version: db.Version}), true
			dst.ai.Current = max(dst.ai.Current, c.to.ID)
		}
		c.To = repo.ArchiveID(c.to.Version, c.to.ID)
		out = append(out, c)
	}
	return out, changed, nil
}

// mayFollow refuses a cluster that did not come after the target's current one.
func mayFollow(dst, src infos, db repo.DB) error {
	current := dst.bi.DB()
	was := findCluster(src.bi.History, current)
	switch {
	case was.ID == 0:
		return fmt.Errorf("%w: its current cluster has system identifier %d, version %s; the source's backups are of %d, %s, and the source never had that one; use another target or another stanza name for the copy",
			ErrStanzaMismatch, current.SystemID, current.Version, db.SystemID, db.Version)
	case db.ID < was.ID:
		return fmt.Errorf("%w: it began with the cluster of system identifier %d, version %s; the backups of the one before, %d, %s, have no place in its history; leave them out, or copy the stanza to a new target",
			ErrStanzaMismatch, current.SystemID, current.Version, db.SystemID, db.Version)
	}
	return nil
}

func newestID(i infos) int {
	newest := 0
	for _, h := range [][]repo.DB{i.ai.History, i.bi.History} {
		for _, db := range h {
			newest = max(newest, db.ID)
		}
	}
	return newest
}

// findDB is one entry of a history; the zero DB when it is not there.
func findDB(history []repo.DB, id int) repo.DB {
	i := slices.IndexFunc(history, func(db repo.DB) bool { return db.ID == id })
	if i < 0 {
		return repo.DB{}
	}
	return history[i]
}

// targetLine is the line of a backup as the target's backup.info will have it. sizes are those of its manifest there.
func targetLine(src repo.BackupLine, db repo.DB, sizes repo.BackupLine) repo.BackupLine {
	src.DBID = db.ID
	src.RepoSize, src.RepoSizeDelta, src.RepoSizeMap, src.RepoSizeMapDelta = sizes.RepoSize, sizes.RepoSizeDelta, sizes.RepoSizeMap, sizes.RepoSizeMapDelta
	return src
}

// sameBackup says whether two lines are of one and the same backup, which may be stored otherwise on either side.
func sameBackup(a, b *repo.BackupLine) bool {
	return a.Label == b.Label && a.Type == b.Type && a.Prior == b.Prior && a.TimeStart == b.TimeStart && a.TimeStop == b.TimeStop &&
		a.ArchiveStart == b.ArchiveStart && a.ArchiveStop == b.ArchiveStop && a.LSNStart == b.LSNStart && a.LSNStop == b.LSNStop &&
		a.Size == b.Size && a.SizeDelta == b.SizeDelta && slices.Equal(a.References, b.References)
}

// there finds out which backups the target has already.
func (p *CopyPlan) there(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(questions(p.to.o.Storage, p.o.ProcessMax))
	for i := range p.Backups {
		b := &p.Backups[i]
		have := p.dst.bi.Find(b.Label)
		if have == nil {
			continue
		}
		if !sameBackup(have, &b.line) || !isCluster(findDB(p.dst.bi.History, have.DBID), b.db) {
			b.refuse("the target has another backup of this label")
			continue
		}
		b.db = findDB(p.dst.bi.History, have.DBID)
		g.Go(func() error {
			name := repo.ManifestPath(p.ToStanza, b.Label)
			switch _, err := p.to.o.Storage.Stat(gctx, name); {
			case err == nil:
				b.State = CopyThere
			case !errors.Is(err, fs.ErrNotExist):
				return fmt.Errorf("look for %s: %w", name, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i := range p.dst.bi.Backups {
		if l := p.dst.bi.Backups[i].Label; p.src.bi.Find(l) == nil {
			p.Others = append(p.Others, l)
		}
	}
	return nil
}

// recheck compares the objects of the backups that the target has with its manifests. What is missing or has another size is copied
// again where files pass as they are; where they are encrypted anew, later backups know the sums of what was there.
func (p *CopyPlan) recheck(ctx context.Context) error {
	for i := range p.Backups {
		b := &p.Backups[i]
		if !p.o.Recheck || b.State != CopyThere {
			continue
		}
		have, err := repo.LoadManifest(ctx, p.to.o.Storage, p.ToStanza, b.Label, p.dst.bi.CipherPass)
		if err != nil {
			return err
		}
		c := &backupCopy{p: p, m: have, t: have}
		lacks := c.complete(ctx)
		if lacks == nil {
			continue
		}
		if ctx.Err() != nil || !errors.Is(lacks, errIncomplete) {
			return lacks
		}
		was, err := repo.LoadManifest(ctx, p.from.o.Storage, p.Stanza, b.Label, p.src.bi.CipherPass)
		switch {
		case err != nil:
			if err = p.refused(ctx, b, sourceErr(err)); err != nil {
				return err
			}
		case was.CipherPass != have.CipherPass:
			b.refuse("%v; its files were encrypted anew for the target, so that single ones can't be copied again: remove it there with all that is built on it (holdfast pg expire --set) and copy it again", lacks)
		default:
			b.State = CopyNew
		}
	}
	return nil
}

// retain drops from the plan what the target's retention would let go at once.
func (p *CopyPlan) retain() error {
	if p.o.Keep == nil {
		return nil
	}
	all := *p.dst.bi
	all.Backups = slices.Clone(all.Backups)
	for _, b := range p.Backups {
		if all.Find(b.Label) == nil {
			all.Put(targetLine(b.line, b.db, b.line))
		}
	}
	r, err := choose(&all, *p.o.Keep, p.to.o.Now())
	if err != nil {
		return err
	}
	p.Warnings = append(p.Warnings, r.warnings...)
	dropped := 0
	p.Backups = slices.DeleteFunc(p.Backups, func(b CopyBackup) bool {
		_, gone := r.gone[b.Label]
		if gone && p.dst.bi.Find(b.Label) == nil {
			dropped++
		}
		return gone
	})
	if dropped > 0 {
		p.from.step("copy", "retention", fmt.Sprintf("%d backups are left out: the target's retention does not keep them", dropped))
	}
	var kept []repo.BackupLine
	for _, l := range all.Backups {
		if _, gone := r.gone[l.Label]; !gone {
			kept = append(kept, l)
		}
	}
	for i := range p.Clusters {
		cut := r.cut(p.Clusters[i].to.ID, kept)
		p.Clusters[i].cut = &cut
	}
	return nil
}

// How long and how often to ask for the locks of the target.
const (
	copyLockWait  = time.Minute
	copyLockPause = 20 * time.Millisecond
)

// lockWait takes the target's locks. They are held for moments, others may hold them for hours: it asks again for a minute.
func (s *Stanza) lockWait(ctx context.Context, kinds ...string) (func() error, error) {
	deadline := s.o.Now().Add(copyLockWait)
	pause, said := copyLockPause, false
	for {
		release, err := s.lock(kinds...)
		if !errors.Is(err, repo.ErrLocked) || s.o.Now().After(deadline) {
			return release, err
		}
		if !said {
			s.step("copy", "lock", err.Error())
			said = true
		}
		select {
		case <-ctx.Done():
			return release, ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, 50*copyLockPause)
	}
}

// oldest is the lower of two positions in the WAL; "" counts for none.
func oldest(a, b string) string {
	if a == "" || b == "" {
		return cmp.Or(a, b)
	}
	return min(a, b)
}
