package action

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

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
	WAL       []RepositoryWAL      `json:"wal,omitempty"` // that no other set needs, of each repository
	Bytes     int64                `json:"bytes"`         // that all of it frees
	Last      bool                 `json:"last"`          // it is the last set that can be restored, or the last that is wholly here
	Warnings  []string             `json:"warnings,omitempty"`

	a         *App
	allowLast bool
	plan      SetPlan
}

// PlanDeleteSet works out what goes with a set. A pinned one stays, and one that another is built on. allowLast permits deleting the
// last that can be restored. Errors: catalog.ErrUnknown, ErrSetStays.
func (a *App) PlanDeleteSet(ctx context.Context, id string, allowLast bool) (*DeletePlan, error) {
	if _, err := a.o.Catalog.Get(ctx, id); err != nil { // also when it is damaged
		return nil, err
	}
	l, err := a.look(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(l.sets, func(s standing) bool { return s.set.ID == id })
	if i < 0 {
		return nil, fmt.Errorf("%w: %s; see: holdfast sets list", catalog.ErrUnknown, id)
	}
	p := &DeletePlan{Set: l.sets[i].set, a: a, allowLast: allowLast, Last: l.last(i)}
	if p.Last && !allowLast {
		return nil, fmt.Errorf("%w: %s is the last one that can be restored: make another first (alation_action backup_all), or say --last", ErrSetStays, id)
	}
	if err := l.deletable(i); err != nil {
		return nil, err
	}
	choices := a.o.Keep.choose(l.sets, a.o.Now())
	for j := range choices { // all that the retention would remove is still here: WAL goes by what it would leave
		choices[j] = choice{window: choices[j].window || !l.sets[j].set.Pinned(a.o.Now())}
	}
	choices[i] = choice{goes: true, reasons: []string{"deleted on request"}}
	plans := l.plans(choices)
	p.plan, p.Bytes = plans[i], plans[i].Bytes
	for _, f := range p.plan.Files {
		p.Files = append(p.Files, f.Path)
	}
	for _, b := range p.plan.Backups {
		rp, err := l.shelf(catalog.Piece{Path: b.Repository, Stanza: b.Stanza}).s.PlanRemove(ctx, b.Label, true)
		switch {
		case errors.Is(err, engine.ErrNoBackup) || errors.Is(err, engine.ErrStanzaMissing):
			p.Warnings = append(p.Warnings, err.Error())
		case err != nil:
			return nil, err
		default:
			p.Backups = append(p.Backups, rp)
		}
	}
	if p.WAL, err = l.planWAL(ctx, choices, plans); err != nil {
		return nil, err
	}
	for _, w := range p.WAL {
		p.Bytes += w.Bytes
	}
	sets := make([]*catalog.Set, len(l.sets))
	for j := range l.sets {
		sets[j] = l.sets[j].set
	}
	for _, piece := range p.Set.Pieces {
		if piece.OnRDS() {
			if err := p.planSnapshot(ctx, piece); err != nil {
				return nil, err
			}
			continue
		}
		if piece.Tool == catalog.Probackup {
			if err := p.planProbackup(ctx, piece, sets); err != nil {
				return nil, err
			}
			continue
		}
		if piece.Kind == catalog.Postgres && a.inStore(piece.Path) {
			p.Warnings = append(p.Warnings, fmt.Sprintf("PostgreSQL's backup %s stays on %s, where the retention decides", piece.Label, piece.Path))
		}
	}
	p.plan.Snapshots, p.plan.probackup = p.Snapshots, p.Probackup
	p.Warnings = append(p.Warnings, l.notes...)
	return p, ctx.Err()
}

// last says whether the set is the only complete one, the only one that restores, or the only one that is wholly here.
func (l *look) last(i int) bool {
	s := &l.sets[i]
	if s.set.State != catalog.Complete {
		return false
	}
	complete, counted, here := 0, 0, 0
	for j := range l.sets {
		o := &l.sets[j]
		if j == i || o.set.State != catalog.Complete {
			continue
		}
		complete++
		if o.counts() {
			counted++
		}
		if o.counts() && !o.away {
			here++
		}
	}
	return complete == 0 || s.counts() && (counted == 0 || here == 0 && !s.away)
}

// deletable says what keeps a set from being deleted.
func (l *look) deletable(i int) error {
	s := &l.sets[i]
	now := l.o.Now()
	if s.set.Pinned(now) {
		return fmt.Errorf("%w: %s is %s; if it may go: holdfast sets unpin %s", ErrSetStays, s.set.ID, pinText(s.set.Pin), s.set.ID)
	}
	if s.unknown != nil {
		return fmt.Errorf("set %s: it can't be told what of it is here: %w", s.set.ID, s.unknown)
	}
	if s.strange != "" && s.set.Removal == nil {
		return fmt.Errorf("%w: this program does not know what %s of %s is", ErrSetStays, s.strange, s.set.ID)
	}
	var on []string
	for j := range l.sets {
		if o := &l.sets[j]; j != i && o.set.Removal == nil && slices.Contains(o.built, s.set.ID) {
			on = append(on, o.set.ID)
		}
	}
	if len(on) > 0 && s.set.Removal == nil {
		slices.Reverse(on)
		return fmt.Errorf("%w: what is built on %s could not be restored without it: %s; delete those first, in this order", ErrSetStays, s.set.ID, firstFew(on))
	}
	if s.unnamed != "" && s.set.Removal == nil {
		return fmt.Errorf("%w: backup %s, which belongs to no set, is built on %s; remove it first: holdfast pg expire", ErrSetStays, s.unnamed, s.set.ID)
	}
	return nil
}

// Run deletes. The catalogue entry is failed first and removed last, so that a deletion which dies is seen and completed, by the same
// command or by the next run.
func (p *DeletePlan) Run(ctx context.Context) error {
	unlock, err := p.a.lock(ctx, "sets delete")
	if err != nil {
		return err
	}
	return errors.Join(p.run(ctx), unlock())
}

func (p *DeletePlan) run(ctx context.Context) error {
	now, err := p.a.PlanDeleteSet(ctx, p.Set.ID, p.allowLast)
	if err != nil {
		return err
	}
	if err := p.a.removeSet(ctx, &now.plan); err != nil {
		return err
	}
	_, err = p.a.removeWAL(ctx, now.WAL)
	return err
}
