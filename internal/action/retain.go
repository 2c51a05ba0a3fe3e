package action

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"holdfast/internal/catalog"
	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/repo"
)

// SetPlan is what the retention, or a deletion, does with one set, and why.
type SetPlan struct {
	ID      string        `json:"id"`
	State   catalog.State `json:"state"`
	Goes    bool          `json:"goes"`
	Reasons []string      `json:"reasons"`
	Files   []GoneFile    `json:"files"`   // tarballs and the recovery kit
	Backups []GoneBackup  `json:"backups"` // of PostgreSQL, in repositories here
	Bytes   int64         `json:"bytes"`   // of both

	Snapshots []SnapshotRemoval `json:"snapshots,omitempty"` // on Amazon RDS

	set       *catalog.Set
	probackup []*ProbackupRemoval // of a deletion on request
	stays     []repo.Label        // backups of a set that goes, which another is built on
}

// GoneFile is a file that goes.
type GoneFile struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
}

// GoneBackup is a PostgreSQL backup that goes.
type GoneBackup struct {
	Repository string     `json:"repository"`
	Stanza     string     `json:"stanza"`
	Label      repo.Label `json:"label"`
	Bytes      int64      `json:"bytes"` // that it added
}

// RepositoryWAL is the WAL that goes from one repository.
type RepositoryWAL struct {
	Repository string `json:"repository"`
	engine.WALPlan

	shelf *shelf
	until map[repo.Label]string
}

// RetentionPlan is what the retention does. Nothing has been changed.
type RetentionPlan struct {
	Rule  RetentionRule   `json:"rule"`
	Sets  []SetPlan       `json:"sets"` // oldest first
	WAL   []RepositoryWAL `json:"wal"`
	Bytes int64           `json:"bytes"`           // freed here
	Store *StoreExpiry    `json:"store,omitempty"` // on external storage; nil: there is none, or it could not be asked
	Notes []string        `json:"notes,omitempty"`

	a       *App
	look    *look
	choices []choice // of look.sets
}

// RetentionResult is what was done.
type RetentionResult struct {
	Removed []string `json:"removed"`           // sets
	Emptied []string `json:"emptied,omitempty"` // failed runs whose leftovers went
	Bytes   int64    `json:"bytes"`             // freed here
	Store   []string `json:"store,omitempty"`   // removed from external storage
	Due     []string `json:"due,omitempty"`     // to be removed there, and left to other credentials
}

// PlanRetention works out what goes and what stays, and why, without changing anything.
func (a *App) PlanRetention(ctx context.Context) (*RetentionPlan, error) {
	p, err := a.planRetention(ctx, nil)
	if err != nil || a.o.Store == nil {
		return p, err
	}
	if p.Store, err = p.planStore(ctx); err != nil {
		p.Notes = append(p.Notes, fmt.Sprintf("what goes from %s can't be told: %v", a.o.Store.Name, err))
	}
	return p, ctx.Err()
}

