package action

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"holdfast/internal/catalog"
	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// The retention on external storage. Who copies applies it at the end of each round, unless these credentials are to remove nothing
// there: then what is due is only named, and ExpireStore removes it with credentials that may.

// StoreExpiry is what the retention removes from the external storage.
type StoreExpiry struct {
	Store   string            `json:"store"`
	Sets    []string          `json:"sets"`          // whose tarballs go
	Backups []string          `json:"backups"`       // stanza and label
	WAL     []*engine.WALPlan `json:"wal,omitempty"` // between pinned sets and the others

	a     *App
	due   map[string][]repo.Label // by stanza: each with all that is built on it
	gone  map[string][]repo.Label // by stanza: due and what is built on them
	there storage.Storage
	sets  storage.Storage
}

// lines are what goes, for people.
func (e *StoreExpiry) lines() []string { return append(slices.Clone(e.Backups), e.Sets...) }

// planExpiry works out what the retention removes. sets are those of the catalogue: what they name stays. repository and tarballs say
// which of the two places are looked at.
func (a *App) planExpiry(ctx context.Context, sets []*catalog.Set, repository, tarballs bool) (*StoreExpiry, error) {
	e := &StoreExpiry{Store: a.o.Store.Name, Sets: []string{}, Backups: []string{}, a: a, due: map[string][]repo.Label{}, gone: map[string][]repo.Label{}}
	if a.o.Store.KeepSets == 0 {
		return e, nil
	}
	if repository {
		if err := e.planBackups(ctx, sets); err != nil {
			return nil, err
		}
	}
	if tarballs {
		if err := e.planSets(ctx, sets); err != nil {
			return nil, err
		}
	}
	return e, nil
}

func (e *StoreExpiry) planBackups(ctx context.Context, sets []*catalog.Set) (err error) {
	keep := map[string]map[repo.Label]bool{} // by stanza: of the catalogue
	for _, s := range sets {
		for _, p := range s.Pieces {
			if p.Kind == catalog.Postgres {
				if keep[p.Stanza] == nil {
					keep[p.Stanza] = map[repo.Label]bool{}
				}
				keep[p.Stanza][repo.Label(p.Label)] = true
			}
		}
	}
	if e.there, err = e.a.storeRepo(); err != nil {
		return err
	}
	stanzas, err := engine.Stanzas(ctx, e.there)
	for _, stanza := range stanzas {
		if err == nil {
			err = e.planStanza(ctx, stanza, keep[stanza])
		}
	}
	return err
}

// planStanza finds what is neither among the newest, nor young, nor of the catalogue, nor built upon by what stays.
func (e *StoreExpiry) planStanza(ctx context.Context, stanza string, keep map[repo.Label]bool) error {
	s, err := e.a.storeStanza(stanza, e.there)
	if err != nil {
		return err
	}
	info, err := s.Info(ctx, "")
	if err != nil {
		return err
	}
	o := e.a.o.Store
	young := e.a.o.Now().AddDate(0, 0, -o.KeepDays).Unix()
	stays := map[string]bool{}
	for i := len(info.Backup) - 1; i >= 0; i-- { // newest first: what is built on a backup comes before it
		b := &info.Backup[i]
		if len(info.Backup)-i <= o.KeepSets || o.KeepDays > 0 && b.Timestamp.Stop >= young || keep[repo.Label(b.Label)] {
			stays[b.Label] = true
		}
		if stays[b.Label] && b.Prior != nil {
			stays[*b.Prior] = true
		}
	}
	for i := range info.Backup {
		b := &info.Backup[i]
		if stays[b.Label] {
			continue
		}
		e.gone[stanza] = append(e.gone[stanza], repo.Label(b.Label))
		if b.Prior != nil && !stays[*b.Prior] { // goes with its prior
			continue
		}
		e.due[stanza] = append(e.due[stanza], repo.Label(b.Label))
		e.Backups = append(e.Backups, stanza+" "+b.Label)
	}
	return nil
}

// planSets finds the tarballs of old sets that the catalogue does not have any more.
func (e *StoreExpiry) planSets(ctx context.Context, sets []*catalog.Set) (err error) {
	o := e.a.o.Store
	if e.sets, err = o.OpenSets(); err != nil {
		return err
	}
	ids, err := storedSets(ctx, e.sets)
	if err != nil {
		return err
	}
	young := e.a.o.Now().UTC().AddDate(0, 0, -o.KeepDays).Format("200601021504")
	for i, id := range ids {
		known := slices.ContainsFunc(sets, func(s *catalog.Set) bool { return s.ID == id })
		if !known && len(ids)-i > o.KeepSets && (o.KeepDays == 0 || id[:12] < young) {
			e.Sets = append(e.Sets, id)
		}
	}
	return nil
}

// run removes what is due and returns what it has removed. What the storage does not permit to be removed is left, and the error names
// it, after everything else has been removed.
func (e *StoreExpiry) run(ctx context.Context) (removed []string, err error) {
	var kept []error
	denied := func(what string, err error) bool {
		if !errors.Is(err, fs.ErrPermission) || ctx.Err() != nil {
			return false
		}
		kept = append(kept, fmt.Errorf("%s can't be removed with these credentials, or not yet: %w", what, err))
		return true
	}
	for stanza, labels := range e.due {
		s, err := e.a.storeStanza(stanza, e.there)
		if err != nil {
			return removed, err
		}
		for _, label := range labels {
			plan, err := s.PlanRemove(ctx, label, false)
			if errors.Is(err, engine.ErrLastBackup) {
				continue
			}
			if err == nil {
				err = plan.Run(ctx)
			}
			if denied(stanza+" "+string(label), err) {
				continue
			}
			if err != nil {
				return removed, err
			}
			for _, l := range plan.Backups {
				removed = append(removed, stanza+" "+string(l))
			}
		}
	}
	for _, id := range e.Sets {
		err := removeStored(ctx, e.sets, id)
		if denied(id, err) {
			continue
		}
		if err != nil {
			return removed, err
		}
		removed = append(removed, id)
	}
	for _, w := range e.WAL {
		if err := w.Run(ctx); err != nil && !denied("WAL of "+w.Stanza, err) {
			return removed, err
		}
	}
	return removed, errors.Join(kept...)
}

