package action

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"holdfast/internal/catalog"
	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// Sets lists the catalogue, oldest first, and what is damaged in it.
func (a *App) Sets(ctx context.Context) ([]*catalog.Set, []error, error) {
	return a.o.Catalog.List(ctx)
}

// Set returns one set.
func (a *App) Set(ctx context.Context, id string) (*catalog.Set, error) {
	return a.o.Catalog.Get(ctx, id)
}

// Part is one share of a backup's space.
type Part struct {
	Piece  catalog.Kind `json:"piece"`
	Name   string       `json:"name"`
	Count  int64        `json:"count"`  // members or files
	Bytes  int64        `json:"bytes"`  // content
	Stored int64        `json:"stored"` // in the repository; 0: not measured for this part
}

// InspectSet says what takes the space in a set: tarball members by component and second path element, PostgreSQL by
// stanza. It reads the tarballs to their end.
func (a *App) InspectSet(ctx context.Context, id string) ([]Part, error) {
	set, err := a.o.Catalog.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	var parts []Part
	for _, p := range set.Pieces {
		if p.OnRDS() {
			parts = append(parts, Part{Piece: p.Kind, Name: p.Stanza + " " + p.Path, Count: 1, Bytes: p.Size})
			continue
		}
		if p.Kind == catalog.Postgres {
			for _, point := range pointsOf(set) {
				if point.Label == p.Label && point.Stanza == p.Stanza {
					parts = append(parts, Part{Piece: p.Kind, Name: point.Stanza + " " + point.Label, Count: 1, Bytes: point.Bytes, Stored: point.RepoBytes})
				}
			}
			continue
		}
		shares, err := inspectShares(ctx, p)
		if err != nil {
			return nil, err
		}
		parts = append(parts, shares...)
	}
	return parts, nil
}

// pointsOf are the clusters of a set that have a backup in a repository.
func pointsOf(s *catalog.Set) []catalog.PostgresPoint { return s.Local() }

// VerifySet reads every piece of a set: sizes, SHA-256, every member, the files' index, the event bus's sums, and
// PostgreSQL's backup and WAL object by object. The verdict is put into the catalogue and returned; findings are not an
// error, err is what kept it from looking.
func (a *App) VerifySet(ctx context.Context, id string) (*catalog.Verdict, error) {
	unlock, err := a.lock(ctx, "sets verify")
	if err != nil {
		return nil, err
	}
	v, err := a.verifySet(ctx, id)
	if err = errors.Join(err, unlock()); err != nil {
		return nil, err
	}
	return v, nil
}

func (a *App) verifySet(ctx context.Context, id string) (*catalog.Verdict, error) {
	set, err := a.o.Catalog.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	v := &catalog.Verdict{Check: "verify"}
	find := func(format string, args ...any) { v.Findings = append(v.Findings, fmt.Sprintf(format, args...)) }
	if set.State != catalog.Complete {
		find("the set is %s: %s", set.State, set.Error)
	}
	for _, k := range []catalog.Kind{catalog.Application} {
		if set.Piece(k) == nil {
			find("the set has no %s piece", k)
		}
	}
	if set.Mode == catalog.Apart && set.Piece(catalog.Postgres) == nil {
		find("the set has no postgres piece")
	}
	for _, p := range set.Pieces {
		a.step("verify", string(p.Kind), p.Path)
		var found []string
		switch {
		case p.OnRDS():
			found, err = a.verifySnapshot(ctx, set, p)
		case p.Kind == catalog.Postgres && p.Tool == catalog.Probackup:
			found, err = a.verifyProbackup(ctx, set, p.Path, p.Stanza, p.Label)
		case p.Kind == catalog.Postgres:
			found, err = a.verifyBackup(ctx, p.Path, p.Stanza, p.Label)
		default:
			found, err = a.verifyTarball(ctx, set, p)
		}
		if err != nil {
			return nil, err
		}
		v.Findings = append(v.Findings, found...)
	}
	v.At, v.OK = a.o.Now().UTC(), len(v.Findings) == 0
	set.Verdicts = append(set.Verdicts, *v)
	return v, a.o.Catalog.Put(ctx, set)
}

// verifyBackup checks one backup in a repository, a directory here or the one on external storage, with the WAL up to its stop.
func (a *App) verifyBackup(ctx context.Context, dir, stanza, label string) ([]string, error) {
	if _, err := os.Stat(dir); err != nil && !a.inStore(dir) {
		return []string{fmt.Sprintf("repository: %v", err)}, nil
	}
	st, err := a.openPiece(dir)
	if err != nil {
		return nil, err
	}
	w, err := a.workerAt(a.clusterOrName(stanza), dir, st)
	if err != nil {
		return nil, err
	}
	res, err := w.Verify(ctx, engine.VerifyOptions{Set: repo.Label(label), ProcessMax: a.o.ProcessMax})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if storage.IsUnavailable(err) && (res == nil || len(res.Findings) == 0) { // which says nothing about the set
		return nil, err
	}
	if res == nil {
		return []string{err.Error()}, nil
	}
	var found []string
	for _, f := range res.Findings {
		found = append(found, fmt.Sprintf("stanza %s: %s", stanza, f))
	}
	if err != nil {
		found = append(found, err.Error())
	}
	return found, nil
}