// planRetention is PlanRetention without the external storage. current is the set that has just been made, if any: it is the newest,
// whatever the clock says.
func (a *App) planRetention(ctx context.Context, current *catalog.Set) (*RetentionPlan, error) {
	l, err := a.look(ctx)
	if err != nil {
		return nil, err
	}
	if current != nil && current.Run == a.o.ExecID { // one that a dead run left need not be the newest
		if i := slices.IndexFunc(l.sets, func(s standing) bool { return s.set.ID == current.ID }); i >= 0 {
			made := l.sets[i]
			l.sets = append(slices.Delete(l.sets, i, i+1), made)
		}
	}
	p := &RetentionPlan{Rule: a.o.Keep, Sets: []SetPlan{}, WAL: []RepositoryWAL{}, a: a, look: l}
	p.choices = p.Rule.choose(l.sets, a.o.Now())
	p.Sets = l.plans(p.choices)
	counted := 0
	for i := range l.sets {
		if l.sets[i].counts() {
			counted++
		}
	}
	if counted == 0 && p.Rule.Sets > 0 && slices.ContainsFunc(l.sets, func(s standing) bool { return s.set.State == catalog.Complete }) {
		p.Notes = append(p.Notes, "no set restores as far as is known, so none goes")
	}
	if p.Rule.Sets > 0 || slices.ContainsFunc(p.Sets, func(s SetPlan) bool { return s.Goes }) {
		if p.WAL, err = l.planWAL(ctx, p.choices, p.Sets); err != nil {
			return nil, err
		}
	}
	p.Notes = append(l.notes, p.Notes...)
	for _, s := range p.Sets {
		p.Bytes += s.Bytes
		if s.Goes && s.State == catalog.Complete && a.copies() && !copyWhole(s.set) {
			p.Notes = append(p.Notes, fmt.Sprintf("set %s goes without having been copied whole to %s", s.ID, a.o.Store.Name))
		}
	}
	for _, w := range p.WAL {
		p.Bytes += w.Bytes
	}
	return p, ctx.Err()
}

// copies says whether sets are to be copied to external storage.
func (a *App) copies() bool { return a.o.Store != nil && (a.o.Store.Postgres || a.o.Store.Tarballs) }

func copyWhole(s *catalog.Set) bool { return s.Copy != nil && s.Copy.Error == "" }

// plans says for each set what of it goes.
func (l *look) plans(choices []choice) []SetPlan {
	whole := map[string]bool{} // sets that stay with all that they have
	for i := range choices {
		whole[l.sets[i].set.ID] = !choices[i].goes && !choices[i].strip
	}
	needed := map[*shelf]map[repo.Label]bool{}
	for _, h := range l.shelves {
		needed[h] = h.needed(func(id string) bool { return whole[id] })
	}
	out := []SetPlan{}
	for i, c := range choices {
		set := l.sets[i].set
		p := SetPlan{ID: set.ID, State: set.State, Goes: c.goes, Reasons: c.reasons, Files: []GoneFile{}, Backups: []GoneBackup{}, set: set}
		if c.goes || c.strip {
			p.Files = l.goneFiles(set)
			for _, piece := range set.Pieces {
				if piece.OnRDS() {
					p.Snapshots = append(p.Snapshots, SnapshotRemoval{Stanza: piece.Stanza, Region: piece.Region, Snapshot: piece.Label})
				}
				if !l.held(piece) {
					continue
				}
				h, label := l.shelf(piece), repo.Label(piece.Label)
				if needed[h][label] {
					p.stays = append(p.stays, label)
					p.Reasons = append(p.Reasons, fmt.Sprintf("its backup %s stays: another is built on it", label))
					continue
				}
				b := GoneBackup{Repository: h.dir, Stanza: h.stanza, Label: label}
				if line := h.line(label); line != nil {
					b.Bytes = line.RepoSizeDelta
				} else if set.State == catalog.Complete {
					l.note("backup %s of set %s is not in %s any more", label, set.ID, h.dir)
				}
				p.Backups = append(p.Backups, b)
			}
		}
		for _, f := range p.Files {
			p.Bytes += f.Bytes
		}
		for _, b := range p.Backups {
			p.Bytes += b.Bytes
		}
		out = append(out, p)
	}
	return out
}

// goneFiles are the files of a set that are here: tarballs, also under their unfinished names, and the recovery kit, which holds
// every secret.
func (a *App) goneFiles(set *catalog.Set) []GoneFile {
	names := []string{filepath.Join(a.o.DumpDir, set.ID+kitSuffix)}
	if set.Kit != nil {
		names = append(names, set.Kit.Path)
	}
	for _, p := range set.Pieces {
		if p.Kind == catalog.Application || p.Kind == catalog.EventBus {
			names = append(names, p.Path, hiddenName(p.Path))
		}
	}
	files := []GoneFile{}
	for i, name := range names {
		info, err := os.Lstat(name)
		if err == nil && info.Mode().IsDir() || os.IsNotExist(err) || slices.Contains(names[:i], name) {
			continue
		}
		f := GoneFile{Path: name}
		if err == nil { // else removing it will say what is wrong
			f.Bytes = info.Size()
		}
		files = append(files, f)
	}
	return files
}

