package interop

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/pg/pgtest"
)

// standby makes a streaming standby of the rig's cluster and starts it.
func (r *rig) standby() *second {
	r.t.Helper()
	s := r.server2(r.dirFor("standby"))
	o := r.c.ConnOptions()
	spaces := filepath.Join(filepath.Dir(r.c.DataDir()), "tablespace-side")
	r.run(filepath.Join(r.c.BinDir(), "pg_basebackup"), "-h", o.Host, "-p", fmt.Sprint(o.Port), "-U", o.User, "-D", s.opts.DataDir, "-X", "stream", "-R",
		"--checkpoint=fast", "-T", spaces+"="+r.dirFor("standby-side"))
	s.start(r.t)
	r.t.Cleanup(func() {
		if _, err := os.Stat(filepath.Join(s.opts.DataDir, "postmaster.pid")); err == nil {
			s.stop(r.t, "immediate")
		}
	})
	s.await(r.t, "select exists (select from pg_stat_wal_receiver where status = 'streaming')")
	return s
}

// TestBackupFromStandby takes a full and an incr from a standby under load, and lets both programs restore them (ours
// only, with blocks): recovered to the end, the rows are the primary's. Without the standby "prefer" takes the primary and
// says so, "y" fails.
func TestBackupFromStandby(t *testing.T) {
	for _, block := range []bool{false, true} {
		t.Run(fmt.Sprintf("block=%v", block), func(t *testing.T) {
			t.Parallel()
			r := newRigFor(t, pgtest.Options{WALSegMB: 1}, "zst")
			r.bundled = true
			r.configure("zst")
			r.holdfast("stanza-create", "--pg1-path="+r.c.DataDir())
			r.ourArchive("zst")
			r.fill()
			r.c.Exec(t, ledgerTables...)
			s := r.standby()
			// A file that PostgreSQL does not know, different on either side: it tells where the backup has read.
			const marker = "base/1/99999"
			for dir, text := range map[string]string{r.c.DataDir(): "primary!", s.opts.DataDir: "standby!"} {
				file := filepath.Join(dir, marker)
				if err := os.WriteFile(file, bytes.Repeat([]byte(text), 1024), 0o600); err != nil {
					t.Fatal(err)
				}
				if cred := postgres(t); cred != nil {
					if err := os.Chown(file, int(cred.Uid), int(cred.Gid)); err != nil {
						t.Fatal(err)
					}
				}
			}
			args := append(r.server(), serverArgs("pg2", s.opts.DataDir, s.conn)...)
			args = append(args, "--start-fast", "--repo1-bundle")
			if block {
				args = append(args, "--repo1-block")
			}
			with := func(more ...string) []string { return append(slices.Clone(args), more...) }
			var entries []entry
			for _, typ := range []string{"full", "incr"} {
				l, stop := writeLedger(t, r.c.ConnOptions(), entries), r.busy()
				r.holdfast("backup", with("--backup-standby=y", "--type="+typ)...)
				stop()
				entries = l.stop()
				r.c.Exec(t, "update big set h = md5(h) where id % 300 = 7", "insert into side_t select * from big where id < 500", "checkpoint")
			}
			r.holdfast("check", r.server()...) // from here on no WAL is on its way
			r.holdfast("verify")
			sums := "select sum(hashtext(b::text))::text||' '||(select sum(hashtext(s::text)) from side_t s) from big b"
			rowsWant, sumsWant := queryText(t, r.c.ConnOptions(), rows), queryText(t, r.c.ConnOptions(), sums)
			if rowsWant != want(entries[len(entries)-1].n) {
				t.Fatalf("the primary has %s of %d", rowsWant, len(entries))
			}
			for i, label := range r.labels() {
				for _, by := range []string{"ours", "theirs"} {
					if block && by == "theirs" {
						continue // 2.45 does not know blocks
					}
					name := fmt.Sprintf("%s%d", by[:1], i)
					dir := r.dirFor(name)
					restore := []string{"--set=" + label, "--pg1-path=" + dir, "--tablespace-map-all=" + r.dirFor(name+"-side"), "--archive-mode=off"}
					if by == "ours" {
						r.holdfast("restore", restore...)
					} else {
						r.backrest(append(restore, "--log-level-console=warn", "restore")...)
					}
					got, err := os.ReadFile(filepath.Join(dir, marker))
					if err != nil || !strings.HasPrefix(string(got), "standby!") {
						t.Errorf("%s %s: the data was not read from the standby: %.8q %v", label, by, got, err)
					}
					conn := r.start(dir)
					if a, b := queryText(t, conn, rows), queryText(t, conn, sums); a != rowsWant || b != sumsWant {
						t.Errorf("%s restored by %s: %s, sums %s, the primary has %s, %s", label, by, a, b, rowsWant, sumsWant)
					}
				}
			}
			s.stop(t, "fast")
			if out, err := r.try(r.bin, r.command("backup", with("--backup-standby=y", "--type=incr"))...); err == nil || !strings.Contains(out, s.conn.Host) {
				t.Errorf("without a standby backup-standby=y is: %v\n%s", err, out)
			}
			r.warns("the primary serves the whole backup", "backup", with("--backup-standby=prefer", "--type=incr")...)
			r.holdfast("check", r.server()...)
			r.holdfast("verify")
		})
	}
}
