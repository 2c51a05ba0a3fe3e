package engine

import (
	"cmp"
	"fmt"
	"time"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
)

// RetentionType says how ExpireOptions.Full counts.
type RetentionType string

// The two ways to count full backups.
const (
	RetainCount RetentionType = "count" // that many full backups stay
	RetainTime  RetentionType = "time"  // days: what is needed to go back that far stays
)

// ExpireOptions says what stays in a repository (format page, section 19). The zero value removes only what belongs to no
// backup.
type ExpireOptions struct {
	Set    repo.Label // remove this backup and what is built on it, and let no other go; "" = as the retention says
	Oldest bool       // remove the oldest full backup with what is built on it, and the WAL before the next one

	Full        int             // full backups or days; 0 = all stay
	FullType    RetentionType   // "" = RetainCount
	Diff        int             // full and diff backups together; 0 = diffs stay as long as their full
	Archive     int             // backups of ArchiveType from the oldest of which the WAL is whole; 0 = as Full or Diff have it
	ArchiveType repo.BackupType // full; diff counts full and diff, incr all; "" = full

	ArchiveBefore string // WAL segment: it and what follows stays; without any backup, what lies before it goes. "" = no bound
	HistoryDays   *int   // days that manifests of removed backups are kept; nil = for ever
}

// ExpiredBackup is a backup that goes, and why.
type ExpiredBackup struct {
	Label  repo.Label `json:"label"`
	Reason string     `json:"reason"`
}

func (o *ExpireOptions) check() error {
	if o.Set != "" && o.Oldest {
		return fmt.Errorf("one backup (%s) and the oldest cannot be asked for together", o.Set)
	}
	switch o.FullType {
	case "", RetainCount, RetainTime:
	default:
		return fmt.Errorf("retention type %q of full backups: use count or time", o.FullType)
	}
	switch o.ArchiveType {
	case "", repo.Full, repo.Diff, repo.Incr:
	default:
		return fmt.Errorf("retention type %q of the archive: use full, diff or incr", o.ArchiveType)
	}
	if o.Full < 0 || o.Diff < 0 || o.Archive < 0 || o.HistoryDays != nil && *o.HistoryDays < 0 {
		return fmt.Errorf("a retention is negative: full %d, diff %d, archive %d; use 1 or more", o.Full, o.Diff, o.Archive)
	}
	if o.ArchiveBefore != "" && !pg.IsSegmentName(o.ArchiveBefore) {
		return fmt.Errorf("remove WAL before %q: not the name of a WAL segment (24 hex digits)", o.ArchiveBefore)
	}
	return nil
}

// retention is the choice of backups that go. It knows nothing of storage.
type retention struct {
	bi   *repo.BackupInfo
	o    ExpireOptions
	gone map[repo.Label]string // and why

	archive     int // backups of archiveType from the oldest of which the WAL stays whole; 0 = all WAL stays
	archiveType repo.BackupType
	warnings    []string
}

// choose applies o to the backups of bi at the moment now. The only error is ErrLastBackup, for a Set that may not go.
func choose(bi *repo.BackupInfo, o ExpireOptions, now time.Time) (*retention, error) {
	r := &retention{bi: bi, o: o, gone: map[repo.Label]string{}, archive: o.Archive, archiveType: cmp.Or(o.ArchiveType, repo.Full)}
	switch {
	case o.Set != "":
		if err := r.one(o.Set); err != nil {
			return nil, err
		}
		r.archiveDefault(o.Full, o.FullType != RetainTime)
	case o.Oldest:
		fulls := r.list(false)
		if len(fulls) < 2 {
			r.warn("the oldest full backup stays: there is no other")
		}
		r.archive, r.archiveType = max(len(fulls)-1, 0), repo.Full
		r.fullsByCount(r.archive, "the oldest full backup")
		r.diffs()
	default:
		if o.FullType == RetainTime {
			if met := r.fullsByTime(now); met {
				r.archiveDefault(len(r.list(false)), true)
			}
		} else {
			r.fullsByCount(o.Full, fmt.Sprintf("%d full backups are kept (retention-full)", o.Full))
		}
		r.archiveDefault(o.Full, o.FullType != RetainTime)
		r.diffs()
	}
	return r, nil
}

