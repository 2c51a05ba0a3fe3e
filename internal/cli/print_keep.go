package cli

import (
	"strings"
	"time"

	"holdfast/internal/action"
	"holdfast/internal/catalog"
	"holdfast/internal/engine"
)

// keptOf says what keeps a set, that it is being removed, and what the retention did after it.
func (p *page) keptOf(s *catalog.Set) {
	if pin := s.Pin; pin != nil {
		end := "without an end"
		if !pin.Until.IsZero() {
			end = "until " + pin.Until.UTC().Format(time.RFC3339)
		}
		p.f("pinned at %s %s: %s\n", pin.At.UTC().Format(time.RFC3339), end, pin.Reason)
	}
	if r := s.Removal; r != nil {
		p.f("being removed since %s: %s\n", r.At.UTC().Format(time.RFC3339), r.Reason)
	}
	if r := s.Retention; r != nil {
		p.f("retention of %s: %d set(s) removed, %s freed\n", r.At.UTC().Format(time.RFC3339), len(r.Removed), engine.Size(r.Bytes))
		for _, id := range r.Removed {
			p.f("  %s\n", id)
		}
		if r.Error != "" {
			p.f("  not done: %s\n", r.Error)
		}
	}
}

// printRetentionPlan says what goes and what stays, each with the reasons.
func (e *Env) printRetentionPlan(r *action.RetentionPlan) error {
	var p page
	switch {
	case r.Rule.Sets == 0:
		p.f("retention: off (alation.backup_v2.retention.sets is 0)\n")
	case r.Rule.Days == 0:
		p.f("retention: %d sets\n", r.Rule.Sets)
	default:
		p.f("retention: %d sets, and every set younger than %d days\n", r.Rule.Sets, r.Rule.Days)
	}
	rows := [][]string{{"SET", "STATE", "", "FREES", "WHY"}}
	for _, s := range r.Sets {
		what, frees := "stays", "-"
		switch {
		case s.Goes:
			what = "goes"
		case len(s.Files)+len(s.Backups) > 0:
			what = "emptied"
		}
		if s.Bytes > 0 {
			frees = engine.Size(s.Bytes)
		}
		rows = append(rows, []string{s.ID, string(s.State), what, frees, strings.Join(s.Reasons, "; ")})
	}
	p.f("%s", table(rows))
	for _, s := range r.Sets {
		for _, f := range s.Files {
			p.f("removes %s (%s)\n", f.Path, engine.Size(f.Bytes))
		}
		for _, b := range s.Backups {
			p.f("removes backup %s of stanza %s from %s (%s)\n", b.Label, b.Stanza, b.Repository, engine.Size(b.Bytes))
		}
	}
	for _, s := range r.Sets {
		for _, x := range s.Snapshots {
			p.f("removes DB snapshot %s of stanza %s in %s\n", x.Snapshot, x.Stanza, x.Region)
		}
	}
	for _, w := range r.WAL {
		if w.Files > 0 {
			p.f("removes %d WAL files of stanza %s from %s (%s)\n", w.Files, w.Stanza, w.Repository, engine.Size(w.Bytes))
			for _, d := range w.WALPlan.WAL {
				for _, g := range d.Ranges {
					p.f("  %s to %s\n", g.First, g.Last)
				}
			}
		}
	}
	if r.Store != nil {
		for _, what := range append(append([]string{}, r.Store.Backups...), r.Store.Sets...) {
			p.f("removes %s from %s\n", what, r.Store.Store)
		}
		for _, w := range r.Store.WAL {
			p.f("removes %d WAL files of stanza %s from %s (%s)\n", w.Files, w.Stanza, r.Store.Store, engine.Size(w.Bytes))
		}
	}
	for _, n := range r.Notes {
		p.f("note: %s\n", n)
	}
	p.f("frees %s here\n", engine.Size(r.Bytes))
	return p.to(e.Stdout)
}

// printRetained says what was removed.
func (e *Env) printRetained(r *action.RetentionResult) error {
	var p page
	for _, id := range r.Removed {
		p.f("set %s is removed\n", id)
	}
	for _, id := range r.Emptied {
		p.f("what failed run %s had left is removed\n", id)
	}
	for _, what := range r.Store {
		p.f("removed from external storage: %s\n", what)
	}
	for _, what := range r.Due {
		p.f("due there, left to other credentials (holdfast sets expire-store): %s\n", what)
	}
	p.f("%s freed here\n", engine.Size(r.Bytes))
	return p.to(e.Stdout)
}
