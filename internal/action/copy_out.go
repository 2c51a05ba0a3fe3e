package action

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"holdfast/internal/catalog"
	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// Copies on external storage. A set is complete before any of this begins, archive_command knows nothing of it, and whatever goes
// wrong here is a warning: the next run copies what this one could not, oldest set first.

// CopyReport is what a run, or sets copy, did with the external storage.
type CopyReport struct {
	Store    string              `json:"store"`
	Copied   []string            `json:"copied"`  // sets that are there whole since this run
	Behind   []string            `json:"behind"`  // sets that are not, although they are to be
	Objects  int                 `json:"objects"` // of PostgreSQL's repository
	Bytes    int64               `json:"bytes"`
	Segments int                 `json:"segments"` // WAL among them
	WAL      []catalog.CopiedWAL `json:"wal"`      // how far it reaches there
	LastSet  string              `json:"last_set"`
	Removed  []string            `json:"removed,omitempty"` // by the retention there
	Due      []string            `json:"due,omitempty"`     // what the retention would remove and these credentials leave to others
	Warnings []string            `json:"warnings,omitempty"`
}

// copyOut is one round of copying.
type copyOut struct {
	*App
	store *StoreOptions
	sets  []*catalog.Set // complete ones, oldest first
	here  storage.Storage
	there storage.Storage // PostgreSQL's repository on the external storage
	local map[string][]repo.Label
	late  []*catalog.Set // of sets: an earlier round could not copy them
	away  error          // the storage does not answer: it is not waited for once more
	res   CopyReport

	damaged  []error // entries of the catalogue that can't be read
	retained bool    // the retention is applied afterwards, here and there together
}

// CopySets brings the external storage up to the catalogue: every complete set that is not there, oldest first, and all WAL. It is
// what backup_all does at its end, by itself; run between backups it keeps the window of the copy growing. Problems with the
// storage are warnings in the report; the error is for what kept it from beginning.
func (a *App) CopySets(ctx context.Context) (*CopyReport, error) {
	if _, err := a.store(); err != nil {
		return nil, err
	}
	unlock, err := a.lock(ctx, "sets copy")
	if err != nil {
		return nil, err
	}
	c, err := a.newCopyOut(ctx, nil)
	if err == nil {
		c.tarballs(ctx)
		c.postgres(ctx)
		err = c.finish(ctx)
	}
	if err = errors.Join(err, unlock()); err != nil {
		return nil, err
	}
	return &c.res, ctx.Err()
}

// afterwards is what a run does when its set is complete: the recovery kit; tarballs to the external storage, before the program that may take them
// away gets them; that program; PostgreSQL to the external storage; the retention. Kit and program are also for the sets of dead runs
// that did not come to it. None of it makes the run fail. Only an interrupted run is an error, with the set complete all the same.
func (a *App) afterwards(ctx context.Context, set *catalog.Set, settled []*catalog.Set) error {
	kept := context.WithoutCancel(ctx) // what happened is recorded although the run's time may be over
	for _, s := range append(settled[:len(settled):len(settled)], set) {
		if s.Kit != nil || a.o.Kit == nil {
			continue
		}
		a.writeKit(ctx, s)
		if s.Kit != nil {
			if s.Copy != nil { // it was copied without
				s.Copy.Tarballs = false
			}
			if err := a.o.Catalog.Put(kept, s); err != nil {
				a.warn("%v", err)
			}
		}
	}
	var c *copyOut
	if o := a.o.Store; o != nil && (o.Postgres || o.Tarballs) {
		var err error
		if c, err = a.newCopyOut(ctx, set); err != nil {
			a.warn("nothing is copied to %s: %v", o.Name, err)
		} else {
			c.retained = true
			a.step("backup_all", "copy-tarballs", o.Name)
			c.tarballs(ctx)
		}
	}
	for i, s := range append([]*catalog.Set{set}, settled...) { // its own first: a slow program must not take the time of all runs to come
		if c != nil {
			if j := slices.IndexFunc(c.sets, func(o *catalog.Set) bool { return o.ID == s.ID }); j >= 0 {
				s = c.sets[j]
			}
		}
		a.postScript(ctx, s)
		// Then the next run does it. Sets of runs before have one try, in what is left of the time.
		s.Unsettled = errors.Is(ctx.Err(), context.Canceled) || ctx.Err() != nil && i == 0
		if err := a.o.Catalog.Put(kept, s); err != nil {
			a.warn("%v", err)
		}
	}
	if c != nil {
		a.step("backup_all", "copy-postgres", a.o.Store.Name)
		c.postgres(ctx)
		if err := c.finish(ctx); err != nil {
			a.warn("%v", err)
		}
	}
	if !errors.Is(ctx.Err(), context.Canceled) {
		a.retain(ctx, set)
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("set %s is complete; what comes after it was interrupted: %w", set.ID, ctx.Err())
	}
	return nil
}