func (r *retention) warn(format string, a ...any) {
	r.warnings = append(r.warnings, fmt.Sprintf(format, a...))
}

// archiveDefault fills in how much WAL stays where no number was given: as many fulls (where that counts backups) or diffs
// as stay themselves.
func (r *retention) archiveDefault(fulls int, counted bool) {
	switch {
	case r.archive != 0:
	case r.archiveType == repo.Full && counted:
		r.archive = fulls
	case r.archiveType == repo.Diff:
		r.archive = r.o.Diff
	}
}

// list gives the full backups that stay, oldest first; with diffs, those too.
func (r *retention) list(diffs bool) (out []*repo.BackupLine) {
	for i := range r.bi.Backups {
		l := &r.bi.Backups[i]
		if _, gone := r.gone[l.Label]; !gone && (l.Type == repo.Full || diffs && l.Type == repo.Diff) {
			out = append(out, l)
		}
	}
	return out
}

// drop removes a backup with all that is built on it.
func (r *retention) drop(label repo.Label, reason string) {
	for _, l := range dependents(r.bi, label) {
		if _, gone := r.gone[l]; gone {
			continue
		}
		r.gone[l] = reason
		if l != label {
			r.gone[l] = "it is built on " + string(label) + ", which goes"
		}
	}
}

// newestCurrent is the newest full backup of the cluster that the stanza has now: without it nothing of it could be
// restored. "" if there is none.
func (r *retention) newestCurrent() (newest repo.Label) {
	for _, l := range r.list(false) {
		if l.DBID == r.bi.Current {
			newest = l.Label
		}
	}
	return newest
}

// dropFulls removes fulls, but never the last one of the current cluster.
func (r *retention) dropFulls(fulls []*repo.BackupLine, reason string) {
	last := r.newestCurrent()
	for _, l := range fulls {
		if l.Label == last {
			r.warn("backup %s stays although the retention does not ask for it: %v of the current cluster", l.Label, ErrLastBackup)
			continue
		}
		r.drop(l.Label, reason)
	}
}

func (r *retention) fullsByCount(keep int, reason string) {
	if fulls := r.list(false); keep > 0 && len(fulls) > keep {
		r.dropFulls(fulls[:len(fulls)-keep], reason)
	}
}

// fullsByTime removes the fulls before the newest one that is old enough to go back o.Full days from; false: none is.
func (r *retention) fullsByTime(now time.Time) (met bool) {
	limit := now.Unix() - int64(r.o.Full)*86400
	fulls := r.list(false)
	for i := len(fulls) - 1; i >= 0 && r.o.Full > 0; i-- {
		if fulls[i].TimeStop < limit {
			r.dropFulls(fulls[:i], fmt.Sprintf("%s reaches back %d days (retention-full)", fulls[i].Label, r.o.Full))
			return true
		}
	}
	return false
}

func (r *retention) diffs() {
	list := r.list(true)
	if r.o.Diff == 0 || len(list) <= r.o.Diff {
		return
	}
	for _, l := range list[:len(list)-r.o.Diff] {
		if l.Type == repo.Diff {
			r.drop(l.Label, fmt.Sprintf("%d full and diff backups are kept (retention-diff)", r.o.Diff))
		}
	}
}

// one removes the backup that was asked for by its label.
func (r *retention) one(set repo.Label) error {
	line := r.bi.Find(set)
	if line == nil {
		r.warn("there is no backup %s: nothing of the backups goes", set)
		return nil
	}
	if line.Type == repo.Full {
		older, newest := false, true
		for _, l := range r.list(false) {
			older = older || l.Label < set && l.DBID == line.DBID
			newest = newest && l.Label <= set
		}
		others := 0
		for _, l := range r.list(false) {
			if l.DBID == r.bi.Current && l.Label != set {
				others++
			}
		}
		if newest && !older || line.DBID == r.bi.Current && others == 0 {
			return fmt.Errorf("backup %s: %w; without it nothing of this cluster can be restored: make another full backup first", set, ErrLastBackup)
		}
	}
	r.drop(set, "it was asked for (set)")
	return nil
}

