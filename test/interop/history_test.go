package interop

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestExpireKeepsHistory promotes a cluster twice, with a full backup on each timeline, and lets expire remove the first backup
// and all WAL that only it and the second one's way onwards needed. What is left must still lead a restore of either backup to
// where it belongs: of the newest to the end of the last timeline, of the older one to a timeline of its own, whose number
// PostgreSQL learns from the history files in the archive to be free.
func TestExpireKeepsHistory(t *testing.T) {
	r := newRig(t, 15, "lz4")
	r.holdfast("stanza-create", "--pg1-path="+r.c.DataDir())
	r.ourArchive("lz4")
	r.c.Exec(t, "create table told (n int)", "insert into told values (1)")
	r.backup("full", "ours", "lz4")
	r.holdfast("check", r.server()...)
	r.c.Stop(t, "fast")

	goOn := func(name string, more ...string) *second {
		t.Helper()
		s := r.server2(r.dirFor(name))
		r.holdfast("restore", append([]string{"--pg1-path=" + s.opts.DataDir, "--recovery-option=archive_command=" + r.pushCommand(s.opts.DataDir, "lz4")}, more...)...)
		s.start(t)
		s.await(t, "select not pg_is_in_recovery()")
		return s
	}
	backup := func(s *second, sql string) {
		t.Helper()
		args := serverArgs("pg1", s.opts.DataDir, s.conn)
		s.exec(t, sql)
		r.holdfast("backup", append(args, "--start-fast", "--type=full", "--compress-type=lz4")...)
		r.holdfast("check", args...)
	}
	two := goOn("two")
	backup(two, "insert into told values (2)")
	two.exec(t, "insert into told values (20)")
	r.holdfast("check", serverArgs("pg1", two.opts.DataDir, two.conn)...)
	two.stop(t, "fast")
	three := goOn("three")
	backup(three, "insert into told values (3)")
	three.exec(t, "insert into told values (30)")
	r.holdfast("check", serverArgs("pg1", three.opts.DataDir, three.conn)...)
	three.stop(t, "fast")

	before := r.labels()
	r.holdfast("expire", "--repo1-retention-full=2", "--repo1-retention-archive=1")
	if left := r.labels(); len(before) != 3 || !slices.Equal(left, before[1:]) {
		t.Fatalf("of the backups %v these are left: %v", before, left)
	}
	entries, err := os.ReadDir(filepath.Join(r.repo, "archive", stanza, "15-1"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if list := strings.Join(names, " "); strings.Contains(list, "0000000100000000") || !strings.Contains(list, "00000002.history") || !strings.Contains(list, "00000003.history") {
		t.Errorf("in the archive are %s", list)
	}
	r.holdfast("verify")

	newest := goOn("newest", "--archive-mode=off")
	if told := queryInt(t, newest.conn, "select sum(n) from told"); told != 1+2+20+3+30 {
		t.Errorf("the newest backup leads to %d", told)
	}
	newest.stop(t, "fast")
	older := goOn("older", "--set="+before[1], "--type=immediate", "--target-action=promote")
	if told, timeline := queryInt(t, older.conn, "select sum(n) from told"), queryInt(t, older.conn, "select timeline_id from pg_control_checkpoint()"); told != 1+2 || timeline != 4 {
		t.Errorf("the older backup leads to %d on timeline %d", told, timeline)
	}
	older.exec(t, "insert into told values (4)")
	r.holdfast("check", serverArgs("pg1", older.opts.DataDir, older.conn)...) // its WAL fits into the archive
	r.holdfast("verify")
	older.stop(t, "fast")
}