// newCopyOut lists what is to be copied. current, if any, is the set of the run that goes on, whose entry in the catalogue is the
// caller's.
func (a *App) newCopyOut(ctx context.Context, current *catalog.Set) (*copyOut, error) {
	c := &copyOut{App: a, store: a.o.Store, local: map[string][]repo.Label{}, res: CopyReport{Store: a.o.Store.Name, Copied: []string{}, Behind: []string{}, WAL: []catalog.CopiedWAL{}}}
	sets, damaged, err := a.o.Catalog.List(ctx)
	if err != nil {
		return nil, err
	}
	c.damaged = damaged
	for _, s := range sets {
		if current != nil && s.ID == current.ID {
			s = current
		}
		if s.State == catalog.Complete {
			c.sets = append(c.sets, s)
			if n := s.Copy; n != nil && n.Store == c.store.Name && n.Error != "" && n.Error != errGone.Error() {
				c.late = append(c.late, s)
			}
		}
	}
	return c, nil
}

func (c *copyOut) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.res.Warnings = append(c.res.Warnings, text)
	c.App.warn("%s", text)
}

// note is the set's entry on its copy, made if it has none for this store.
func (c *copyOut) note(s *catalog.Set) *catalog.Copy {
	if s.Copy == nil || s.Copy.Store != c.store.Name {
		s.Copy = &catalog.Copy{Store: c.store.Name}
	}
	s.Copy.At = c.o.Now().UTC()
	return s.Copy
}

// pieces are the PostgreSQL backups of a set that lie in the separate repository here.
func (c *copyOut) pieces(s *catalog.Set) (out []catalog.Piece) {
	for _, p := range s.Pieces {
		if s.Mode == catalog.Apart && p.Kind == catalog.Postgres && p.Path == c.o.RepoDir {
			out = append(out, p)
		}
	}
	return out
}

// postgres copies the PostgreSQL backups of all sets that are not there, and then the WAL.
func (c *copyOut) postgres(ctx context.Context) {
	if !c.store.Postgres {
		return
	}
	var err error
	if c.here, err = c.repository(); err == nil && c.away == nil {
		c.there, err = c.storeRepo()
	}
	err = cmp.Or(err, c.away)
	if err != nil {
		c.failed(ctx, err)
		return
	}
	for _, s := range c.sets {
		if len(c.pieces(s)) == 0 {
			continue
		}
		if s.Copy == nil || s.Copy.Store != c.store.Name || !s.Copy.Postgres {
			if !c.set(ctx, s) {
				return
			}
		}
		if s.Copy.Postgres {
			c.res.LastSet = s.ID
		}
	}
	c.wal(ctx)
	c.prune(ctx, true, false)
}

