package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"holdfast/internal/action"
	"holdfast/internal/catalog"
	"holdfast/internal/engine"
)

// printf builds a page and writes it at once.
type page struct{ strings.Builder }

func (p *page) f(format string, a ...any) { fmt.Fprintf(p, format, a...) }

func (p *page) to(w io.Writer) error {
	_, err := io.WriteString(w, p.String())
	return err
}

func (e *Env) printBackupPlan(b *action.BackupPlan) error {
	var p page
	where := "inside the application tarball"
	if b.Mode == catalog.Apart {
		where = "apart, in " + b.Repository
	}
	p.f("backup_all would write to %s (%s free), PostgreSQL %s:\n", b.DumpDir, engine.Size(int64(min(b.FreeBytes, 1<<62))), where)
	for _, c := range b.Postgres {
		p.f("  postgres  %s: %s backup of %s, PostgreSQL %s, %d files, %s\n", c.Stanza, c.Type, c.DataDir, c.Version, c.Files, engine.Size(c.Bytes))
		p.f("            %s: %s\n", c.Type, c.Why)
	}
	if s := b.Staging; s != nil {
		p.f("  staging   %s has %s that this run builds on; about %s more, and the tarball holds it all\n", s.Dir, engine.Size(s.Chain), engine.Size(s.New))
	}
	p.rdsPlan(b.RDS)
	p.probackup(b)
	for _, t := range b.Trees {
		p.f("  files     /%s\n", strings.TrimPrefix(t.Path, "/"))
	}
	if b.EventBus {
		p.f("  eventbus  every selected topic\n")
	}
	if b.Store != "" {
		p.f("  copy      to %s\n", b.Store)
	}
	for _, n := range b.Notes {
		p.f("note: %s\n", n)
	}
	for _, u := range b.Unfinished {
		p.f("first: %s\n", u)
	}
	for _, w := range b.WhatIsWrong {
		p.f("wrong: %s\n", w)
	}
	for _, f := range b.Findings {
		if f.Severity == action.Warns {
			p.f("warning: %s\n", f)
		}
	}
	return p.to(e.Stdout)
}

func (e *Env) printSet(s *catalog.Set) error {
	var p page
	p.f("set %s: %s\n", s.ID, s.State)
	if s.Error != "" {
		p.f("  error: %s\n", s.Error)
	}
	for _, piece := range s.Pieces {
		p.f("  %-11s  %9s  %s", piece.Kind, engine.Size(piece.Size), piece.Path)
		if piece.Label != "" {
			p.f("  (stanza %s, backup %s)", piece.Stanza, piece.Label)
		}
		p.f("\n")
	}
	for _, b := range s.Backups {
		p.f("  stanza %s: %s backup %s", b.Stanza, b.Type, b.Label)
		if b.Why != "" {
			p.f(", %s", b.Why)
		}
		p.f("\n")
	}
	if r := s.Recovery; r != nil {
		p.f("recovery point %s at %s, skew %d ms\n", r.Name, r.Skew.From.Format(time.RFC3339), r.Skew.Milliseconds)
		p.rdsPoints(s)
		for _, c := range s.Local() {
			p.f("  postgres  %s: %s on timeline %d, PostgreSQL %s, %s, databases %s\n", c.Stanza, c.LSN, c.Timeline, c.Version, engine.Size(c.Bytes), strings.Join(c.Databases, ", "))
		}
		if r.Files != nil {
			p.f("  files     %d files, %s\n", r.Files.Files, engine.Size(r.Files.Bytes))
		}
		if r.EventBus != nil {
			p.f("  eventbus  %d topics, %d partitions, %d records\n", r.EventBus.Topics, r.EventBus.Partitions, r.EventBus.Records)
		}
	}
	if !s.Ended.IsZero() {
		p.f("took %s\n", s.Ended.Sub(s.Began).Round(time.Millisecond))
	}
	p.copyOf(s)
	p.keptOf(s)
	for _, w := range s.Warnings {
		p.f("warning: %s\n", w)
	}
	for _, v := range s.Verdicts {
		p.f("%s %s: %s\n", v.At.Format(time.RFC3339), v.Check, verdict(v))
	}
	return p.to(e.Stdout)
}

// copyOf says what is known of the set on external storage, and of the program that had its tarballs.
func (p *page) copyOf(s *catalog.Set) {
	if c := s.Copy; c != nil {
		p.f("copy on %s, as of %s: ", c.Store, c.At.Format(time.RFC3339))
		var there []string
		if c.Postgres {
			there = append(there, "PostgreSQL's backup")
		}
		if c.Tarballs {
			there = append(there, "tarballs")
		}
		if len(there) == 0 {
			there = []string{"nothing of this set"}
		}
		p.f("%s\n", strings.Join(there, ", "))
		for _, w := range c.WAL {
			p.f("  WAL of %s up to %s\n", w.Stanza, w.Last)
		}
		if c.LastSet != "" && c.LastSet != s.ID {
			p.f("  newest set there: %s\n", c.LastSet)
		}
		if c.Error != "" {
			p.f("  behind: %s\n", c.Error)
		}
	}
	if ps := s.PostScript; ps != nil {
		end := "ended well"
		if ps.Error != "" {
			end = "failed: " + ps.Error
		}
		p.f("post script %s %s, in %s\n", ps.Program, end, ps.Ran.To.Sub(ps.Ran.From).Round(time.Millisecond))
	}
}

