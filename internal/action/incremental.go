package action

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/engine"
	"holdfast/internal/repo"
)

// IncrementalOptions say which runs make a full PostgreSQL backup and what the others make.
type IncrementalOptions struct {
	Enabled   bool
	FullEvery int             // runs from one full backup to the next, the full one counted; below 1 is 1
	FullDays  []time.Weekday  // not empty: the days of full backups, in place of FullEvery
	Zone      *time.Location  // of FullDays; nil: UTC
	Type      repo.BackupType // of the runs between: Incr (also when empty) or Diff
}

// OfType is the application with one type of PostgreSQL backup for its next run, whatever is configured; empty: as configured.
func (a *App) OfType(t repo.BackupType) *App {
	b := *a
	b.o.Type = t
	return &b
}

// keepsChain says whether the staging repository of mode included keeps what the next run builds on.
func (a *App) keepsChain() bool { return a.o.Mode == catalog.Included && a.o.Incremental.Enabled }

// onDisk says whether a run's PostgreSQL backup is written to a repository on disk, not straight into the tarball.
func (a *App) onDisk() bool { return a.o.Mode == catalog.Apart || a.keepsChain() }

// typeChoice is the type of one cluster's backup in one run.
type typeChoice struct {
	typ  repo.BackupType
	why  string
	warn bool // it was to be a diff or incr and can't be
}

// chooseType decides on the type of a cluster's backup. It is a full one whenever the backup that another type would be built
// on is not there whole, or is not as the cluster and the parameters are now. The error is for a repository that could not be asked:
// an outage is not answered with a full backup.
func (a *App) chooseType(ctx context.Context, c Cluster, s *engine.Stanza) (typeChoice, error) {
	o := a.o.Incremental
	switch {
	case a.o.Type == repo.Full:
		return typeChoice{typ: repo.Full, why: "asked for"}, nil
	case a.o.Type == "" && !o.Enabled:
		return typeChoice{typ: repo.Full, why: whyOff + " (alation.backup_v2.incremental.enabled)"}, nil
	case !a.onDisk():
		return typeChoice{repo.Full, whyOff + ", and then nothing that one could be built on is kept for tarballs (alation.backup_v2.incremental.enabled)", true}, nil
	}
	base, err := s.Base(ctx, c.DataDir)
	if err != nil {
		return typeChoice{}, err
	}
	sets, _, err := a.o.Catalog.List(ctx)
	if err != nil {
		return typeChoice{}, err
	}
	want := typeChoice{typ: a.o.Type, why: "asked for"}
	if want.typ == "" {
		want = o.due(base.SinceFull(), failedBackups(sets, c.Stanza), a.o.Now())
	}
	if want.typ == repo.Full {
		return want, nil
	}
	prior := base.Prior(want.typ)
	why, err := a.cannotBuild(ctx, c, s, base, prior, sets)
	switch {
	case err != nil:
		return typeChoice{}, err
	case why != "" && prior == nil && base.Others == 0 && !a.hadChain(sets, c.Stanza):
		return typeChoice{repo.Full, fmt.Sprintf("it is the first: %s", why), false}, nil
	case why != "":
		return typeChoice{repo.Full, fmt.Sprintf("no %s backup is possible: %s", want.typ, why), true}, nil
	}
	want.why = "built on " + string(prior.Label) + ", " + want.why
	return want, nil
}

// whyOff begins the reason of a backup that was made while nothing was to be built on it.
const whyOff = "incremental backups are off"

// hadChain says whether a set was made of which the repository should hold something to build on.
func (a *App) hadChain(sets []*catalog.Set, stanza string) bool {
	return slices.ContainsFunc(sets, func(s *catalog.Set) bool {
		return s.State == catalog.Complete && s.Mode == a.o.Mode && slices.ContainsFunc(s.Backups, func(b catalog.Backup) bool {
			return b.Stanza == stanza && (s.Mode == catalog.Apart || !strings.HasPrefix(b.Why, whyOff))
		})
	})
}

// due is what the cadence asks for. chain is the newest full backup and what came after it; none: nothing is there. Backups
// of runs that failed do not count.
func (o *IncrementalOptions) due(chain []repo.BackupLine, failed map[repo.Label]bool, now time.Time) typeChoice {
	between := typeChoice{typ: o.Type}
	if between.typ == "" {
		between.typ = repo.Incr
	}
	if len(chain) == 0 {
		return between // and then there is nothing to build on, which will be said
	}
	full := chain[0].Label
	if len(o.FullDays) > 0 {
		day := o.lastFullDay(now)
		if chain[0].TimeStart < day.Unix() {
			return typeChoice{typ: repo.Full, why: fmt.Sprintf("the first since %s began; the full backup before it is %s", day.Format("Monday 2006-01-02"), full)}
		}
		between.why = fmt.Sprintf("the last full one, %s, is of %s or later", full, day.Format("Monday 2006-01-02"))
		return between
	}
	runs, every := 1, max(o.FullEvery, 1)
	for _, l := range chain[1:] {
		if !failed[l.Label] {
			runs++
		}
	}
	if runs >= every {
		return typeChoice{typ: repo.Full, why: fmt.Sprintf("%d run(s) since %s", runs, full)}
	}
	between.why = fmt.Sprintf("run %d of %d since %s", runs+1, every, full)
	return between
}

