package engine

import (
	"context"
	"errors"
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"
	"time"

	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// ExpiredDir is a directory of a label that no backup in backup.info has.
type ExpiredDir struct {
	Label    repo.Label `json:"label"`
	Reason   string     `json:"reason"`
	Manifest bool       `json:"-"`
}

// ExpiredWAL is WAL of one directory that goes. Dir is an archive id ("15-1": all of it, or timeline history files in it) or
// a 16-digit directory below one.
type ExpiredWAL struct {
	ArchiveID string         `json:"archive_id"`
	Dir       string         `json:"dir"`
	Whole     bool           `json:"whole"`            // the directory goes with all that is in it
	Files     int            `json:"files"`            // segments, partial segments, .backup and .history files
	Bytes     int64          `json:"bytes"`            // as stored
	Ranges    []SegmentRange `json:"ranges,omitempty"` // segments, ascending; between two of them some stay
	Names     []string       `json:"-"`                // objects; empty when Whole
}

// SegmentRange names the first and the last of the segments that go without one between them that stays.
type SegmentRange struct {
	First string `json:"first"`
	Last  string `json:"last"`
}

// ExpirePlan is what goes, in the order of removal, and why.
type ExpirePlan struct {
	Stanza      string          `json:"stanza"`
	Repo        int             `json:"repo"`
	Backups     []ExpiredBackup `json:"backups"` // newest first
	Directories []ExpiredDir    `json:"directories"`
	WAL         []ExpiredWAL    `json:"wal"`
	WALFiles    int             `json:"wal_files"`
	WALBytes    int64           `json:"wal_bytes"`
	History     []repo.Label    `json:"history"` // manifests of backups that went long ago
	Warnings    []string        `json:"warnings"`

	s          *Stanza
	o          ExpireOptions
	now        time.Time
	bi         *repo.BackupInfo
	reconciled bool         // bi differs from the file
	added      []repo.Label // what it lists and the file does not
	kept       []repo.BackupLine
}

// PlanExpire decides what goes, as section 19 of the format page has it, without changing anything; a dry run ends here.
//
// Three things differ from the page, and all keep more: the last full backup of the current cluster never goes (for a Set
// that is ErrLastBackup), nor does a directory whose manifest is there but cannot be read, nor a history file from the
// timeline of the oldest backup on. Archive directories that are not in the history are left alone with a warning.
//
// Errors: ErrStanzaMissing; repo.ErrFormat when the info files contradict each other; the storage's.
func (s *Stanza) PlanExpire(ctx context.Context, o ExpireOptions) (*ExpirePlan, error) {
	return s.planExpire(ctx, o, s.o.Now())
}

func (s *Stanza) planExpire(ctx context.Context, o ExpireOptions, now time.Time) (*ExpirePlan, error) {
	p := &ExpirePlan{Stanza: s.o.Stanza, Repo: s.o.RepoKey, s: s, o: o, now: now, // lists are never null in JSON
		Backups: []ExpiredBackup{}, Directories: []ExpiredDir{}, WAL: []ExpiredWAL{}, History: []repo.Label{}, Warnings: []string{}}
	fail := func(err error) (*ExpirePlan, error) {
		return nil, fmt.Errorf("stanza %s: plan what expires: %w", s.o.Stanza, err)
	}
	if err := o.check(); err != nil {
		return fail(err)
	}
	ai, bi, dirs, err := s.loadAll(ctx)
	if err != nil {
		return nil, err
	}
	if err := sameHistory(ai, bi); err != nil {
		return fail(err)
	}
	changed, added, warnings, err := s.reconcileDirs(ctx, bi, dirs)
	if err != nil {
		return fail(err)
	}
	p.added = added
	p.reconciled, p.Warnings = changed, append(p.Warnings, warnings...)
	r, err := choose(bi, o, now)
	if err != nil {
		return fail(err)
	}
	p.bi = bi
	for _, l := range bi.Backups {
		if reason, gone := r.gone[l.Label]; gone {
			p.Backups = append(p.Backups, ExpiredBackup{l.Label, reason})
		} else {
			p.kept = append(p.kept, l)
		}
	}
	slices.Reverse(p.Backups)
	p.Warnings = append(p.Warnings, r.warnings...)
	for _, step := range []func() error{
		func() error { return p.planDirectories(ctx, dirs) },
		func() error { return p.planArchive(ctx, ai, r) },
		func() error { return p.planHistory(ctx) },
	} {
		if err := step(); err != nil {
			return fail(err)
		}
	}
	return p, nil
}

// sameHistory: with info files of two clusters nobody could say whose WAL is whose.
func sameHistory(ai *repo.ArchiveInfo, bi *repo.BackupInfo) error {
	for _, a := range ai.History {
		for _, b := range bi.History {
			if a.ID == b.ID && (a.Version != b.Version || a.SystemID != b.SystemID) {
				return fmt.Errorf("%w: archive.info and backup.info disagree on history id %d: version %s, system identifier %d, and %s, %d; one of them belongs to another stanza: restore it from a copy",
					repo.ErrFormat, a.ID, a.Version, a.SystemID, b.Version, b.SystemID)
			}
		}
	}
	return nil
}

// planDirectories finds label directories that belong to no backup. The newest one, when it has only the copy of a
// manifest, may be running (on another host) or be resumed.
func (p *ExpirePlan) planDirectories(ctx context.Context, all []repo.LabelDir) error {
	var dirs []repo.LabelDir
	newest, stamp := repo.Label(""), ""
	for _, d := range all {
		newest, stamp = max(newest, d.Label), max(stamp, ownStamp(d.Label))
		if p.bi.Find(d.Label) == nil {
			dirs = append(dirs, d)
		}
	}
	for _, d := range dirs {
		reason := "it is not in backup.info"
		switch {
		case d.Manifest:
			damaged, err := p.unlisted(ctx, d.Label)
			if err != nil {
				return err
			}
			if damaged != nil {
				p.warn("the directory of backup %s stays although backup.info does not have it: %v; look at it with: holdfast pg verify --stanza=%s", d.Label, damaged, p.Stanza)
				continue
			}
		case d.Copy && (d.Label == newest || ownStamp(d.Label) == stamp):
			var err error
			if reason, err = p.orphaned(ctx, d.Label); err != nil {
				return err
			}
			if reason == "" {
				continue
			}
		}
		p.Directories = append(p.Directories, ExpiredDir{d.Label, reason, d.Manifest})
	}
	return ctx.Err()
}

// ownStamp is the start time in a label, as digits that sort.
func ownStamp(l repo.Label) string {
	return string(l[strings.LastIndexByte(string(l), '_')+1 : len(l)-1])
}

// unlisted looks at a backup that backup.info could not take up. It may go when it is foreign or its prior is gone. What is
// wrong with its manifest, so that nobody knows what it is, is damaged; that it could not be asked is err.
func (p *ExpirePlan) unlisted(ctx context.Context, l repo.Label) (damaged, err error) {
	m, err := repo.LoadManifest(ctx, p.s.o.Storage, p.Stanza, l, p.manifestPass())
	for _, known := range []error{repo.ErrFormat, repo.ErrChecksum, repo.ErrCorrupt, repo.ErrCipher, repo.ErrTrailingData} {
		if errors.Is(err, known) {
			return err, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("backup %s is not in backup.info: %w", l, err)
	}
	known := slices.ContainsFunc(p.bi.History, func(db repo.DB) bool {
		return db.ID == m.DB.ID && db.SystemID == m.DB.SystemID && db.Version == m.DB.Version
	})
	if known && (m.Type == repo.Full || p.bi.Find(m.Prior) != nil) {
		return nil, fmt.Errorf("the manifest of backup %s, which is not in backup.info, could be read only at the second attempt: run expire again", l)
	}
	return nil, nil
}

// orphaned says why the newest, unfinished backup cannot be completed any more: a backup that it is built on was asked to
// go. "" when it may still be.
func (p *ExpirePlan) orphaned(ctx context.Context, l repo.Label) (reason string, err error) {
	goes := func(label repo.Label) bool {
		return slices.ContainsFunc(p.Backups, func(b ExpiredBackup) bool { return b.Label == label })
	}
	full := l.FullLabel()
	if p.o.Set == "" || full != p.o.Set.FullLabel() || l == full {
		return "", nil
	}
	if goes(full) || p.bi.Find(full) == nil {
		return "its full backup " + string(full) + " goes", nil
	}
	m, err := repo.LoadManifestCopy(ctx, p.s.o.Storage, p.Stanza, l, p.manifestPass())
	if cut := blind(ctx, err); cut != nil {
		return "", cut
	}
	if err != nil {
		p.warn("the unfinished backup %s stays: it cannot be told what it is built on: %v", l, err)
		return "", nil
	}
	if goes(m.Prior) || p.bi.Find(m.Prior) == nil {
		return "its prior " + string(m.Prior) + " goes", nil
	}
	return "", nil
}

func (p *ExpirePlan) manifestPass() repo.Secret {
	if p.bi.CipherPass != "" {
		return p.bi.CipherPass
	}
	return p.s.o.Pass
}

func (p *ExpirePlan) warn(format string, a ...any) {
	p.Warnings = append(p.Warnings, fmt.Sprintf(format, a...))
}

// planHistory finds manifests of removed backups that are older than they need to be kept. Age goes by label, in local
// time as labels are.
func (p *ExpirePlan) planHistory(ctx context.Context) error {
	if p.o.HistoryDays == nil {
		return nil
	}
	limit, err := repo.NewLabel(p.now.In(p.s.o.Local).Add(-time.Duration(*p.o.HistoryDays)*24*time.Hour), repo.Full, "", "")
	if err != nil {
		return err
	}
	dir := repo.BackupDir(p.Stanza) + "/backup.history"
	for info, err := range p.s.o.Storage.List(ctx, dir, storage.ListOptions{Recursive: true}) {
		if err != nil {
			return fmt.Errorf("list %s: %w", dir, err)
		}
		l, err := repo.ParseLabel(strings.TrimSuffix(path.Base(info.Name), ".manifest.gz"))
		if err != nil || info.Name != repo.HistoryManifestPath(p.Stanza, l) || l >= limit {
			continue
		}
		if !slices.ContainsFunc(p.kept, func(k repo.BackupLine) bool { return k.Label == l }) {
			p.History = append(p.History, l)
		}
	}
	return nil
}

// Run removes. First the manifests, newest first: from then on those backups do not exist, whatever happens, and what is
// left is whole; then backup.info, the directories, the WAL and old manifests. A run that died is completed by planning and
// running again, with one exception: Oldest then means the next one. Takes the backup lock; ErrStopped while a stop file is
// there. When the repository is no longer as it was planned for, nothing goes.
func (p *ExpirePlan) Run(ctx context.Context) error {
	s := p.s
	if err := s.stopped(); err != nil {
		return err
	}
	release, err := s.lock(repo.LockBackup)
	if err != nil {
		return err
	}
	return wrap(errors.Join(p.checkedRun(ctx), release()), "stanza %s: expire", s.o.Stanza)
}

func (p *ExpirePlan) checkedRun(ctx context.Context) error {
	now, err := p.s.planExpire(ctx, p.o, p.now)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(now.Backups, p.Backups) || !reflect.DeepEqual(now.Directories, p.Directories) ||
		!reflect.DeepEqual(now.WAL, p.WAL) || !slices.Equal(now.History, p.History) {
		return errors.New("the repository changed since the plan was made: make the plan again")
	}
	return now.run(ctx)
}

func (p *ExpirePlan) run(ctx context.Context) error {
	s := p.s
	for _, b := range p.Backups {
		s.step("expire", "manifest", string(b.Label))
		if err := s.removeManifest(ctx, b.Label); err != nil {
			return err
		}
	}
	p.bi.Backups = p.kept
	if err := s.completeHistory(ctx, p.bi, slices.DeleteFunc(p.added, func(l repo.Label) bool { return p.bi.Find(l) == nil })); err != nil {
		return err
	}
	s.step("expire", "catalogue", "backup.info")
	if err := s.saveBackupInfo(ctx, p.bi, p.reconciled || len(p.Backups) > 0); err != nil {
		return err
	}
	s.relinkLatest(ctx, p.bi)
	for _, d := range p.Directories {
		if d.Manifest {
			if err := s.removeManifest(ctx, d.Label); err != nil {
				return err
			}
		}
		s.step("expire", "files", string(d.Label))
		if err := s.removeUnfinished(ctx, d.Label); err != nil {
			return err
		}
	}
	for _, b := range p.Backups {
		if err := p.removeDir(ctx, b.Label); err != nil {
			return err
		}
	}
	for i := range p.WAL {
		w := &p.WAL[i]
		s.step("expire", "wal", fmt.Sprintf("%s: %d files", w.Dir, w.Files))
		if !w.Whole {
			if err := s.removeObjects(ctx, w.Names); err != nil {
				return err
			}
		} else if err := s.removeTree(ctx, repo.ArchiveDir(s.o.Stanza)+"/"+w.Dir); err != nil {
			return err
		}
	}
	if err := p.removeHistory(ctx); err != nil {
		return err
	}
	return s.sweep(ctx, "expire")
}

// removeHistory removes old manifests.
func (p *ExpirePlan) removeHistory(ctx context.Context) error {
	s := p.s
	if len(p.History) == 0 {
		return nil
	}
	s.step("expire", "history", fmt.Sprintf("%d manifests", len(p.History)))
	var names []string
	for _, l := range p.History {
		names = append(names, repo.HistoryManifestPath(s.o.Stanza, l))
	}
	return s.removeObjects(ctx, names)
}

func (p *ExpirePlan) removeDir(ctx context.Context, l repo.Label) error {
	p.s.step("expire", "files", string(l))
	return p.s.removeTree(ctx, repo.BackupDir(p.Stanza)+"/"+string(l))
}