// printCopyReport says what was copied to external storage.
func (e *Env) printCopyReport(r *action.CopyReport) error {
	var p page
	p.f("copy on %s: %d set(s) new there", r.Store, len(r.Copied))
	if r.LastSet != "" {
		p.f(", the newest is %s", r.LastSet)
	}
	p.f("; %d objects, %s, %d WAL segments\n", r.Objects, engine.Size(r.Bytes), r.Segments)
	for _, w := range r.WAL {
		p.f("  WAL of %s up to %s\n", w.Stanza, w.Last)
	}
	for _, id := range r.Behind {
		p.f("  not there: %s\n", id)
	}
	for _, x := range r.Due {
		p.f("  due there, left to other credentials (holdfast sets expire-store): %s\n", x)
	}
	for _, x := range r.Removed {
		p.f("  removed there: %s\n", x)
	}
	return p.to(e.Stdout)
}

func verdict(v catalog.Verdict) string {
	if v.OK {
		return "ok"
	}
	return fmt.Sprintf("%d finding(s)", len(v.Findings))
}

func (e *Env) printRestorePlan(r *action.RestorePlan) error {
	var p page
	if r.Set != nil {
		p.f("restore of set %s, made on %s by %s, application version %s\n", r.Set.ID, r.Set.Host, r.Set.Program, r.Set.AppVersion)
		target := fmt.Sprintf("recovery point %s (%s, skew %d ms)", r.Set.Recovery.Name, r.Set.Recovery.Skew.From.Format(time.RFC3339), r.Set.Recovery.Skew.Milliseconds)
		if !r.Until.IsZero() {
			target = r.Until.Format(time.RFC3339)
		}
		p.f("to: %s\n", target)
		p.rdsPoints(r.Set)
		for _, c := range r.Set.Local() {
			p.f("  postgres  %s: PostgreSQL %s, system identifier %d, backup %s, %s\n", c.Stanza, c.Version, c.SystemID, c.Label, engine.Size(c.Bytes))
		}
	}
	list := func(head string, items []string) {
		if len(items) > 0 {
			p.f("%s\n", head)
			for _, i := range items {
				p.f("  %s\n", i)
			}
		}
	}
	var from []string
	for _, f := range r.From {
		from = append(from, fmt.Sprintf("%-11s  %s", f.Kind, f.Path))
	}
	list("from:", from)
	p.rdsRestores(r.RDS)
	list("stops PostgreSQL on:", r.StopsServer)
	aside := "replaces (moved aside, kept until the checks have passed, then removed):"
	if r.KeepsAside {
		aside = "replaces (moved aside and kept):"
	}
	list(aside, r.Replaces)
	var spaces []string
	for _, name := range slices.Sorted(maps.Keys(r.Tablespaces)) {
		spaces = append(spaces, name+" in "+r.Tablespaces[name])
	}
	list("tablespaces (stanza/name):", spaces)
	list("creates:", r.Creates)
	list("replaces the topics:", r.Topics)
	if r.Set != nil {
		p.f("space: %s needed, %s free\n", engine.Size(r.NeedBytes), engine.Size(int64(min(r.FreeBytes, 1<<62))))
	}
	if r.GivesBack != "" {
		p.f("an interrupted restore (%s) is given back first; what stands in its place now is kept beside it\n", r.GivesBack)
	}
	list("notes:", r.Notes)
	for _, f := range r.Findings {
		p.f("warning: %s\n", f)
	}
	list("missing or wrong:", r.Missing)
	return p.to(e.Stdout)
}

func (e *Env) printRestored(r *action.RestoreResult) error {
	var p page
	p.f("set %s is restored, in %s\n", r.Set, r.Interval.To.Sub(r.Interval.From).Round(time.Millisecond))
	for _, c := range r.Postgres {
		p.f("  postgres  %s: recovered %s (%s), now on timeline %d, databases %s\n", c.Stanza, c.Reached, c.LSN, c.Timeline, strings.Join(c.Databases, ", "))
	}
	p.rdsProofs(r.RDS)
	p.f("  files     %d files, every SHA-256 as in the set\n", r.Files)
	if r.Bus != nil {
		p.f("  eventbus  %d topics, %d records, content as in the set\n", r.Bus.Topics, r.Bus.Records)
		for _, n := range r.Bus.Notes {
			p.f("            note: %s\n", n)
		}
	}
	if len(r.Params) > 0 {
		p.f("  parameters taken over: %s\n", strings.Join(r.Params, ", "))
	}
	for _, k := range r.Kept {
		p.f("kept: %s\n", k)
	}
	for _, w := range r.Warnings {
		p.f("warning: %s\n", w)
	}
	return p.to(e.Stdout)
}

func (e *Env) printDeletePlan(d *action.DeletePlan) error {
	var p page
	p.f("deleting set %s removes:\n", d.Set.ID)
	for _, f := range d.Files {
		p.f("  %s\n", f)
	}
	for _, b := range d.Backups {
		for _, l := range b.Backups {
			p.f("  stanza %s: backup %s\n", b.Stanza, l)
		}
	}
	for _, w := range d.WAL {
		p.f("  stanza %s: %d WAL segments that nothing else needs (%s)\n", w.Stanza, w.Files, engine.Size(w.Bytes))
	}
	for _, s := range d.Snapshots {
		p.f("  stanza %s: DB snapshot %s in %s (the DB instance %s stays)\n", s.Stanza, s.Snapshot, s.Region, s.Instance)
	}
	for _, b := range d.Probackup {
		p.f("  instance %s of %s: backup %s", b.Stanza, b.Catalog, strings.Join(b.Backups, " and "))
		if b.WAL {
			p.f(", and the WAL that no backup needs then")
		}
		p.f("\n")
	}
	for _, w := range d.Warnings {
		p.f("warning: %s\n", w)
	}
	return p.to(e.Stdout)
}
