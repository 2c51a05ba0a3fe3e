package interop

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/pg/pgtest"
	"holdfast/test/tally"
)

// chain is one combination of the matrix: what cluster, how a repository is written, and which program makes what.
type chain struct {
	compress                 string
	aes, bundle, sums        bool
	segMB                    int
	full, diff, inc, archive string // "ours" or "theirs"
}

func (c chain) String() string {
	s := c.compress
	for _, f := range []struct {
		on   bool
		name string
	}{{c.aes, "-aes"}, {c.bundle, "-bundle"}, {c.sums, "-checksums"}} {
		if f.on {
			s += f.name
		}
	}
	return fmt.Sprintf("%s-%dMB/full-%s-diff-%s-incr-%s-archive-%s", s, c.segMB, c.full, c.diff, c.inc, c.archive)
}

// chains covers every pair of the columns' values.
var chains = []chain{
	{"none", true, false, true, 1, "ours", "ours", "theirs", "ours"},
	{"none", false, true, false, 16, "theirs", "theirs", "ours", "theirs"},
	{"gz", false, true, false, 1, "ours", "ours", "theirs", "theirs"},
	{"gz", true, false, true, 16, "theirs", "theirs", "ours", "ours"},
	{"lz4", false, true, true, 1, "theirs", "ours", "ours", "ours"},
	{"lz4", true, false, false, 16, "ours", "theirs", "theirs", "theirs"},
	{"zst", false, false, true, 16, "theirs", "ours", "theirs", "theirs"},
	{"zst", true, true, false, 1, "ours", "theirs", "ours", "ours"},
}

// values are the columns of a row.
func (c chain) values() []any {
	return []any{c.compress, c.aes, c.bundle, c.sums, c.segMB, c.full, c.diff, c.inc, c.archive}
}

// TestChainsCoverPairs: every value of a column meets every value of every other column in some row.
func TestChainsCoverPairs(t *testing.T) {
	type pair [4]any
	met := map[pair]bool{}
	for _, c := range chains {
		for i, a := range c.values() {
			for j, b := range c.values() {
				met[pair{i, a, j, b}] = true
			}
		}
	}
	for _, c := range chains {
		for _, d := range chains {
			for i, a := range c.values() {
				for j, b := range d.values() {
					if i != j && !met[pair{i, a, j, b}] {
						t.Errorf("column %d: %v never meets column %d: %v", i, a, j, b)
					}
				}
			}
		}
	}
}

// TestMixedChains takes a full, a diff and two incrs, each by one of the programs, with changes in between and all but
// the last under a workload; both programs verify the repository, tell the same of it, and restore every backup alike, the
// last one as the data directory is. Then the one that did not begin takes a full backup and lets the chain expire.
func TestMixedChains(t *testing.T) {
	for _, c := range chains {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			r := newRigFor(t, pgtest.Options{Checksums: c.sums, WALSegMB: c.segMB}, c.compress)
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
			// In the end nobody but the backup looks at the data.
			r.c.Exec(t, "alter system set autovacuum = off", "alter system set bgwriter_lru_maxpages = 0", "select pg_reload_conf()")
			r.fill()
			for _, b := range []struct{ typ, by, change string }{
				{"full", c.full, "update big set pad = 'diff' where id % 1000 = 0"},
				{"diff", c.diff, "create table later as select * from big where id < 2000"},
				{"incr", c.inc, "drop table later; truncate empty_t; delete from big where id % 5000 = 1"},
			} {
				stop := r.busy()
				r.backup(b.typ, b.by, c.compress)
				stop()
				r.c.Exec(t, append(strings.Split(b.change, ";"), "checkpoint")...)
			}
			r.backup("incr", c.diff, c.compress)
			r.sameAsLive()
			r.holdfast("check", r.server()...) // from here on no WAL is on its way
			r.agree()
			for _, label := range r.labels() {
				r.restoreAlike(label)
			}
			r.startsWith(30000 - 6)

			other := map[string]string{"ours": "theirs", "theirs": "ours"}[c.full]
			r.backup("full", other, c.compress)
			expire := []string{"--config=" + r.conf, "--stanza=" + stanza, "--repo1-retention-full=1", "--log-level-console=warn", "expire"}
			if other == "ours" {
				r.run(r.dropIn(), expire...)
			} else {
				r.run("pgbackrest", expire...)
			}
			r.holdfast("check", r.server()...)
			r.agree()
			if labels := r.labels(); len(labels) != 1 {
				t.Errorf("after expire by %s there are the backups %v", other, labels)
			}
			r.restoreAlike(r.labels()[0])
		})
	}
	t.Cleanup(func() { tally.Count(t, "combinations of the interop matrix (every pair of values)", len(chains)) })
}

// dropIn is our program under the name of the other.
func (r *rig) dropIn() string {
	r.t.Helper()
	name := filepath.Join(r.dirFor("bin"), "pgbackrest")
	r.run("ln", "-sf", r.bin, name)
	return name
}

// sameAsLive restores the newest backup, before which nobody wrote and after which nobody did, and compares what holds
// the data with the data directory as it is: neither may lack a file, except for contents of unlogged tables.
func (r *rig) sameAsLive() {
	r.t.Helper()
	dir, spaces := r.dirFor("quiet"), r.dirFor("quiet-spaces")
	r.holdfast("restore", "--pg1-path="+dir, "--tablespace-map-all="+spaces, "--type=none")
	live := r.tree(r.c.DataDir(), filepath.Join(filepath.Dir(r.c.DataDir()), "tablespace-side"))
	restored := r.tree(dir, filepath.Join(spaces, "side"))
	compared := 0
	for _, files := range []map[string]string{live, restored} {
		for name := range files {
			if !strings.HasPrefix(name, "0/base/") && !strings.HasPrefix(name, "0/global/") && !strings.HasPrefix(name, "0/pg_xact/") && !strings.HasPrefix(name, "1/") ||
				filepath.Base(name) == "pg_internal.init" {
				continue
			}
			if _, unlogged := live[name+"_init"]; unlogged && restored[name] == "" {
				continue
			}
			compared++
			if live[name] != restored[name] {
				r.t.Errorf("%s is %q in the data directory, %q restored", name, live[name], restored[name])
			}
		}
	}
	if compared < 1000 {
		r.t.Errorf("only %d files were compared", compared)
	}
}
