package interop

import (
	"slices"
	"testing"
	"time"

	"holdfast/internal/pg/pgtest"
	"holdfast/test/tally"
)

// replayAll replays count random targets of every type, which begin with the backup set.
func (p *past) replayAll(t *testing.T, name string, count int, more ...string) {
	t.Helper()
	for _, typ := range targetTypes {
		t.Run(name+"/"+typ, func(t *testing.T) {
			t.Parallel()
			p.replay(t, typ, p.choose(t, typ, count), more...)
		})
	}
}

// TestPointInTimeAcrossFailover goes on with the ledger on a promoted copy while the old server writes a little more, and
// restores to points before and after the switch and to what the old server wrote after it. Then the stanza is upgraded
// to another cluster of a newer version: the old one's past stays within reach.
func TestPointInTimeAcrossFailover(t *testing.T) {
	r := newRig(t, 15, "zst")
	r.bundled = true
	r.holdfast("stanza-create", "--pg1-path="+r.c.DataDir())
	r.ourArchive("zst")
	r.c.Exec(t, ledgerTables...)
	l := writeLedger(t, r.c.ConnOptions(), nil)
	r.backup("full", "ours", "zst")
	time.Sleep(1500 * time.Millisecond) // a backup is chosen for a time in a later second than its end
	before := l.stop()
	r.holdfast("check", r.server()...)
	first := r.past(nil).backups[0].Label

	s := r.server2(r.dirFor("promoted"))
	r.holdfast("restore", "--pg1-path="+s.opts.DataDir, "--recovery-option=archive_command="+r.pushCommand(s.opts.DataDir, "zst"))
	s.start(t)
	s.await(t, "select not pg_is_in_recovery()")
	lost := writeLedger(t, r.c.ConnOptions(), before)
	time.Sleep(500 * time.Millisecond)
	left := lost.stop()
	r.holdfast("check", r.server()...)
	r.c.Stop(t, "fast")

	l = writeLedger(t, s.conn, before)
	time.Sleep(1500 * time.Millisecond)
	promoted := serverArgs("pg1", s.opts.DataDir, s.conn)
	r.warns("the timeline changed since backup "+first, "backup", append(promoted, "--start-fast", "--type=incr", "--repo1-bundle")...)
	time.Sleep(1500 * time.Millisecond)
	all := l.stop()
	r.holdfast("check", promoted...)
	r.holdfast("verify")
	s.stop(t, "fast")

	older := r.past(before)
	whole := r.past(all)
	abandoned := r.past(left)
	abandoned.entries, abandoned.backups = left[len(before):], abandoned.backups[:1]
	old := *r
	r.c = pgtest.New(t, pgtest.Options{Version: 18, Checksums: true, WALSegMB: 1, Settings: map[string]string{"archive_mode": "on", "wal_level": "replica", "archive_command": "false"}})
	for _, p := range []*past{older, whole, abandoned} {
		p.rig = &old
	}
	t.Run("old", func(t *testing.T) {
		older.replayAll(t, "before", 8)
		whole.replayAll(t, "all", 16)
		abandoned.replayAll(t, "abandoned", 4, "--set="+first, "--target-timeline=1")
	})
	if t.Failed() {
		return
	}

	r.holdfast("stanza-upgrade", "--pg1-path="+r.c.DataDir())
	r.ourArchive("zst")
	r.c.Exec(t, ledgerTables...)
	l = writeLedger(t, r.c.ConnOptions(), nil)
	r.backup("full", "ours", "zst")
	time.Sleep(1500 * time.Millisecond)
	upgraded := r.past(l.stop())
	r.holdfast("check", r.server()...)
	r.holdfast("verify")
	upgraded.backups = slices.Clone(upgraded.backups[2:])
	t.Run("upgraded", func(t *testing.T) {
		older.replayAll(t, "of the old cluster", 4, "--set="+first)
		upgraded.replayAll(t, "of the new cluster", 8)
	})
	tally.Count(t, "recovery targets across timelines", len(targetTypes)*(8+16+4+4+8))
}