// PlanExpireStore works out what the retention removes from the external storage now.
func (a *App) PlanExpireStore(ctx context.Context) (*StoreExpiry, error) {
	if _, err := a.store(); err != nil {
		return nil, err
	}
	sets, damaged, err := a.o.Catalog.List(ctx)
	if err = errors.Join(err, unreadable(damaged)); err != nil {
		return nil, err
	}
	e, err := a.planExpiry(ctx, complete(sets), true, true)
	return e, wrap(err, "external storage %s", a.o.Store.Name)
}

// Run removes. What was removed before an error stays so; another call goes on.
func (e *StoreExpiry) Run(ctx context.Context) ([]string, error) {
	unlock, err := e.a.lock(ctx, "sets expire-store")
	if err != nil {
		return nil, err
	}
	removed, err := e.run(ctx)
	return removed, errors.Join(wrap(err, "external storage %s", e.Store), unlock())
}

// unreadable keeps what belongs to sets whose entries can't be read: nobody knows which that is.
func unreadable(damaged []error) error {
	if len(damaged) == 0 {
		return nil
	}
	return fmt.Errorf("nothing is removed from the external storage as long as the catalogue can't be read whole: %w", errors.Join(damaged...))
}

func complete(sets []*catalog.Set) (out []*catalog.Set) {
	for _, s := range sets {
		if s.State == catalog.Complete {
			out = append(out, s)
		}
	}
	return out
}

// prune applies the retention to the external storage at the end of a round of copying; what an append-only instance leaves is named.
func (c *copyOut) prune(ctx context.Context, repository, tarballs bool) {
	if ctx.Err() != nil || c.retained || c.store.KeepSets == 0 {
		return
	}
	err := unreadable(c.damaged)
	var e *StoreExpiry
	if err == nil {
		e, err = c.planExpiry(ctx, c.sets, repository, tarballs)
	}
	switch {
	case err != nil:
	case c.store.AppendOnly:
		c.res.Due = append(c.res.Due, e.lines()...)
		if n := len(e.lines()); n > 0 {
			c.step("copy", "due", fmt.Sprintf("the retention would remove %d from %s, which is left to others: holdfast sets expire-store", n, c.store.Name))
		}
	default:
		var removed []string
		removed, err = e.run(ctx)
		c.res.Removed = append(c.res.Removed, removed...)
	}
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) { // a copy that gives way is no news
		c.warn("the retention on %s could not be applied: %v", c.store.Name, err)
	}
}

// planStore works out what goes from the external storage when the plan's sets have gone. Between what a pinned set needs and what
// the others need WAL goes there, too.
func (p *RetentionPlan) planStore(ctx context.Context) (*StoreExpiry, error) {
	o := p.a.o.Store
	if err := unreadable(p.look.damaged); err != nil && p.Rule.Sets > 0 {
		return nil, err
	}
	var stay []*catalog.Set
	for _, s := range p.Sets {
		if s.State == catalog.Complete && !s.Goes {
			stay = append(stay, s.set)
		}
	}
	e, err := p.a.planExpiry(ctx, stay, o.Postgres, o.Tarballs)
	if err != nil || e.there == nil {
		return e, err
	}
	stanzas, err := engine.Stanzas(ctx, e.there)
	if err != nil {
		return nil, err
	}
	for _, stanza := range stanzas {
		h := &shelf{stanza: stanza, owners: map[repo.Label][]string{}}
		for _, known := range p.look.sets {
			for _, piece := range known.set.Pieces {
				if l := repo.Label(piece.Label); piece.Kind == catalog.Postgres && piece.Stanza == stanza {
					h.owners[l] = append(h.owners[l], known.set.ID)
				}
			}
		}
		if h.s, err = p.a.storeStanza(stanza, e.there); err != nil {
			return nil, err
		}
		if h.lines, err = h.s.Lines(ctx); errors.Is(err, engine.ErrStanzaMissing) { // a copy that was begun
			continue
		} else if err != nil {
			return nil, err
		}
		until := h.until(p.look.sets, p.choices, func(catalog.Piece) bool { return true })
		if len(until) == 0 {
			continue
		}
		w, err := h.s.PlanWAL(ctx, until, e.gone[stanza]...)
		if err != nil {
			return nil, err
		}
		if w.Files > 0 {
			e.WAL = append(e.WAL, w)
		}
	}
	return e, nil
}

// runStore applies the retention to the external storage; what these credentials are to leave to others is named.
func (p *RetentionPlan) runStore(ctx context.Context, res *RetentionResult) error {
	o := p.a.o.Store
	e, err := p.planStore(ctx)
	switch {
	case err != nil:
	case o.AppendOnly:
		res.Due = e.lines()
		if n := len(res.Due); n > 0 {
			p.a.step("expire", "due", fmt.Sprintf("the retention would remove %d from %s, which is left to others: holdfast sets expire-store", n, o.Name))
		}
	default:
		res.Store, err = e.run(ctx)
		for _, what := range res.Store {
			p.a.step("expire", "store", what)
		}
	}
	return wrap(err, "the retention on %s", o.Name)
}
