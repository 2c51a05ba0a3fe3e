package action

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/pg"
)

// A cluster's files go from machine to machine only as far as the machines agree: who sorts text must sort it the same way, and what
// the databases call must be there. The plan compares what the set noted with what is here; none of it stops a restore, since a
// machine that is not quite the same is better than none. What text is sorted by is looked at again in the restored databases.

// checkHost compares the machine of a set with this one.
func (p *RestorePlan) checkHost(ctx context.Context, c Cluster, point catalog.PostgresPoint) {
	v, err := pg.ParseVersion(point.Version)
	if err != nil {
		return // which is missing already
	}
	if c.BinDir != "" {
		if err := pg.CheckBinDir(ctx, c.BinDir, v); err != nil {
			p.missing("cluster %s: %v: correct bin= in pgsql.clusters", point.Stanza, err)
		}
	}
	h := point.Host
	if h == nil {
		p.Findings = append(p.Findings, warns(AreaRestore, point.Stanza, "look at the indexes on text when it is restored: amcheck's bt_index_check", "the set does not say on what machine it was made (it is of an earlier Holdfast): whether text is sorted the same way here is unknown"))
		return
	}
	bin := binDirOf(c, v)
	p.Findings = append(p.Findings, compareHost(point.Stanza, h, pg.MachineOf(ctx, bin), pg.InstalledLocales(ctx), pg.ProgramsOf(bin, v))...)
}

// compareHost says what of a set's machine is not so here.
func compareHost(stanza string, h *catalog.PostgresHost, here pg.Machine, locales []string, programs pg.Programs) []Finding {
	var found []Finding
	warn := func(do, format string, args ...any) {
		found = append(found, warns(AreaRestore, stanza, do, format, args...))
	}
	if h.Arch != "" && h.Arch != here.Arch {
		warn("restore on a machine of that kind, or restore elsewhere and dump and load", "the set was made on %s, this is %s: PostgreSQL's files are made for one kind of machine", h.Arch, here.Arch)
	}
	libc, icu := sortedBy(h)
	const reindex = "the restore names the indexes that have to be built again"
	if libc && h.Libc != here.Libc {
		warn(reindex, "text is sorted by libc: %s where the set was made, %s here", known(h.Libc), known(here.Libc))
	}
	if icu && h.ICU != here.ICU {
		warn(reindex, "text is sorted by ICU: version %s where the set was made, %s here", known(h.ICU), known(here.ICU))
	}
	found = append(found, missingLocales(stanza, h, locales)...)
	for _, name := range h.Preload {
		if has, sure := programs.HasLibrary(name); sure && !has {
			warn("install the package that has it before the restore", "shared_preload_libraries has %s, which is not in %s: PostgreSQL would not start", name, programs.Library)
		}
	}
	return append(found, missingExtensions(stanza, h, programs)...)
}

func known(version string) string {
	if version == "" {
		return "unknown"
	}
	return version
}

// sortedBy says whose versions matter: libc's where a database sorts by one of its locales, ICU's likewise.
func sortedBy(h *catalog.PostgresHost) (libc, icu bool) {
	for _, d := range h.Databases {
		libc = libc || d.Provider == "libc" && !pg.PlainLocale(d.Locale)
		icu = icu || d.Provider == "icu"
	}
	return libc, icu
}

// missingLocales names libc's locales that a database or the configuration needs and that this machine lacks.
func missingLocales(stanza string, h *catalog.PostgresHost, installed []string) []Finding {
	if len(installed) == 0 {
		return nil // this machine does not say which it has
	}
	users := map[string][]string{}
	var names []string
	needs := func(name, by string) {
		if pg.HasLocale(installed, name) {
			return
		}
		if users[name] == nil {
			names = append(names, name)
		}
		if !slices.Contains(users[name], by) {
			users[name] = append(users[name], by)
		}
	}
	for _, d := range h.Databases {
		needs(d.Collate, "database "+d.Name)
		needs(d.Ctype, "database "+d.Name)
	}
	for _, name := range h.Locales {
		needs(name, "the configuration")
	}
	var found []Finding
	for _, name := range names {
		found = append(found, warns(AreaRestore, stanza, "install it before the restore (Debian: locale-gen "+shellWord(name)+")", "the locale %s is not on this machine: %s could not be used, and the restore may fail", name, firstFew(users[name])))
	}
	return found
}

// missingExtensions names extensions whose control file is not installed.
func missingExtensions(stanza string, h *catalog.PostgresHost, programs pg.Programs) []Finding {
	users := map[string][]string{}
	var names []string
	for _, d := range h.Databases {
		for _, e := range d.Extensions {
			if has, sure := programs.HasExtension(e.Name); has || !sure {
				continue
			}
			name := e.Name + " " + e.Version
			if users[name] == nil {
				names = append(names, name)
			}
			users[name] = append(users[name], d.Name)
		}
	}
	var found []Finding
	for _, name := range names {
		found = append(found, warns(AreaRestore, stanza, "install the package that has it", "the extension %s of database %s is not installed here (%s/extension): what calls it fails", name, firstFew(users[name]), programs.Share))
	}
	return found
}