// set copies the PostgreSQL backups of one set. false: the storage, or this run, can't go on.
func (c *copyOut) set(ctx context.Context, s *catalog.Set) bool {
	c.step("copy", "set", s.ID)
	n := c.note(s)
	var errs []error
	for _, p := range c.pieces(s) {
		err := c.piece(ctx, s, p)
		if errors.Is(err, errGone) {
			n.Error = err.Error() // it never will be there; no reason to warn at every run
			return true
		}
		errs = append(errs, err)
		if storage.IsUnavailable(err) { // another cluster would wait for it in vain as long again
			break
		}
	}
	err := errors.Join(errs...)
	if err == nil {
		n.Postgres, n.Error = true, ""
		c.res.Copied = append(c.res.Copied, s.ID)
		return true
	}
	if ctx.Err() == nil && (errors.Is(err, engine.ErrNotClosed) || errors.Is(err, engine.ErrCopyConflict)) { // of this set, and of no other
		n.Error = err.Error()
		c.res.Behind = append(c.res.Behind, s.ID)
		c.warn("set %s is not on %s: %v", s.ID, c.store.Name, err)
		return true
	}
	c.failed(ctx, err)
	return false
}

// errGone: the backup of a set is not in the repository any more.
var errGone = errors.New("the backup is not in the repository here any more")

// piece copies the backup of one cluster, with the WAL up to the set's recovery point.
func (c *copyOut) piece(ctx context.Context, s *catalog.Set, p catalog.Piece) error {
	have, err := c.labels(ctx, p.Stanza)
	if err != nil {
		return err
	}
	if !slices.Contains(have, repo.Label(p.Label)) {
		return errGone
	}
	o := engine.CopyOptions{Sets: []repo.Label{repo.Label(p.Label)}, ProcessMax: c.store.ProcessMax}
	for _, point := range pointsOf(s) {
		if point.Stanza == p.Stanza && point.Label == p.Label {
			if o.Segments, err = segmentRange(point); err != nil {
				return err
			}
		}
	}
	return c.run(ctx, p.Stanza, o)
}

// labels are the backups of a stanza here, read once.
func (c *copyOut) labels(ctx context.Context, stanza string) ([]repo.Label, error) {
	if have, known := c.local[stanza]; known {
		return have, nil
	}
	s, err := c.stanza(stanza, c.here)
	if err != nil {
		return nil, err
	}
	have, err := s.Labels(ctx)
	if err == nil {
		c.local[stanza] = have
	}
	return have, err
}

// run copies what o says of one stanza.
func (c *copyOut) run(ctx context.Context, stanza string, o engine.CopyOptions) error {
	from, err := c.stanza(stanza, c.here)
	if err != nil {
		return err
	}
	to, err := c.storeStanza(stanza, c.there)
	if err != nil {
		return err
	}
	plan, err := engine.PlanCopy(ctx, from, to, o)
	if err != nil {
		return err
	}
	res, err := plan.Run(ctx)
	if res != nil {
		c.res.Objects, c.res.Bytes, c.res.Segments = c.res.Objects+res.Objects, c.res.Bytes+res.Bytes, c.res.Segments+res.Segments
		last := ""
		for _, seg := range res.LastWAL {
			last = max(last, seg)
		}
		if last != "" {
			c.reached(stanza, last)
		}
	}
	return err
}

// reached notes how far the WAL of a cluster is there.
func (c *copyOut) reached(stanza, last string) {
	i := slices.IndexFunc(c.res.WAL, func(w catalog.CopiedWAL) bool { return w.Stanza == stanza })
	if i < 0 {
		c.res.WAL = append(c.res.WAL, catalog.CopiedWAL{Stanza: stanza, Last: last})
		return
	}
	c.res.WAL[i].Last = max(c.res.WAL[i].Last, last)
}

