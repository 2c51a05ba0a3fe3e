package script

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestStandby: a restore makes a standby that follows the primary, and the next backup reads from it.
func TestStandby(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2\nlog-level-console=info")
	r.run("--stanza=demo stanza-create")
	r.insert("before")
	r.backup0("--stanza=demo --start-fast backup")
	r.archive()
	s := r.newStandby()
	if said := r.program(r.name, "--config="+r.conf, "--stanza=demo", "--pg1-path="+s.data, "--type=standby",
		fmt.Sprintf("--recovery-option=primary_conninfo=host=%s port=%d user=postgres", r.c.SocketDir(), r.c.Port()), "restore"); said.code != 0 {
		t.Fatalf("%+v", said)
	}
	s.start()
	s.shows("select count(*) from pg_stat_wal_receiver where status = 'streaming'", "1")
	has(t, r.want(56, "--stanza=demo --start-fast --backup-standby backup"), "unable to find standby cluster - cannot proceed")
	r.configure("repo1-retention-full=2\nlog-level-console=info\nbackup-standby=y\n[demo]\n" + s.here(2))
	r.insert("from-standby")
	label := r.backup0("--stanza=demo --start-fast --type=full backup")
	has(t, r.run("repo-get backup/demo/"+label+"/backup.manifest"), "option-backup-standby=true")
	r.archive()
	r.lose()
	r.run("--stanza=demo --set=" + label + " --type=immediate --target-action=promote --recovery-option=archive_mode=off restore")
	r.start()
	if got := r.rows(); got != "before from-standby" {
		t.Error(got)
	}
}

// TestAsyncArchiving: the guide's example of archive-async, there and back.
func TestAsyncArchiving(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2\narchive-async=y\nprocess-max=2\narchive-get-queue-max=8MiB\nlog-level-console=info")
	has(t, r.run("--stanza=demo stanza-create"), "completed successfully")
	r.insert("a")
	r.backup0("--stanza=demo --start-fast backup")
	for i := range 8 {
		r.c.Exec(t, "create table bulk"+strconv.Itoa(i)+" as select md5(g::text) from generate_series(1, 20000) g")
	}
	r.insert("z")
	r.archive()
	if _, err := os.Stat(filepath.Join(r.dir, "spool/archive/demo/out")); err != nil {
		t.Errorf("the spool directory was not used: %v", err)
	}
	has(t, r.c.LogTail(64<<10), "to the archive asynchronously")
	pushed := r.logFile("demo-archive-push-async.log")
	has(t, pushed, "-------------------PROCESS START-------------------\n", "P00   INFO: archive-push command begin ", " WAL file(s) to archive: 0000000100000000000000", "P00 DETAIL: pushed WAL file '0000000100000000000000", "P00   INFO: archive-push command end: completed successfully (")
	r.lose()
	r.run("--stanza=demo restore")
	r.start()
	if got := r.rows(); got != "a z" {
		t.Error(got)
	}
	if got := r.c.QueryInt(t, "select count(*) from bulk7"); got != 20000 {
		t.Error(got)
	}
	if log := r.c.LogTail(64 << 10); !strings.Contains(log, "in the archive asynchronously") {
		t.Errorf("archive-get did not read ahead:\n%s", log)
	}
	got := r.logFile("demo-archive-get-async.log")
	has(t, got, "P00   INFO: archive-get command begin ", " WAL file(s) from archive: 0000000100000000000000", "P00 DETAIL: found 0000000100000000000000", " in the repo1 archive\n", "P00 DETAIL: unable to find 0000000100000000000000", "P00   INFO: archive-get command end: completed successfully (")
	// None is written when none is asked for, and the foreground never has one.
	r.configure("repo1-retention-full=2\narchive-async=y\nlog-level-file=off\n[global:archive-push]\nprocess-max=2")
	r.archive()
	if now := r.logFile("demo-archive-push-async.log"); strings.Count(now, "PROCESS START") != strings.Count(pushed, "PROCESS START") && strings.Contains(now, "--log-level-file=off") {
		t.Errorf("a log file, although there was to be none:\n%s", now)
	}
	for _, name := range []string{"demo-archive-push.log", "demo-archive-get.log"} {
		if exists(filepath.Join(r.dir, "log", name)) {
			t.Errorf("%s: archive_command should not write a log file per segment", name)
		}
	}
}

// TestOffline: a stopped cluster is backed up without a server, and starts from that without any WAL.
func TestOffline(t *testing.T) {
	r := newRig(t, "repo1-retention-full=1\nlog-level-console=info")
	r.run("--stanza=demo stanza-create")
	r.insert("cold")
	has(t, r.want(38, "--stanza=demo --no-online backup"), "ERROR: [038]")
	r.c.Stop(t, "fast")
	label := r.backup0("--stanza=demo --no-online --type=full backup")
	r.c.Start(t)
	r.lose()
	r.run("--stanza=demo --set=" + label + " restore")
	r.start()
	if got := r.rows(); got != "cold" {
		t.Error(got)
	}
}

// TestBlockIncremental: repo-block stores what changed of a large file, and every backup of the chain comes back.
func TestBlockIncremental(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2\nrepo1-bundle=y\nrepo1-block=y\ncompress-type=zst\nlog-level-console=info")
	r.run("--stanza=demo stanza-create")
	r.insert("full")
	r.c.Exec(t, "create table large as select g, md5(g::text) as sum from generate_series(1, 100000) g", "create index on large (g)")
	full := r.backup0("--stanza=demo --start-fast --type=full backup")
	r.insert("incr")
	r.c.Exec(t, "update large set sum = 'changed' where g = 50000")
	incr := r.backup0("--stanza=demo --start-fast backup")
	has(t, r.run("repo-get backup/demo/"+incr+"/backup.manifest"), "\"bi\":", "\"bim\":")
	r.archive()
	for set, want := range map[string]string{full: "full 0", incr: "full incr 1"} {
		r.lose()
		r.run("--stanza=demo --set=" + set + " --type=immediate --target-action=promote --recovery-option=archive_mode=off restore")
		r.start()
		if got := r.rows() + " " + r.c.QueryString(t, "select count(*)::text from large where sum = 'changed'"); got != want {
			t.Errorf("%s: %s, want %s", set, got, want)
		}
	}
	r.run("--stanza=demo verify")
}
