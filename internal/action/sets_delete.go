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
)

// DeletePlan is what deleting a set removes.
type DeletePlan struct {
	Set        *catalog.Set         `json:"set"`
	Dependents []*catalog.Set       `json:"dependents,omitempty"` // sets whose PostgreSQL backups are built on its: they go with it
	Files      []string             `json:"files"`
	Backups    []*engine.RemovePlan `json:"backups"`
	Last       bool                 `json:"last"` // no restorable set is left
	Warnings   []string             `json:"warnings,omitempty"`

	a       *App
	workers []deleter // of Backups
}

// PlanDeleteSet works out what goes with a set. allowLast permits deleting the last complete one. A set on which others are
// built is a *NeededError.
func (a *App) PlanDeleteSet(ctx context.Context, id string, allowLast bool) (*DeletePlan, error) {
	return a.planDelete(ctx, id, false, allowLast)
}

// PlanDeleteChain is PlanDeleteSet for a set and all that are built on it (SetsThatNeed).
func (a *App) PlanDeleteChain(ctx context.Context, id string, allowLast bool) (*DeletePlan, error) {
	return a.planDelete(ctx, id, true, allowLast)
}

func (a *App) planDelete(ctx context.Context, id string, dependents, allowLast bool) (*DeletePlan, error) {
	set, err := a.o.Catalog.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	sets, _, err := a.o.Catalog.List(ctx)
	if err != nil {
		return nil, err
	}
	group := a.builtOn(sets, id)
	for {
		p := &DeletePlan{Set: set, Dependents: group, a: a}
		if len(group) > 0 && !dependents {
			return nil, &NeededError{id, idsOf(group)}
		}
		p.Last = !slices.ContainsFunc(sets, func(s *catalog.Set) bool { return s.State == catalog.Complete && !p.has(s.ID) }) &&
			slices.ContainsFunc(p.all(), func(s *catalog.Set) bool { return s.State == catalog.Complete })
		if p.Last && !allowLast {
			return nil, fmt.Errorf("set %s is the last one that can be restored: make another first (alation_action backup_all), or say --last", id)
		}
		for _, s := range p.all() {
			if err := p.add(ctx, s, allowLast); err != nil {
				return nil, err
			}
		}
		more := p.alsoTaken(sets)
		if len(more) == 0 {
			return p, nil
		}
		group = append(group, more...) // the repository knows of a chain that the sets do not tell
	}
}

// builtOn is SetsThatNeed but for what lies on external storage, where a deletion here removes nothing.
func (a *App) builtOn(sets []*catalog.Set, id string) (out []*catalog.Set) {
	here := make([]*catalog.Set, len(sets))
	for i, s := range sets {
		local := *s
		local.Pieces = slices.DeleteFunc(slices.Clone(s.Pieces), func(p catalog.Piece) bool { return a.inStore(p.Path) })
		here[i] = &local
	}
	for _, need := range SetsThatNeed(here, id) {
		out = append(out, sets[slices.Index(here, need)])
	}
	return out
}

func idsOf(sets []*catalog.Set) (out []string) {
	for _, s := range sets {
		out = append(out, s.ID)
	}
	return out
}

// all are the sets that go, the one that was asked for first.
func (p *DeletePlan) all() []*catalog.Set { return append([]*catalog.Set{p.Set}, p.Dependents...) }

func (p *DeletePlan) has(id string) bool {
	return slices.ContainsFunc(p.all(), func(s *catalog.Set) bool { return s.ID == id })
}

// add takes the pieces of one set into the plan.
func (p *DeletePlan) add(ctx context.Context, set *catalog.Set, allowLast bool) error {
	a := p.a
	if f := filepath.Join(a.o.DumpDir, set.ID+kitSuffix); exists(f) { // it holds every secret
		p.Files = append(p.Files, f)
	}
	for _, piece := range set.Pieces {
		if piece.Kind != catalog.Postgres {
			for _, f := range []string{piece.Path, hiddenName(piece.Path)} {
				if _, err := os.Lstat(f); err == nil {
					p.Files = append(p.Files, f)
				}
			}
			continue
		}
		if a.inStore(piece.Path) {
			p.Warnings = append(p.Warnings, fmt.Sprintf("PostgreSQL's backup %s stays on %s, where the retention decides", piece.Label, piece.Path))
			continue
		}
		if p.covers(piece) {
			continue
		}
		st, err := a.o.OpenRepo(piece.Path)
		if err != nil {
			return err
		}
		s, err := a.stanza(piece.Stanza, st)
		if err != nil {
			return err
		}
		rp, err := s.PlanRemove(ctx, repo.Label(piece.Label), allowLast || set.State != catalog.Complete)
		if errors.Is(err, engine.ErrNoBackup) || errors.Is(err, engine.ErrStanzaMissing) {
			p.Warnings = append(p.Warnings, err.Error())
			continue
		}
		if err != nil {
			return err
		}
		w, err := a.worker(a.clusterOrName(piece.Stanza), piece.Path, st)
		if err != nil {
			return err
		}
		p.Backups, p.workers = append(p.Backups, rp), append(p.workers, deleter{w, piece.Path})
	}
	return nil
}

// deleter is a worker that knows the directory of its repository.
type deleter struct {
	worker
	dir string
}

// covers says whether a backup goes already, with one that it is built on.
func (p *DeletePlan) covers(piece catalog.Piece) bool {
	for i, rp := range p.Backups {
		if p.workers[i].dir == piece.Path && rp.Stanza == piece.Stanza && slices.Contains(rp.Backups, repo.Label(piece.Label)) {
			return true
		}
	}
	return false
}

// alsoTaken are sets outside the plan that would lose a backup by it.
func (p *DeletePlan) alsoTaken(sets []*catalog.Set) (out []*catalog.Set) {
	for _, s := range sets {
		if !p.has(s.ID) && slices.ContainsFunc(s.Pieces, func(piece catalog.Piece) bool { return piece.Kind == catalog.Postgres && p.covers(piece) }) {
			out = append(out, s)
		}
	}
	return out
}

// Run deletes. The catalogue entries are failed first and removed last, that of the set that was asked for at the end, so that a
// deletion which dies is seen and repeated.
func (p *DeletePlan) Run(ctx context.Context) error {
	unlock, err := p.a.lock("sets delete")
	if err != nil {
		return err
	}
	return errors.Join(p.run(ctx), unlock())
}

func (p *DeletePlan) run(ctx context.Context) error {
	if err := p.unchanged(ctx); err != nil {
		return err
	}
	for _, s := range slices.Backward(p.all()) {
		s.State, s.Error = catalog.Failed, "being deleted"
		if err := p.a.o.Catalog.Put(ctx, s); err != nil {
			return err
		}
	}
	for _, f := range p.Files {
		if !slices.ContainsFunc(p.all(), func(s *catalog.Set) bool { return strings.Contains(filepath.Base(f), s.ID) }) { // a doctored catalogue must not name other files
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
	for _, s := range slices.Backward(p.all()) {
		if err := p.a.o.Catalog.Delete(ctx, s.ID); err != nil {
			return err
		}
	}
	return nil
}

// unchanged makes sure that no set was built on those of the plan since it was made.
func (p *DeletePlan) unchanged(ctx context.Context) error {
	sets, _, err := p.a.o.Catalog.List(ctx)
	if err != nil {
		return err
	}
	for _, s := range p.all() {
		for _, d := range p.a.builtOn(sets, s.ID) {
			if !p.has(d.ID) {
				return fmt.Errorf("set %s has been built on %s since the plan was made: make the plan again; nothing was deleted", d.ID, s.ID)
			}
		}
	}
	return nil
}