// wal copies everything that was archived since the oldest backup there, of every cluster that has one. Backups that were lost
// there meanwhile come along.
func (c *copyOut) wal(ctx context.Context) {
	labels := map[string][]repo.Label{}
	var stanzas []string
	for _, s := range c.sets {
		for _, p := range c.pieces(s) {
			if s.Copy == nil || !s.Copy.Postgres || !c.known(ctx, p) {
				continue
			}
			if labels[p.Stanza] == nil {
				stanzas = append(stanzas, p.Stanza)
			}
			labels[p.Stanza] = append(labels[p.Stanza], repo.Label(p.Label))
		}
	}
	for _, stanza := range stanzas {
		c.step("copy", "archive", stanza)
		if err := c.run(ctx, stanza, engine.CopyOptions{Sets: labels[stanza], WAL: engine.WALAll, ProcessMax: c.store.ProcessMax}); err != nil {
			c.failed(ctx, err)
			return
		}
	}
}

// known says whether a backup is here.
func (c *copyOut) known(ctx context.Context, p catalog.Piece) bool {
	have, err := c.labels(ctx, p.Stanza)
	return err == nil && slices.Contains(have, repo.Label(p.Label))
}

// failed is the end of a round that could not copy everything: it says what is behind and by how much.
func (c *copyOut) failed(ctx context.Context, err error) {
	if cause := context.Cause(ctx); cause != nil {
		err = errors.Join(cause, err)
	}
	for _, s := range c.sets {
		if len(c.pieces(s)) == 0 {
			continue
		}
		n := c.note(s)
		if n.Postgres {
			c.res.LastSet = s.ID
			continue
		}
		if n.Error != errGone.Error() {
			n.Error = err.Error()
			if !slices.Contains(c.res.Behind, s.ID) {
				c.res.Behind = append(c.res.Behind, s.ID)
			}
		}
	}
	last := "no set is there yet"
	if c.res.LastSet != "" {
		last = "the newest set there is " + c.res.LastSet
	}
	c.warn("the copy on %s is behind by %d set(s), %s; the next run goes on with it, or now: holdfast sets copy (%v)", c.store.Name, len(c.res.Behind), last, err)
}

// finish writes what was learned into the catalogue. The run's context may be over; what is there is there.
func (c *copyOut) finish(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	c.caughtUp()
	wal := c.knownWAL()
	var errs []error
	for _, s := range c.sets {
		if s.Copy == nil || s.Copy.Store != c.store.Name {
			continue
		}
		s.Copy.LastSet = c.res.LastSet
		if len(wal) > 0 {
			s.Copy.WAL = wal
		}
		errs = append(errs, c.o.Catalog.Put(ctx, s))
	}
	return errors.Join(errs...)
}

// caughtUp says which sets came there late: a log that told of an outage tells of its end.
func (c *copyOut) caughtUp() {
	var there []string
	for _, s := range c.late {
		if s.Copy.Error == "" && (s.Copy.Postgres || !c.store.Postgres) && (s.Copy.Tarballs || !c.store.Tarballs) {
			there = append(there, s.ID)
		}
	}
	if len(there) > 0 {
		c.step("copy", "caught-up", fmt.Sprintf("%s has the sets that it lacked: %s", c.store.Name, strings.Join(there, ", ")))
	}
}

// knownWAL is how far the WAL of each cluster is known to reach there: what this round did not get to is as before.
func (c *copyOut) knownWAL() []catalog.CopiedWAL {
	known := slices.Clone(c.res.WAL)
	for i := len(c.sets) - 1; i >= 0; i-- {
		n := c.sets[i].Copy
		if n == nil || n.Store != c.store.Name || len(n.WAL) == 0 {
			continue
		}
		for _, before := range n.WAL {
			if c.cluster(before.Stanza) != nil && !slices.ContainsFunc(known, func(w catalog.CopiedWAL) bool { return w.Stanza == before.Stanza }) {
				known = append(known, before)
			}
		}
		break
	}
	slices.SortFunc(known, func(a, b catalog.CopiedWAL) int { return c.order(a.Stanza) - c.order(b.Stanza) })
	return known
}

// order is the place of a stanza among the clusters.
func (c *copyOut) order(stanza string) int {
	if i := slices.IndexFunc(c.o.Clusters, func(k Cluster) bool { return k.Stanza == stanza }); i >= 0 {
		return i
	}
	return len(c.o.Clusters)
}