// planWAL finds the WAL that nothing needs any more, in the repositories that sets have.
func (l *look) planWAL(ctx context.Context, choices []choice, sets []SetPlan) ([]RepositoryWAL, error) {
	out := []RepositoryWAL{}
	for _, h := range l.shelves {
		if h.absent || h.err != nil {
			continue
		}
		var without []repo.Label
		for _, s := range sets {
			for _, b := range s.Backups {
				if b.Repository == h.dir && b.Stanza == h.stanza {
					without = append(without, b.Label)
				}
			}
		}
		until := h.until(l.sets, choices, func(p catalog.Piece) bool { return p.Path == h.dir })
		w, err := h.s.PlanWAL(ctx, until, without...)
		if err != nil {
			return nil, fmt.Errorf("repository %s: %w", h.dir, err)
		}
		for _, text := range w.Warnings {
			l.note("repository %s, stanza %s: %s", h.dir, h.stanza, text)
		}
		l.unnamed(h)
		out = append(out, RepositoryWAL{Repository: h.dir, WALPlan: *w, shelf: h, until: until})
	}
	return out, nil
}

// unnamed notes the backups that no set has: they stay, with all WAL since.
func (l *look) unnamed(h *shelf) {
	var labels []string
	for i := range h.lines {
		if b := &h.lines[i]; len(h.owners[b.Label]) == 0 {
			labels = append(labels, string(b.Label))
		}
	}
	if len(labels) > 0 {
		l.note("of stanza %s in %s these backups belong to no set and stay, with all WAL since the first: %s; to remove one with what is built on it: holdfast pg expire --stanza=%s --repo1-path=%s --set=%s",
			h.stanza, h.dir, firstFew(labels), h.stanza, h.dir, labels[0])
	}
}

// until says of the backups that need only the WAL up to their recovery point which segment that is: those of sets that stay because
// they are pinned, and what such sets are built on, if a set has it. here says whether a piece lies on this shelf.
func (h *shelf) until(sets []standing, choices []choice, here func(catalog.Piece) bool) map[repo.Label]string {
	without := map[repo.Label]bool{} // without an end
	last := map[repo.Label]string{}
	bound := func(l repo.Label, segment string) {
		if b := h.line(l); b != nil {
			last[l] = max(last[l], segment, b.ArchiveStop)
		}
	}
	for i := range choices {
		if choices[i].goes || choices[i].strip {
			continue
		}
		for _, p := range sets[i].set.Pieces {
			if p.Kind != catalog.Postgres || p.Stanza != h.stanza || !here(p) {
				continue
			}
			for _, on := range h.chain(repo.Label(p.Label)) {
				if choices[i].window {
					without[on] = true
				} else {
					bound(on, "")
				}
			}
			for _, point := range pointsOf(sets[i].set) {
				if point.Stanza == p.Stanza && point.Label == p.Label && len(point.Segment) == 24 {
					bound(repo.Label(p.Label), point.Segment)
				}
			}
		}
	}
	maps.DeleteFunc(last, func(l repo.Label, segment string) bool { return without[l] || len(h.owners[l]) == 0 || segment == "" })
	return last
}

// Run removes what the plan says, if that is still what goes. What could not be removed is an error and does not keep the rest from
// going; another call goes on with it. Cancelled: nothing further is removed.
func (p *RetentionPlan) Run(ctx context.Context) (*RetentionResult, error) {
	unlock, err := p.a.lock(ctx, "sets expire")
	if err != nil {
		return nil, err
	}
	now, err := p.a.planRetention(ctx, nil)
	if err == nil && !slices.Equal(now.going(), p.going()) {
		err = errors.New("the sets changed since the plan was made: make the plan again")
	}
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	res, err := now.run(ctx, nil)
	return res, errors.Join(err, unlock())
}

