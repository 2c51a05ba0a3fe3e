package interop

import (
	"fmt"
	"strings"
	"testing"
)

// chain is one combination of the matrix: how a repository is written, and which program makes which backup.
type chain struct {
	compress        string
	aes, bundle     bool
	full, diff, inc string // "ours" or "theirs"
	archive         string
}

func (c chain) String() string {
	s := c.compress
	if c.aes {
		s += "-aes"
	}
	if c.bundle {
		s += "-bundle"
	}
	return fmt.Sprintf("%s/full-%s-diff-%s-incr-%s-archive-%s", s, c.full, c.diff, c.inc, c.archive)
}

// chains covers every pair of the columns' values.
var chains = []chain{
	{"zst", false, true, "ours", "ours", "ours", "ours"},
	{"gz", true, false, "ours", "theirs", "ours", "theirs"},
	{"lz4", true, true, "theirs", "ours", "ours", "ours"},
	{"none", false, false, "theirs", "ours", "theirs", "ours"},
	{"none", true, true, "ours", "ours", "theirs", "theirs"},
	{"gz", false, true, "theirs", "theirs", "ours", "ours"},
	{"lz4", false, false, "ours", "theirs", "theirs", "ours"},
	{"zst", true, false, "theirs", "ours", "ours", "theirs"},
}

// TestMixedChains takes a full, a diff and two incrs, each by one of the programs, with changes in between and under a
// workload; both programs verify the repository, tell the same of it, and restore every backup alike.
func TestMixedChains(t *testing.T) {
	for _, c := range chains {
		t.Run(c.String(), func(t *testing.T) {
			r := newRig(t, 15, c.compress)
			r.encrypted, r.bundled = c.aes, c.bundle
			r.configure(c.compress)
			if c.full == "ours" {
				r.holdfast("stanza-create", "--pg1-path="+r.c.DataDir())
			} else {
				r.backrest("stanza-create")
			}
			if c.archive == "ours" {
				r.ourArchive(c.compress)
			} else {
				r.archiveWith(fmt.Sprintf("pgbackrest --config=%s --stanza=%s archive-push %%p", r.conf, stanza))
			}
			r.fill()
			for _, b := range []struct{ typ, by, change string }{
				{"full", c.full, "update big set pad = 'diff' where id % 1000 = 0"},
				{"diff", c.diff, "create table later as select * from big where id < 2000"},
				{"incr", c.inc, "drop table later; truncate empty_t; delete from big where id % 5000 = 1"},
				{"incr", c.diff, ""},
			} {
				stop := r.busy()
				r.backup(b.typ, b.by, c.compress)
				stop()
				if b.change != "" {
					r.c.Exec(t, append(strings.Split(b.change, ";"), "checkpoint")...)
				}
			}
			r.holdfast("check", r.server()...) // from here on no WAL is on its way
			r.agree()
			for _, label := range r.labels() {
				r.restoreAlike(label)
			}
			r.startsWith(30000 - 6)
		})
	}
}
