package engine

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// RemovePlan is what taking one backup out of the repository removes with it.
type RemovePlan struct {
	Stanza   string       `json:"stanza"`
	Backups  []repo.Label `json:"backups"`  // newest first: the dependents, then the backup
	Segments int          `json:"segments"` // WAL that no remaining backup needs
	WALBytes int64        `json:"wal_bytes"`

	s           *Stanza
	set         repo.Label
	interrupted bool     // an earlier removal took it out of backup.info and left files
	segments    []string // object names
}

// ErrLastBackup: removing the only full backup of the current cluster needs to be said twice.
var ErrLastBackup = errors.New("it is the last full backup")

// PlanRemove works out what goes when the backup set (and those built on it) is removed, and which WAL is then older than
// every backup that stays. allowLast permits removing the last full backup.
func (s *Stanza) PlanRemove(ctx context.Context, set repo.Label, allowLast bool) (*RemovePlan, error) {
	ai, bi, err := s.loadInfos(ctx)
	if err != nil {
		return nil, err
	}
	p := &RemovePlan{Stanza: s.o.Stanza, s: s, set: set}
	if bi.Find(set) == nil {
		if p.Backups, err = s.leftovers(ctx, bi, set); err != nil {
			return nil, fmt.Errorf("stanza %s: look for backup %s: %w", s.o.Stanza, set, err)
		}
		if !slices.Contains(p.Backups, set) {
			return nil, fmt.Errorf("stanza %s: %w: there is no backup %s", s.o.Stanza, ErrNoBackup, set)
		}
		p.interrupted = true
		return p, p.planWAL(ctx, ai, bi)
	}
	p.Backups = dependents(bi, set)
	fullsLeft := 0
	for _, l := range bi.Backups {
		if l.Type == repo.Full && l.DBID == bi.Current && !slices.Contains(p.Backups, l.Label) {
			fullsLeft++
		}
	}
	if fullsLeft == 0 && set.Type() == repo.Full && !allowLast {
		return nil, fmt.Errorf("stanza %s: backup %s: %w; without it nothing of this cluster can be restored", s.o.Stanza, set, ErrLastBackup)
	}
	return p, p.planWAL(ctx, ai, bi)
}

// leftovers lists the directories of set, and of later backups of the same full, that are neither listed nor have a
// manifest: what a removal that died has left. Newest first.
func (s *Stanza) leftovers(ctx context.Context, bi *repo.BackupInfo, set repo.Label) ([]repo.Label, error) {
	var out []repo.Label
	for d, err := range repo.Labels(ctx, s.o.Storage, s.o.Stanza) {
		if err != nil {
			return nil, err
		}
		if !d.Manifest && d.Label >= set && d.Label.FullLabel() == set.FullLabel() && bi.Find(d.Label) == nil {
			out = append(out, d.Label)
		}
	}
	slices.Reverse(out)
	return out, nil
}

// dependents lists set and every backup whose chain of priors leads to it, newest first.
func dependents(bi *repo.BackupInfo, set repo.Label) []repo.Label {
	gone := map[repo.Label]bool{set: true}
	var out []repo.Label
	for _, l := range bi.Backups { // sorted by time: a prior comes before what is built on it
		if gone[l.Label] || gone[l.Prior] {
			gone[l.Label] = true
			out = append(out, l.Label)
		}
	}
	slices.Reverse(out)
	return out
}

// planWAL finds the segments before the first WAL that any remaining backup needs. With no backup left of a cluster all
// of its WAL stays: it may be needed by a backup that is about to be made.
func (p *RemovePlan) planWAL(ctx context.Context, ai *repo.ArchiveInfo, bi *repo.BackupInfo) error {
	for _, db := range ai.History {
		oldest := ""
		for _, l := range bi.Backups {
			if l.DBID == db.ID && l.ArchiveStart != "" && !slices.Contains(p.Backups, l.Label) && (oldest == "" || l.ArchiveStart[8:] < oldest[8:]) {
				oldest = l.ArchiveStart
			}
		}
		if oldest == "" {
			continue
		}
		dir := repo.ArchiveDir(p.s.o.Stanza) + "/" + repo.ArchiveID(db.Version, db.ID)
		if err := p.olderThan(ctx, dir, oldest[8:]); err != nil {
			return err
		}
	}
	return nil
}

// olderThan collects segments, of any timeline, whose position lies before position (the last 16 digits of a name):
// nothing that stays can need them.
func (p *RemovePlan) olderThan(ctx context.Context, dir, position string) error {
	for info, err := range p.s.o.Storage.List(ctx, dir, storage.ListOptions{Recursive: true}) {
		if err != nil {
			return fmt.Errorf("list %s: %w", dir, err)
		}
		if seg, _, _, ok := repo.ParseSegmentObject(path.Base(info.Name)); ok && seg[8:24] < position {
			p.segments = append(p.segments, info.Name)
			p.WALBytes += info.Size
		}
	}
	p.Segments = len(p.segments)
	return nil
}