// DeletePlan is what deleting a set removes.
type DeletePlan struct {
	Set       *catalog.Set         `json:"set"`
	Files     []string             `json:"files"`
	Backups   []*engine.RemovePlan `json:"backups"`
	Snapshots []SnapshotRemoval    `json:"snapshots,omitempty"`
	Probackup []*ProbackupRemoval  `json:"pg_probackup,omitempty"`
	Last      bool                 `json:"last"` // it is the last restorable set
	Warnings  []string             `json:"warnings,omitempty"`

	a       *App
	workers []worker // of Backups
}

// PlanDeleteSet works out what goes with a set. allowLast permits deleting the last complete one.
func (a *App) PlanDeleteSet(ctx context.Context, id string, allowLast bool) (*DeletePlan, error) {
	set, err := a.o.Catalog.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	sets, _, err := a.o.Catalog.List(ctx)
	if err != nil {
		return nil, err
	}
	p := &DeletePlan{Set: set, a: a, Last: set.State == catalog.Complete}
	for _, s := range sets {
		if s.State == catalog.Complete && s.ID != id {
			p.Last = false
		}
	}
	if p.Last && !allowLast {
		return nil, fmt.Errorf("set %s is the last one that can be restored: make another first (alation_action backup_all), or say --last", id)
	}
	if f := filepath.Join(a.o.DumpDir, set.ID+kitSuffix); exists(f) { // it holds every secret
		p.Files = append(p.Files, f)
	}
	for _, piece := range set.Pieces {
		if piece.OnRDS() {
			if err := p.planSnapshot(ctx, piece); err != nil {
				return nil, err
			}
			continue
		}
		if piece.Kind != catalog.Postgres {
			for _, f := range []string{piece.Path, hiddenName(piece.Path)} {
				if _, err := os.Lstat(f); err == nil {
					p.Files = append(p.Files, f)
				}
			}
			continue
		}
		if piece.Tool == catalog.Probackup {
			if err := p.planProbackup(ctx, piece, sets); err != nil {
				return nil, err
			}
			continue
		}
		if a.inStore(piece.Path) {
			p.Warnings = append(p.Warnings, fmt.Sprintf("PostgreSQL's backup %s stays on %s, where the retention decides", piece.Label, piece.Path))
			continue
		}
		st, err := a.o.OpenRepo(piece.Path)
		if err != nil {
			return nil, err
		}
		s, err := a.stanza(piece.Stanza, st)
		if err != nil {
			return nil, err
		}
		rp, err := s.PlanRemove(ctx, repo.Label(piece.Label), allowLast || set.State != catalog.Complete)
		if errors.Is(err, engine.ErrNoBackup) || errors.Is(err, engine.ErrStanzaMissing) {
			p.Warnings = append(p.Warnings, err.Error())
			continue
		}
		if err != nil {
			return nil, err
		}
		p.Warnings = append(p.Warnings, otherSets(sets, set.ID, rp)...)
		w, err := a.worker(a.clusterOrName(piece.Stanza), piece.Path, st)
		if err != nil {
			return nil, err
		}
		p.Backups, p.workers = append(p.Backups, rp), append(p.workers, w)
	}
	return p, nil
}

// otherSets names sets that would lose a backup which depends on the one to be removed.
func otherSets(sets []*catalog.Set, id string, rp *engine.RemovePlan) []string {
	var out []string
	for _, s := range sets {
		for _, piece := range s.Pieces {
			if s.ID != id && piece.Stanza == rp.Stanza && slices.Contains(rp.Backups, repo.Label(piece.Label)) {
				out = append(out, fmt.Sprintf("set %s needs the backup too and can't be restored afterwards", s.ID))
			}
		}
	}
	return out
}

// Run deletes. The catalogue entry is failed first and removed last, so that a deletion which dies is seen and repeated.
func (p *DeletePlan) Run(ctx context.Context) error {
	unlock, err := p.a.lock(ctx, "sets delete")
	if err != nil {
		return err
	}
	return errors.Join(p.run(ctx), unlock())
}

func (p *DeletePlan) run(ctx context.Context) error {
	p.Set.State, p.Set.Error = catalog.Failed, "being deleted"
	if err := p.a.o.Catalog.Put(ctx, p.Set); err != nil {
		return err
	}
	for _, f := range p.Files {
		if base := filepath.Base(f); !strings.Contains(base, p.Set.ID) { // a doctored catalogue must not name other files
			return fmt.Errorf("the catalogue says that %s belongs to set %s, but its name does not: remove it by hand if it does", f, p.Set.ID)
		}
		if err := os.Remove(f); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	for i, b := range p.Backups {
		if err := p.workers[i].Remove(ctx, b); err != nil {
			return err
		}
	}
	if err := p.removeSnapshots(ctx); err != nil {
		return err
	}
	for _, r := range p.Probackup {
		if err := r.run(ctx); err != nil {
			return err
		}
	}
	return p.a.o.Catalog.Delete(ctx, p.Set.ID)
}
