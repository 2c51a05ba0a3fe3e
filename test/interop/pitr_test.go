package interop

import (
	"fmt"
	"testing"
	"time"

	"holdfast/internal/pg"
	"holdfast/test/tally"
)

var targetTypes = []string{"time", "xid", "lsn", "name"}

// TestPointInTime writes a ledger while backups and archiving run, restores to fifty random targets of every type and
// compares the rows with the ledger's at that point, on 15 and 18.
func TestPointInTime(t *testing.T) {
	const targets = 50
	for _, v := range []pg.Version{15, 18} {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, v, "zst")
			r.bundled = true
			r.holdfast("stanza-create", "--pg1-path="+r.c.DataDir())
			r.ourArchive("zst")
			r.c.Exec(t, ledgerTables...)
			l := writeLedger(t, r.c.ConnOptions(), nil)
			for _, typ := range []string{"full", "incr", "diff"} {
				if v == 15 {
					r.backup(typ, "ours", "zst")
				} else {
					r.backup(typ, "ours", "zst", "--repo1-block")
				}
				time.Sleep(1500 * time.Millisecond) // a backup is chosen for a time in a later second than its end
			}
			p := r.past(l.stop())
			r.holdfast("check", r.server()...) // from here on no WAL is on its way
			r.holdfast("verify")
			r.c.Stop(t, "fast")
			for _, typ := range targetTypes {
				t.Run(typ, func(t *testing.T) {
					t.Parallel()
					p.replay(t, typ, p.choose(t, typ, targets))
				})
			}
			t.Run("ends", func(t *testing.T) {
				t.Parallel()
				p.ends(t)
			})
			t.Logf("%d targets of each of %d types on PostgreSQL %s, among %d rows and %d backups", targets, len(targetTypes), v, len(p.entries), len(p.backups))
			tally.Count(t, "recovery targets", targets*len(targetTypes))
		})
	}
}

// ends restores to what has no choice of targets, promoted: the end of the archive, the end of the backup, and just
// before a transaction.
func (p *past) ends(t *testing.T) {
	last, middle := p.entries[len(p.entries)-1], p.choose(t, "xid", 1)[0]
	r := *p.rig
	r.t = t
	for i, c := range []struct {
		args      []string
		low, high int64
	}{
		{[]string{"--type=default"}, last.n, last.n},
		{[]string{"--type=immediate", "--target-action=promote"}, 1, last.n - 1},
		{[]string{"--type=xid", "--target=" + middle.xid, "--target-exclusive", "--target-action=promote", "--set=" + p.newest(t, "xid", middle)}, middle.n - 1, middle.n - 1},
	} {
		dir := r.dirFor(fmt.Sprintf("end%d", i))
		r.holdfast("restore", append(c.args, "--pg1-path="+dir, "--archive-mode=off", "--lock-path="+dir+"-locks")...)
		conn := r.start(dir)
		n := queryInt(t, conn, "select coalesce(max(n), 0) from ledger")
		if got := queryText(t, conn, rows); n < c.low || n > c.high || got != want(n) {
			t.Errorf("%v: %s, want the rows up to one from %d to %d", c.args, got, c.low, c.high)
		}
	}
}