// Bounds of the look at the restored databases, and of what is said of it.
const (
	collationTime = 10 * time.Minute
	maxCollations = 200
)

// collations looks through every database of a restored cluster for what is sorted by a collation of another version than this
// machine's: warnings, with the statements that put it right. That it could not be looked at is a warning, too.
func (r *restoreRun) collations(ctx context.Context, c Cluster, point catalog.PostgresPoint) {
	r.a.step("restore", "collations", c.Stanza)
	ctx, cancel := context.WithTimeout(ctx, collationTime)
	defer cancel()
	stale, unseen, err := staleCollations(ctx, c, point.Host)
	if err != nil {
		r.res.Warnings = append(r.res.Warnings, fmt.Sprintf("cluster %s: whether text is sorted here as it was where the set was made could not be found out: %v", c.Stanza, err))
		return
	}
	for _, name := range unseen {
		r.res.Warnings = append(r.res.Warnings, fmt.Sprintf("cluster %s: database %s could not be looked into for indexes that are sorted by another version of a collation", c.Stanza, name))
	}
	if n := len(stale) - maxCollations; n > 0 {
		stale = stale[:maxCollations]
		r.res.Warnings = append(r.res.Warnings, fmt.Sprintf("cluster %s: %d further collations have another version here; to have all: reindexdb --all", c.Stanza, n))
	}
	for _, s := range stale {
		r.res.Collations = append(r.res.Collations, ClusterCollation{c.Stanza, s, s.Repair()})
		r.res.Warnings = append(r.res.Warnings, describeStale(c.Stanza, s))
	}
}

// collationFindings are those for the catalogue.
func (r *restoreRun) collationFindings() (found []string) {
	for _, c := range r.res.Collations {
		found = append(found, describeStale(c.Stanza, c.StaleCollation))
	}
	return found
}

// ClusterCollation is a collation of a restored cluster whose order may be another here.
type ClusterCollation struct {
	Stanza string `json:"stanza"`
	pg.StaleCollation
	Statements []string `json:"repair"` // to be run in this order in the database
}

// staleCollations looks into every database that lets itself be looked into; unseen are those that do not. h (nil: unknown) is the
// machine of before.
func staleCollations(ctx context.Context, c Cluster, h *catalog.PostgresHost) (stale []pg.StaleCollation, unseen []string, err error) {
	conn, err := pg.Connect(ctx, c.Conn)
	if err != nil {
		return nil, nil, err
	}
	locales, err := conn.Locales(ctx)
	if err = errors.Join(err, conn.Close()); err != nil {
		return nil, nil, err
	}
	before := ""
	if h != nil {
		before = h.Libc
	}
	here := pg.MachineOf(ctx, "").Libc
	for _, l := range locales {
		if err := ctx.Err(); err != nil {
			return stale, unseen, err
		}
		if !l.Connects {
			if l.Database != "template0" { // nobody sorts in it
				unseen = append(unseen, l.Database)
			}
			continue
		}
		o := c.Conn
		o.Database = l.Database
		one, err := staleIn(ctx, o, l, before, here)
		if err != nil {
			unseen = append(unseen, fmt.Sprintf("%s (%v)", l.Database, err))
			continue
		}
		stale = append(stale, one...)
	}
	return stale, unseen, nil
}

func staleIn(ctx context.Context, o pg.ConnOptions, l pg.Locale, before, here string) ([]pg.StaleCollation, error) {
	conn, err := pg.Connect(ctx, o)
	if err != nil {
		return nil, err
	}
	stale, err := conn.StaleCollations(ctx, l, before, here)
	return stale, errors.Join(err, conn.Close())
}

// describeStale says it in a text of bounded length.
func describeStale(stanza string, s pg.StaleCollation) string {
	what := "the default collation"
	if s.Collation != "" {
		what = "the collation " + s.Collation
	}
	var b strings.Builder
	fmt.Fprintf(&b, "cluster %s, database %s: %s (%s) has version %s, here it is %s", stanza, s.Database, what, s.Provider, s.Recorded, known(s.Actual))
	if len(s.Indexes) > 0 {
		fmt.Fprintf(&b, "; indexes that may be out of order: %s; build them again: REINDEX INDEX %s", namesOf(s.Indexes, s.More), s.Indexes[0])
		if len(s.Indexes)+s.More > 1 {
			b.WriteString(", and so on")
		}
	}
	if len(s.Tables) > 0 {
		fmt.Fprintf(&b, "; tables whose rows may lie in another partition than is looked into: %s", namesOf(s.Tables, 0))
	}
	all := s.Repair()
	fmt.Fprintf(&b, "; then: %s", strings.TrimSuffix(all[len(all)-1], ";"))
	return b.String()
}

// namesOf lists up to a hundred.
func namesOf(names []string, more int) string {
	const most = 100
	if n := len(names) - most; n > 0 {
		names, more = names[:most], more+n
	}
	text := strings.Join(names, ", ")
	if more > 0 {
		text += fmt.Sprintf(" and %d more (restore --json has them)", more)
	}
	return text
}
