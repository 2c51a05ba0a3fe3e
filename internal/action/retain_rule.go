package action

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/internal/catalog"
)

// RetentionRule says which sets stay. A set goes only when Sets newer ones stay that restore, and it is at least Days days old, and
// nothing else keeps it: a pin, a set that is built on it, or that it is the newest that is wholly here.
type RetentionRule struct {
	Sets int `json:"sets"` // 0: no set goes
	Days int `json:"days"` // 0: age keeps no set
}

// failedKept is how many entries of failed runs stay, for what they say.
const failedKept = 5

// standing is what the choice knows of one set.
type standing struct {
	set     *catalog.Set
	missing []string // pieces that are not here, and of which nothing says that they are elsewhere
	away    bool     // a piece is not here
	built   []string // ids of the sets with a backup that one of its own is built on, or is
	unnamed string   // a backup that belongs to no set and is built on one of its own
	strange string   // a kind of piece that this program does not know
	tool    string   // another program has its PostgreSQL backup, and knows what is built on it
	unknown error    // why it can't be told what of it is here
}

// counts: it restores, as far as is known.
func (s *standing) counts() bool { return s.set.Good() && len(s.missing) == 0 && s.unknown == nil }

// doubt says why a complete set does not count; empty: it does.
func (s *standing) doubt() string {
	switch n := len(s.set.Verdicts); {
	case len(s.missing) > 0:
		return "it does not count: not here: " + strings.Join(s.missing, ", ")
	case n > 0 && !s.set.Verdicts[n-1].OK:
		return fmt.Sprintf("it does not count: %s of %s found damage", s.set.Verdicts[n-1].Check, s.set.Verdicts[n-1].At.UTC().Format("2006-01-02 15:04 MST"))
	}
	return ""
}

// age is for how long the set has been complete.
func age(s *catalog.Set, now time.Time) time.Duration {
	if s.Ended.IsZero() {
		return now.Sub(s.Began)
	}
	return now.Sub(s.Ended)
}

// choice is what becomes of one set.
type choice struct {
	goes    bool
	strip   bool     // the entry of a failed run stays, what the run left goes
	reasons []string // why it stays, or goes
	window  bool     // stays for another reason than a pin: WAL without a gap from here on
}

// choose applies the rule to all sets, oldest first. It looks at nothing but its arguments.
func (r RetentionRule) choose(sets []standing, now time.Time) []choice {
	out := make([]choice, len(sets))
	newer, failed, here := 0, 0, false // that count; failed ones; one that is wholly here has been seen
	for i := len(sets) - 1; i >= 0; i-- {
		s := &sets[i]
		switch s.set.State {
		case catalog.Complete:
			out[i] = r.complete(s, newer, now)
			if s.counts() && !s.away && !here {
				here = true
				out[i].keep("it is the newest that is wholly here")
			}
			if s.counts() {
				newer++
			}
		case catalog.Failed:
			out[i] = r.failed(s.set, newer, failed)
			if s.set.Removal == nil {
				failed++
			}
		default:
			out[i] = choice{window: true, reasons: []string{"a run is making it, or was interrupted"}}
		}
		if s.set.Removal == nil && s.unknown != nil {
			out[i].keep("it can't be told what of it is here: " + s.unknown.Error())
		}
		if s.tool != "" { // also when its removal was begun: without the entry nobody would know whose the backup is
			out[i].keep("its PostgreSQL backup is " + s.tool + "'s, which the retention leaves alone: holdfast sets delete " + s.set.ID)
		}
		if s.set.Removal == nil && s.strange != "" {
			out[i].keep("this program does not know what " + s.strange + " is")
		}
	}
	for i := range sets {
		if sets[i].unnamed != "" && sets[i].set.Removal == nil {
			out[i].keep("backup " + sets[i].unnamed + " is built on it, which belongs to no set")
		}
	}
	chains(sets, out, true)
	chains(sets, out, false)
	return out
}

// keep makes the set stay for a reason that is no pin.
func (c *choice) keep(reason string) {
	if c.goes || c.strip {
		c.reasons = nil
	}
	c.goes, c.strip, c.window, c.reasons = false, false, true, append(c.reasons, reason)
}

// complete decides on a complete set of which that many newer ones count.
func (r RetentionRule) complete(s *standing, newer int, now time.Time) (c choice) {
	if r.Sets == 0 {
		c.keep("the retention is off (alation.backup_v2.retention.sets is 0)")
	} else if newer < r.Sets {
		text := fmt.Sprintf("one of the %d newest", r.Sets)
		if !s.counts() {
			text = fmt.Sprintf("only %d newer sets restore", newer)
		}
		c.keep(text)
	}
	if r.Days > 0 && age(s.set, now) < time.Duration(r.Days)*24*time.Hour {
		c.keep(fmt.Sprintf("younger than %d days", r.Days))
	}
	if s.set.Pinned(now) {
		c.reasons = append(c.reasons, pinText(s.set.Pin))
	}
	if len(c.reasons) == 0 {
		c.goes = true
		text := fmt.Sprintf("%d newer sets stay", r.Sets)
		if r.Days > 0 {
			text += fmt.Sprintf(", and it is %d days old or older", r.Days)
		}
		c.reasons = append(c.reasons, text)
	}
	if d := s.doubt(); d != "" {
		c.reasons = append(c.reasons, d)
	}
	return c
}

// pinText is a pin in a few words.
func pinText(p *catalog.Pin) string {
	if p.Until.IsZero() {
		return "pinned: " + p.Reason
	}
	return "pinned until " + p.Until.UTC().Format("2006-01-02 15:04 MST") + ": " + p.Reason
}

// failed decides on a failed set, with that many newer sets that count, and newer failed ones.
func (r RetentionRule) failed(s *catalog.Set, newer, failed int) choice {
	switch {
	case s.Removal != nil:
		return choice{goes: true, reasons: []string{"its removal of " + s.Removal.At.UTC().Format("2006-01-02 15:04 MST") + " is completed: " + s.Removal.Reason}}
	case r.Sets == 0:
		return choice{window: true, reasons: []string{"the retention is off (alation.backup_v2.retention.sets is 0)"}}
	case newer == 0:
		return choice{window: true, reasons: []string{"failed, and no set was made since"}}
	case failed >= failedKept:
		return choice{goes: true, reasons: []string{fmt.Sprintf("failed, and %d newer failed ones stay", failedKept)}}
	}
	return choice{strip: true, reasons: []string{fmt.Sprintf("one of the last %d that failed: the entry stays, what the run left goes", failedKept)}}
}

// chains keeps what the sets that stay are built on: those of the window first, whose chain is of the window, then the others.
func chains(sets []standing, out []choice, window bool) {
	index := map[string]int{}
	for i := range sets {
		index[sets[i].set.ID] = i
	}
	for i := len(sets) - 1; i >= 0; i-- {
		if out[i].goes || out[i].strip || out[i].window != window {
			continue
		}
		for _, id := range sets[i].built {
			j, known := index[id]
			if !known || j == i || sets[j].set.Removal != nil {
				continue
			}
			c, reason := &out[j], "set "+sets[i].set.ID+" is built on it"
			if c.goes || c.strip {
				c.goes, c.strip, c.reasons = false, false, nil
				if d := sets[j].doubt(); d != "" {
					c.reasons = append(c.reasons, d)
				}
			}
			c.window = c.window || window
			if !slices.ContainsFunc(c.reasons, func(r string) bool { return strings.HasSuffix(r, "is built on it") }) {
				c.reasons = append(c.reasons, reason)
			}
		}
	}
}
