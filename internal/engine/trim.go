package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
)

// WALPlan is the WAL of a stanza that no backup needs.
type WALPlan struct {
	Stanza   string       `json:"stanza"`
	WAL      []ExpiredWAL `json:"wal"`
	Files    int          `json:"files"`
	Bytes    int64        `json:"bytes"`
	Warnings []string     `json:"warnings,omitempty"`

	s     *Stanza
	until map[repo.Label]string
}

// Lines are the backups that backup.info lists, oldest first, with what they are built on. A complete backup that a run which
// died could not enter any more is among them. Errors: ErrStanzaMissing; those of the storage.
func (s *Stanza) Lines(ctx context.Context) ([]repo.BackupLine, error) {
	_, bi, err := s.loadInfos(ctx)
	if err != nil {
		return nil, err
	}
	if _, _, _, err := s.reconcile(ctx, bi); err != nil {
		return nil, fmt.Errorf("stanza %s: %w", s.o.Stanza, err)
	}
	return bi.Backups, nil
}

// PlanWAL works out which WAL goes, without changing anything. A backup needs all WAL from its start on, on every timeline; one
// that is in until needs it up to that segment and no further, one of without, which is about to be removed, needs none. Those that
// are not listed do not matter. Of a cluster that has no backup whose WAL is without end everything stays if it is the stanza's
// current one: its next backup may be under way. Timeline histories stay as long as their cluster has a backup. Errors: ErrStanzaMissing; repo.ErrFormat when the info files contradict each other; the storage's.
func (s *Stanza) PlanWAL(ctx context.Context, until map[repo.Label]string, without ...repo.Label) (*WALPlan, error) {
	p := &WALPlan{Stanza: s.o.Stanza, WAL: []ExpiredWAL{}, s: s, until: maps.Clone(until)}
	for l, segment := range until {
		if !pg.IsSegmentName(segment) {
			return nil, fmt.Errorf("stanza %s: backup %s needs WAL up to %q: not the name of a WAL segment", s.o.Stanza, l, segment)
		}
	}
	ai, bi, err := s.loadInfos(ctx)
	if err != nil {
		return nil, err
	}
	if err := sameHistory(ai, bi); err != nil {
		return nil, fmt.Errorf("stanza %s: plan which WAL goes: %w", s.o.Stanza, err)
	}
	_, _, warnings, err := s.reconcile(ctx, bi)
	if err == nil {
		bi.Backups = slices.DeleteFunc(bi.Backups, func(l repo.BackupLine) bool { return slices.Contains(without, l.Label) })
		err = p.plan(ctx, ai, bi)
	}
	if err != nil {
		return nil, fmt.Errorf("stanza %s: plan which WAL goes: %w", s.o.Stanza, err)
	}
	p.Warnings = append(warnings, p.Warnings...)
	return p, nil
}

func (p *WALPlan) plan(ctx context.Context, ai *repo.ArchiveInfo, bi *repo.BackupInfo) error {
	e := &ExpirePlan{Stanza: p.Stanza, s: p.s, bi: bi}
	ids, err := e.archiveIDs(ctx, ai)
	if err != nil {
		return err
	}
	for _, id := range ids {
		c := p.cut(bi, id.ID)
		switch {
		case c.all:
		case c.none:
			err = e.wholeDir(ctx, repo.ArchiveID(id.Version, id.ID), "")
		default:
			err = e.planWAL(ctx, repo.ArchiveID(id.Version, id.ID), &c)
		}
		if err != nil {
			return err
		}
	}
	for _, w := range e.WAL {
		if w.Files == 0 && !w.Whole {
			continue
		}
		p.WAL, p.Files, p.Bytes = append(p.WAL, w), p.Files+w.Files, p.Bytes+w.Bytes
	}
	p.Warnings = e.Warnings
	return nil
}

// beyond is behind every segment.
const beyond = "FFFFFFFFFFFFFFFFFFFFFFFF"

// cut says which WAL of a cluster stays.
func (p *WALPlan) cut(bi *repo.BackupInfo, db int) walCut {
	c := walCut{from: beyond}
	backups := 0
	for _, l := range bi.Backups {
		if l.DBID != db {
			continue
		}
		backups++
		if l.ArchiveStart == "" { // made offline: there is no segment to count from
			return walCut{all: true}
		}
		if last, bounded := p.until[l.Label]; bounded {
			c.keep = append(c.keep, walSpan{l.ArchiveStart, max(last, l.ArchiveStop)})
			continue
		}
		// By name, as a timeline with a greater number is a later one, and by place, whatever the timeline is.
		c.from, c.position = min(c.from, l.ArchiveStart), oldest(c.position, position(l.ArchiveStart))
	}
	switch {
	case c.position != "":
		c.keep = append(c.keep, walSpan{first: c.from})
	case db == bi.Current:
		return walCut{all: true}
	case backups == 0:
		return walCut{none: true}
	}
	return c
}

// Run removes. What goes is found again under the backup lock: a backup that was completed meanwhile keeps its WAL, and so does one of
// without that is still there. If more goes than was planned, nothing does. A run that dies is completed by planning and running again. ErrStopped while a stop file is there.
func (p *WALPlan) Run(ctx context.Context) error {
	if len(p.WAL) == 0 {
		return nil
	}
	s := p.s
	if err := s.stopped(); err != nil {
		return err
	}
	release, err := s.lock(repo.LockBackup)
	if err != nil {
		return err
	}
	return wrap(errors.Join(p.run(ctx), release()), "stanza %s: remove WAL that no backup needs", s.o.Stanza)
}

func (p *WALPlan) run(ctx context.Context) error {
	now, err := p.s.PlanWAL(ctx, p.until)
	if err != nil {
		return err
	}
	if now.Files > p.Files {
		return errors.New("the repository changed since the plan was made: make the plan again")
	}
	for i := range now.WAL {
		w := &now.WAL[i]
		p.s.step("expire", "wal", fmt.Sprintf("%s: %d files", w.Dir, w.Files))
		if !w.Whole {
			err = p.s.removeObjects(ctx, w.Names)
		} else {
			err = p.s.removeTree(ctx, repo.ArchiveDir(p.Stanza)+"/"+w.Dir)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