// idle reports whether nothing is to be done about the set: it stays, or waits only for what is built on a backup of it.
func (s *SetPlan) idle() bool {
	return len(s.Files)+len(s.Backups)+len(s.Snapshots) == 0 && (!s.Goes || len(s.stays) > 0 && s.set.Removal != nil)
}

// Empty reports whether nothing would be removed.
func (p *RetentionPlan) Empty() bool {
	if p.Store != nil && len(p.Store.Backups)+len(p.Store.Sets)+len(p.Store.WAL) > 0 {
		return false
	}
	return len(p.going()) == 0 && !slices.ContainsFunc(p.WAL, func(w RepositoryWAL) bool { return w.Files > 0 })
}

// going names what goes.
func (p *RetentionPlan) going() (out []string) {
	for i := range p.Sets {
		if !p.Sets[i].idle() {
			out = append(out, p.Sets[i].ID)
		}
	}
	return out
}

// run removes: the sets one after the other, newest first, so that none goes before what is built on it; then WAL; then what the
// external storage has beyond the retention. current is the set of the run that goes on, whose entry is the caller's; nil: none.
func (p *RetentionPlan) run(ctx context.Context, current *catalog.Set) (*RetentionResult, error) {
	res := &RetentionResult{Removed: []string{}}
	var errs []error
	for i := len(p.Sets) - 1; i >= 0 && ctx.Err() == nil; i-- {
		s := &p.Sets[i]
		if s.idle() {
			continue
		}
		if err := p.a.removeSet(ctx, s); err != nil {
			errs = append(errs, fmt.Errorf("set %s: %w", s.ID, err))
			continue
		}
		res.Bytes += s.Bytes
		switch {
		case !s.Goes:
			res.Emptied = append(res.Emptied, s.ID)
		case len(s.stays) == 0:
			res.Removed = append(res.Removed, s.ID)
		}
	}
	n, err := p.a.removeWAL(ctx, p.WAL)
	res.Bytes += n
	err = errors.Join(append(errs, err, ctx.Err())...)
	if p.a.o.Store != nil && ctx.Err() == nil {
		err = errors.Join(err, p.runStore(ctx, res))
	}
	return res, errors.Join(err, p.record(ctx, res, err, current))
}

// removeWAL removes WAL that no backup needs, and returns the bytes that it held.
func (a *App) removeWAL(ctx context.Context, plans []RepositoryWAL) (n int64, err error) {
	var errs []error
	for i := range plans {
		if ctx.Err() != nil {
			break
		}
		w := &plans[i]
		if w.Files == 0 {
			continue
		}
		if err := w.Run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("repository %s: %w", w.Repository, err))
			continue
		}
		n += w.Bytes
	}
	return n, errors.Join(errs...)
}

// removeSet removes one set, or what a failed one left. First the entry says that it is no set any more, last it goes; with a backup
// of it that another is built on it stays, until that one goes.
func (a *App) removeSet(ctx context.Context, s *SetPlan) error {
	a.step("expire", "set", s.ID)
	for _, f := range s.Files {
		if !belongs(f.Path, s.ID) {
			return fmt.Errorf("the catalogue says that %s belongs to it, but its name does not: remove it by hand if it does", f.Path)
		}
	}
	if s.Goes && s.set.Removal == nil {
		why := strings.Join(s.Reasons, "; ")
		s.set.State, s.set.Error = catalog.Failed, "being removed: "+why
		s.set.Removal = &catalog.Removal{Reason: why, At: a.o.Now().UTC()}
		if err := a.o.Catalog.Put(ctx, s.set); err != nil {
			return err
		}
	}
	if err := removeFiles(ctx, s); err != nil {
		return err
	}
	for _, b := range s.Backups {
		if err := a.removeBackup(ctx, b); err != nil {
			return err
		}
	}
	for _, r := range s.probackup {
		if err := r.run(ctx); err != nil {
			return err
		}
	}
	if err := a.removeSnapshots(ctx, s.set, s.Snapshots); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	a.step("expire", "catalogue", s.ID)
	s.set.Pieces = slices.DeleteFunc(s.set.Pieces, func(p catalog.Piece) bool {
		return p.Kind != catalog.Postgres || !slices.Contains(s.stays, repo.Label(p.Label))
	})
	if !s.Goes || len(s.set.Pieces) > 0 {
		return a.o.Catalog.Put(ctx, s.set)
	}
	return a.o.Catalog.Delete(ctx, s.ID)
}