// ofArchiveType lists the backups among lines that the archive's retention counts, oldest first.
func (r *retention) ofArchiveType(lines []repo.BackupLine) (out []repo.BackupLine) {
	for _, l := range lines {
		if l.Type == repo.Full || l.Type == r.archiveType || r.archiveType == repo.Incr {
			out = append(out, l)
		}
	}
	return out
}

// walSpan is a range of segment names, both ends included; no last means without end.
type walSpan struct{ first, last string }

// walCut says which WAL of one archive id stays.
type walCut struct {
	all, none bool // all stays; nothing stays
	keep      []walSpan
	from      string // segment from which on everything stays
	position  string // the last 16 digits of a segment from which on everything stays on every timeline; "" = nowhere
	// histories is the lowest timeline of which the history file stays: that of the oldest backup that does. PostgreSQL looks
	// for timelines one by one, and gives a promoted server the first number of which there is no file. With a hole in them a
	// restore of that backup would end early, and begin a timeline anew that others came from.
	histories string
}

// cut decides on the WAL of one history id. kept are the backups that stay, oldest first.
func (r *retention) cut(db int, kept []repo.BackupLine) walCut {
	of := r.ofArchiveType(kept)
	if len(kept) == 0 && r.o.ArchiveBefore != "" && db == r.bi.Current {
		return walCut{from: r.o.ArchiveBefore, keep: []walSpan{{first: r.o.ArchiveBefore}}, histories: r.o.ArchiveBefore[:8]}
	}
	if r.archive == 0 || len(of) < r.archive {
		return walCut{all: true}
	}
	var here []repo.BackupLine
	root := -1 // in here: the backup from which on the WAL is whole
	for i, l := range of {
		if l.DBID != db {
			continue
		}
		here = append(here, l)
		if root < 0 && i >= len(of)-r.archive {
			root = len(here) - 1
		}
	}
	if len(here) == 0 {
		bounded := r.o.ArchiveBefore != ""
		return walCut{none: db != r.bi.Current && !bounded, all: db == r.bi.Current || bounded}
	}
	if root < 0 {
		root = len(here) - 1
	}
	from := here[root].ArchiveStart
	if from == "" {
		return walCut{all: true} // made offline: there is no segment to count from
	}
	c := walCut{histories: from[:8]}
	for _, l := range kept {
		if l.DBID != db || l.ArchiveStart == "" {
			continue
		}
		c.histories = min(c.histories, l.ArchiveStart[:8])
		switch {
		case l.Label < here[root].Label:
			c.keep = append(c.keep, walSpan{l.ArchiveStart, cmp.Or(l.ArchiveStop, l.ArchiveStart)})
		default:
			// Names compare timeline first, so a newer backup may begin before the root: on a lower timeline, after a server
			// that had been left behind was taken up again.
			from = min(from, l.ArchiveStart)
		}
	}
	c.from, c.keep = from, append(c.keep, walSpan{first: from})
	if r.o.ArchiveBefore != "" {
		c.from, c.keep = min(from, r.o.ArchiveBefore), append(c.keep, walSpan{first: r.o.ArchiveBefore})
		c.histories = min(c.histories, r.o.ArchiveBefore[:8])
	}
	return c
}

// stays says whether anything of prefix stays: a whole segment name, or the first 16 digits that name its directory.
func (c *walCut) stays(prefix string) bool {
	n := len(prefix)
	if c.position != "" && prefix[8:] >= c.position[:n-8] {
		return true
	}
	for _, k := range c.keep {
		if prefix >= k.first[:n] && (k.last == "" || prefix <= k.last[:n]) {
			return true
		}
	}
	return c.all
}