// lastFullDay is the beginning of the newest day of FullDays that has begun.
func (o *IncrementalOptions) lastFullDay(now time.Time) time.Time {
	zone := o.Zone
	if zone == nil {
		zone = time.UTC
	}
	y, m, d := now.In(zone).Date()
	for i := range 7 {
		if day := time.Date(y, m, d-i, 0, 0, 0, 0, zone); slices.Contains(o.FullDays, day.Weekday()) {
			return day
		}
	}
	return time.Time{} // no such weekday
}

// failedBackups are the backups of a cluster that failed runs left.
func failedBackups(sets []*catalog.Set, stanza string) map[repo.Label]bool {
	out := map[repo.Label]bool{}
	for _, s := range sets {
		for _, b := range s.Backups {
			if b.Stanza == stanza && s.State == catalog.Failed {
				out[repo.Label(b.Label)] = true
			}
		}
	}
	return out
}

// cannotBuild says why no diff or incr can be built on prior (nil: there is none); "" when one can.
func (a *App) cannotBuild(ctx context.Context, c Cluster, s *engine.Stanza, base *engine.Base, prior *repo.BackupLine, sets []*catalog.Set) (string, error) {
	if prior == nil && base.Others > 0 {
		return fmt.Sprintf("the %d backup(s) in %s are of another cluster, this one has the system identifier %d and PostgreSQL %s", base.Others, a.o.RepoDir, base.Control.SystemID, base.Control.Version), nil
	}
	if prior == nil {
		return "there is no backup in " + a.o.RepoDir + " to build on", nil
	}
	if id, finding := a.foundDamaged(sets, c.Stanza, prior); id != "" {
		return fmt.Sprintf("%s is damaged or built on a damaged backup: the check of set %s found: %s", prior.Label, id, finding), nil
	}
	facts, err := s.LookAtPrior(ctx, prior)
	if errors.Is(err, engine.ErrNoPrior) {
		return fmt.Sprintf("%s: %v", prior.Label, err), nil
	}
	if err != nil {
		return "", err
	}
	pages := base.Control.DataChecksumVersion != 0
	ours, _, _ := strings.Cut(a.o.Program, " ")
	maker, _, _ := strings.Cut(facts.Version, " ")
	switch {
	case facts.Damage != "":
		return fmt.Sprintf("%s is damaged or built on a damaged backup: %s", prior.Label, facts.Damage), nil
	case facts.Compress != a.o.Compress:
		return fmt.Sprintf("%s is compressed with %s, and pgsql.pgbackrest.compress_type is %s now", prior.Label, facts.Compress, a.o.Compress), nil
	case facts.ChecksumPage != pages:
		return fmt.Sprintf("page checksums have changed since %s: %s then, %s now", prior.Label, onOff(facts.ChecksumPage), onOff(pages)), nil
	case (maker == ours) != (a.o.Tool == nil):
		return fmt.Sprintf("%s was made by another program (version %s, see pgsql.backup.tool_path)", prior.Label, facts.Version), nil
	}
	return "", nil
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// baseCheck is the check that finds damage while a chain goes into a tarball.
const baseCheck = "base"

// foundDamaged names the set whose newest check found PostgreSQL's backup line, or one that it is built on, damaged.
func (a *App) foundDamaged(sets []*catalog.Set, stanza string, line *repo.BackupLine) (id, finding string) {
	for _, s := range sets {
		if len(s.Verdicts) == 0 || s.Verdicts[len(s.Verdicts)-1].OK {
			continue
		}
		touched := slices.ContainsFunc(s.Backups, func(b catalog.Backup) bool {
			l := repo.Label(b.Label)
			return b.Stanza == stanza && (l == line.Label || slices.Contains(line.References, l))
		})
		here := s.Mode == a.o.Mode && (s.Mode == catalog.Included || slices.ContainsFunc(s.Pieces, func(p catalog.Piece) bool {
			return p.Kind == catalog.Postgres && p.Path == a.o.RepoDir
		}))
		if !touched || !here {
			continue
		}
		v := s.Verdicts[len(s.Verdicts)-1]
		for _, f := range v.Findings {
			// A check of a tarball says nothing of the repository, and the other way round.
			if v.Check == baseCheck || s.Mode == catalog.Apart && strings.HasPrefix(f, "stanza "+stanza+": ") {
				return s.ID, f
			}
		}
	}
	return "", ""
}

// noted is what the set says of a backup that was made as planned.
func noted(p *engine.BackupPlan, res *engine.BackupResult) catalog.Backup {
	b := catalog.Backup{Stanza: p.Stanza, Label: string(res.Label), Type: string(res.Line.Type), Prior: string(res.Line.Prior), Why: p.Why}
	for _, l := range res.Line.References {
		b.Needs = append(b.Needs, string(l))
	}
	return b
}