// removeFiles removes the files of a set, for good: before its entry goes, no crash may bring them back.
func removeFiles(ctx context.Context, s *SetPlan) error {
	dirs := map[string]bool{}
	for _, f := range s.Files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := os.Remove(f.Path); err != nil && !os.IsNotExist(err) {
			return err
		}
		dirs[filepath.Dir(f.Path)] = true
	}
	for dir := range dirs {
		if err := durable.SyncDir(dir); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

// removeBackup removes one backup, and nothing that is listed beside it.
func (a *App) removeBackup(ctx context.Context, b GoneBackup) error {
	st, err := a.o.OpenRepo(b.Repository)
	if err != nil {
		return fmt.Errorf("repository %s: %w", b.Repository, err)
	}
	s, err := a.stanza(b.Stanza, st)
	if err != nil {
		return err
	}
	plan, err := s.PlanRemove(ctx, b.Label, true)
	if errors.Is(err, engine.ErrNoBackup) || errors.Is(err, engine.ErrStanzaMissing) {
		return nil
	}
	if err != nil {
		return err
	}
	lines, err := s.Lines(ctx)
	if err != nil {
		return err
	}
	for _, l := range lines {
		if l.Label != b.Label && slices.Contains(plan.Backups, l.Label) {
			return fmt.Errorf("backup %s of stanza %s stays: backup %s is built on it", b.Label, b.Stanza, l.Label)
		}
	}
	w, err := a.worker(a.clusterOrName(b.Stanza), b.Repository, st)
	if err != nil {
		return err
	}
	return w.Remove(ctx, plan)
}

// record notes in the newest complete set what was done. What happened is noted although the run's time may be over.
func (p *RetentionPlan) record(ctx context.Context, res *RetentionResult, failed error, current *catalog.Set) error {
	if len(res.Removed)+len(res.Emptied) == 0 && res.Bytes == 0 && failed == nil && current == nil {
		return nil
	}
	set := current
	for i := len(p.Sets) - 1; i >= 0 && set == nil; i-- {
		if s := p.Sets[i].set; s.State == catalog.Complete {
			set = s
		}
	}
	if set == nil {
		return nil
	}
	set.Retention = &catalog.Retention{At: p.a.o.Now().UTC(), Removed: res.Removed, Bytes: res.Bytes}
	if failed != nil {
		set.Retention.Error = failed.Error()
	}
	return p.a.o.Catalog.Put(context.WithoutCancel(ctx), set)
}

// retain applies the retention at the end of a run whose set is complete. That it could not is a warning.
func (a *App) retain(ctx context.Context, set *catalog.Set) {
	if ctx.Err() != nil {
		a.warn("the retention was not applied, the run's time was over: the next run does it, or now: holdfast sets expire")
		return
	}
	a.step("backup_all", "retention", set.ID)
	p, err := a.planRetention(ctx, set)
	if err == nil {
		for _, n := range p.Notes {
			a.step("expire", "note", n)
		}
		var res *RetentionResult
		if res, err = p.run(ctx, set); len(res.Removed) > 0 {
			a.step("expire", "removed", fmt.Sprintf("%s: %s", strings.Join(res.Removed, ", "), engine.Size(res.Bytes)))
		}
	}
	if err != nil {
		a.warn("the retention could not be applied, the next run goes on with it, or now: holdfast sets expire (%v)", err)
	}
}