// Run removes. First the manifests: from then on the backups do not exist, whatever happens; then backup.info, the WAL,
// and the files. A run that dies in between is completed when the same backup is removed again; its files, but not its
// WAL, also by the next backup.
func (p *RemovePlan) Run(ctx context.Context) error {
	s := p.s
	if err := s.stopped(); err != nil {
		return err
	}
	release, err := s.lock("backup")
	if err != nil {
		return err
	}
	return wrap(errors.Join(p.run(ctx), release()), "remove backup %s of stanza %s", p.set, s.o.Stanza)
}

func (p *RemovePlan) run(ctx context.Context) error {
	s := p.s
	bi, err := repo.LoadBackupInfo(ctx, s.o.Storage, s.o.Stanza, s.o.Pass)
	if err != nil {
		return err
	}
	if now := dependents(bi, p.set); p.interrupted == (bi.Find(p.set) != nil) || !p.interrupted && !slices.Equal(now, p.Backups) {
		return errors.New("the repository changed since the plan was made: make the plan again")
	}
	if p.interrupted {
		err = p.stillLeftovers(ctx, bi)
	} else {
		err = p.removeManifests(ctx)
	}
	if err != nil {
		return err
	}
	bi.Backups = slices.DeleteFunc(bi.Backups, func(l repo.BackupLine) bool { return slices.Contains(p.Backups, l.Label) })
	s.step("remove", "catalogue", "backup.info")
	if err := repo.SaveBackupInfo(ctx, s.o.Storage, s.o.Stanza, bi, s.o.Pass); err != nil {
		return err
	}
	s.relinkLatest(ctx, bi)
	s.step("remove", "wal", fmt.Sprintf("%d segments", len(p.segments)))
	if err := s.removeObjects(ctx, p.segments); err != nil {
		return err
	}
	// The files come last: as long as they are there a second run knows that there is something to complete.
	for _, l := range p.Backups {
		s.step("remove", "files", string(l))
		if err := s.removeUnfinished(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// removeManifests makes the backups cease to exist.
func (p *RemovePlan) removeManifests(ctx context.Context) error {
	for _, l := range p.Backups {
		p.s.step("remove", "manifest", string(l))
		if err := p.s.removeManifest(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// stillLeftovers: what an interrupted removal seems to have left may have been a backup under way on another host, which is
// complete by now.
func (p *RemovePlan) stillLeftovers(ctx context.Context, bi *repo.BackupInfo) error {
	now, err := p.s.leftovers(ctx, bi, p.set)
	if err != nil {
		return err
	}
	if !slices.Equal(now, p.Backups) {
		return errors.New("the repository changed since the plan was made: make the plan again")
	}
	return nil
}

// removeObjects deletes objects in batches.
func (s *Stanza) removeObjects(ctx context.Context, names []string) error {
	for chunk := range slices.Chunk(names, 1000) {
		if err := s.o.Storage.Remove(ctx, chunk...); err != nil {
			return err
		}
	}
	return nil
}

// saveBackupInfo saves backup.info when it changed, or when a run that died between the file and its copy left them different.
func (s *Stanza) saveBackupInfo(ctx context.Context, bi *repo.BackupInfo, changed bool) error {
	if !changed {
		faults, err := repo.CheckCopies(ctx, s.o.Storage, repo.BackupDir(s.o.Stanza)+"/backup.info", s.o.Pass)
		if err != nil || len(faults) == 0 {
			return err
		}
	}
	return repo.SaveBackupInfo(ctx, s.o.Storage, s.o.Stanza, bi, s.o.Pass)
}

// removeManifest makes a backup cease to exist. The copy goes first: alone, it would be an unfinished backup's.
func (s *Stanza) removeManifest(ctx context.Context, l repo.Label) error {
	name := repo.ManifestPath(s.o.Stanza, l)
	if err := s.o.Storage.Remove(ctx, name+".copy"); err != nil {
		return err
	}
	return s.o.Storage.Remove(ctx, name)
}

// relinkLatest points the link for people, where the store has links, to the newest backup that stayed.
func (s *Stanza) relinkLatest(ctx context.Context, bi *repo.BackupInfo) {
	l, ok := s.o.Storage.(storage.Linker)
	if !ok || !s.o.Storage.Abilities().Links || s.o.NoSymlinks {
		return
	}
	link := repo.BackupDir(s.o.Stanza) + "/latest"
	var err error
	if n := len(bi.Backups); n > 0 {
		err = l.Symlink(ctx, string(bi.Backups[n-1].Label), link)
	} else {
		err = l.RemoveTree(ctx, link)
	}
	if err != nil {
		s.warn("the link %s could not be set (it is for people only): %v", link, err)
	}
}

// TrimWAL removes every segment of one history entry that lies before the segment keep, on any timeline: for a repository
// whose backups are kept elsewhere together with their WAL.
func (s *Stanza) TrimWAL(ctx context.Context, db repo.DB, keep string) error {
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
	p := &RemovePlan{s: s}
	err = p.olderThan(ctx, repo.ArchiveDir(s.o.Stanza)+"/"+repo.ArchiveID(db.Version, db.ID), keep[8:24])
	if err == nil {
		err = s.removeObjects(ctx, p.segments)
	}
	return wrap(errors.Join(err, release()), "stanza %s: remove WAL before %s", s.o.Stanza, keep)
}
