package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"holdfast/internal/engine"
)

// printCopyPlan shows what a copy would do.
func printCopyPlan(out io.Writer, p *engine.CopyPlan, from, to string) error {
	var b page
	name := p.Stanza
	if p.ToStanza != p.Stanza {
		name += " as " + p.ToStanza
	}
	b.f("copy of stanza %s from %s to %s\n", name, from, to)
	if p.Creates {
		b.f("  the target has no such stanza yet: it is made\n")
	}
	b.f("  encryption: %s\n", p.Cipher)
	for _, c := range p.Clusters {
		if c.From != c.To {
			b.f("  archive %s (system identifier %d) is %s there\n", c.From, c.SystemID, c.To)
		} else if c.New && !p.Creates {
			b.f("  archive %s (system identifier %d) is new there\n", c.To, c.SystemID)
		}
	}
	for _, k := range p.Backups {
		switch k.State {
		case engine.CopyThere:
			b.f("  there     %s\n", k.Label)
		case engine.CopyRefused:
			b.f("  NOT       %s: %s\n", k.Label, k.Reason)
		default:
			b.f("  copy      %s: %d objects, %s", k.Label, k.Objects, engine.Size(k.Bytes))
			if k.Done > 0 {
				b.f("; %d are there from an interrupted copy", k.Done)
			}
			if k.Why != "asked for" {
				b.f(" (%s)", k.Why)
			}
			b.f("\n")
		}
	}
	for _, w := range p.WAL {
		if w.Segments+w.There > 0 {
			b.f("  WAL %s: %s to %s, %d segments to copy, %d there\n", w.To, w.First, w.Last, w.Segments, w.There)
		}
	}
	b.f("  in all: %d objects, %s\n", p.Objects, engine.Size(p.Bytes))
	for _, w := range p.Warnings {
		b.f("warning: %s\n", w)
	}
	return b.to(out)
}

// printCopied says what a copy did.
func printCopied(out io.Writer, r *repoResult) error {
	var b page
	for _, f := range r.Failed {
		b.f("not copied: %s\n", f)
	}
	b.f("stanza %s: %d backup(s) copied, %d there before; %d objects, %s, %d WAL segments, in %s\n",
		r.Stanza, len(r.Backups), len(r.There), r.Objects, engine.Size(r.Bytes), r.Segments, r.Duration.Round(time.Millisecond))
	if err := b.to(out); err != nil || r.Pruned == nil {
		return err
	}
	return printExpire(out, r.Pruned, false)
}

// differences counts what the target lacks, or has otherwise.
func differences(p *engine.CopyPlan) int {
	n := 0
	for _, k := range p.Backups {
		if k.State != engine.CopyThere {
			n++
		}
	}
	for _, w := range p.WAL {
		n += w.Segments + w.Files
	}
	return n
}

// printDiff shows what only one side has: < the source, > the target, ! both, but not the same.
func printDiff(out io.Writer, p *engine.CopyPlan) error {
	var b strings.Builder
	for _, k := range p.Backups {
		switch k.State {
		case engine.CopyThere:
		case engine.CopyRefused:
			fmt.Fprintf(&b, "! %s backup %s: %s\n", p.Stanza, k.Label, k.Reason)
		case engine.CopyUnfinished:
			fmt.Fprintf(&b, "< %s backup %s: %d of %d objects are in the target\n", p.Stanza, k.Label, k.Done, k.Done+k.Objects)
		default:
			fmt.Fprintf(&b, "< %s backup %s: %d objects, %s\n", p.Stanza, k.Label, k.Objects, engine.Size(k.Bytes))
		}
	}
	for _, l := range p.Others {
		fmt.Fprintf(&b, "> %s backup %s\n", p.Stanza, l)
	}
	for _, w := range p.WAL {
		if w.Segments+w.Files > 0 {
			fmt.Fprintf(&b, "< %s WAL %s: %d of %d segments between %s and %s, %d other files\n", p.Stanza, w.From, w.Segments, w.Segments+w.There, w.First, w.Last, w.Files)
		}
	}
	for _, w := range p.Warnings {
		fmt.Fprintf(&b, "  %s %s\n", p.Stanza, w)
	}
	if b.Len() == 0 {
		fmt.Fprintf(&b, "stanza %s: the target has everything\n", p.Stanza)
	}
	_, err := io.WriteString(out, b.String())
	return err
}
