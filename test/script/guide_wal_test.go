package script

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/pg/pgtest"
)

// waitFor waits until something is so.
func (r *rig) waitFor(what string, so func() bool) {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); !so(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("never: %s\n%s", what, r.c.LogTail(4<<10))
		}
	}
}

// switchWAL ends a segment that holds a row and returns its name.
func (r *rig) switchWAL(row string) string {
	r.t.Helper()
	r.insert(row)
	return r.c.QueryString(r.t, "select pg_walfile_name(pg_switch_wal())")
}

// TestAsyncWithARepositoryAway: with archive-async=y the repository that answers gets every segment, PostgreSQL keeps them
// for the other, which gets them when it is back; recovery reads ahead from the one that answers.
func TestAsyncWithARepositoryAway(t *testing.T) {
	r := newRig(t, "repo1-path=@/repo1\nrepo2-path=@/repo2\nrepo1-retention-full=2\nrepo2-retention-full=2\narchive-async=y\nprocess-max=2")
	r.run("--stanza=demo stanza-create")
	r.insert("a")
	label := r.backup("--repo=2")
	r.archive()
	one, away := filepath.Join(r.dir, "repo1"), filepath.Join(r.dir, "away")
	rename := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	rename(one, away)
	if err := os.WriteFile(one, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	segment := r.switchWAL("b")
	r.waitFor(segment+" in repo2", func() bool {
		return strings.Contains(r.run("--repo=2 --recurse repo-ls archive/demo"), segment)
	})
	ready := filepath.Join(r.c.DataDir(), "pg_wal/archive_status", segment+".ready")
	r.waitFor("the failure in PostgreSQL's log", func() bool { return strings.Contains(r.c.LogTail(64<<10), "repo1: ") })
	if !exists(ready) {
		t.Error("PostgreSQL was told that the segment is safe")
	}
	r.want(1, "--stanza=demo --repo=2 archive-get 0000000100000000000000FF "+filepath.Join(r.dir, "none"))
	r.lose()
	has(t, r.run("--stanza=demo --log-level-console=info --recovery-option=archive_mode=off restore"), "repo2: restore backup set "+label)
	r.start()
	if got := r.rows(); got != "a b" {
		t.Error(got)
	}
	if err := os.Remove(one); err != nil {
		t.Fatal(err)
	}
	rename(away, one)
}

// TestBothGetWhatOneMissed: synchronously too, a segment is done only when the last repository has it.
func TestBothGetWhatOneMissed(t *testing.T) {
	r := newRig(t, "repo1-path=@/repo1\nrepo2-path=@/repo2\nrepo1-retention-full=2\nrepo2-retention-full=2")
	r.run("--stanza=demo stanza-create")
	r.c.Exec(t, "alter system set archive_command = 'false'", "select pg_reload_conf()")
	segment := r.switchWAL("a")
	file := filepath.Join(r.c.DataDir(), "pg_wal", segment)
	two, away := filepath.Join(r.dir, "repo2"), filepath.Join(r.dir, "away")
	if err := os.Rename(two, away); err != nil {
		t.Fatal(err)
	}
	has(t, r.want(104, "--stanza=demo archive-push "+file), "ERROR: [055]: repo2: ", "run: pgbackrest stanza-create")
	has(t, r.run("--repo=1 --recurse repo-ls archive/demo"), segment)
	if err := os.RemoveAll(two); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away, two); err != nil {
		t.Fatal(err)
	}
	r.run("--stanza=demo archive-push " + file)
	has(t, r.run("--repo=2 --recurse repo-ls archive/demo"), segment)
	// The same name with another content is refused.
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(r.dir, segment)
	b[len(b)-1] ^= 1
	if err := os.WriteFile(other, b, 0o644); err != nil {
		t.Fatal(err)
	}
	has(t, r.want(45, "--stanza=demo archive-push "+other), "ERROR: [045]: repo1: ", "ERROR: [045]: repo2: ")
}

// TestQueueMax: WAL that waits is given up rather than filling the disk, and both the log and the archive say so.
func TestQueueMax(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2")
	r.run("--stanza=demo stanza-create")
	r.insert("a")
	r.backup("")
	r.archive()
	r.configure("repo1-path=@/nowhere\narchive-push-queue-max=3MB\n")
	dropped := r.switchWAL("b")
	for i := range 5 {
		r.switchWAL(fmt.Sprint("c", i))
	}
	r.waitFor(dropped+" dropped", func() bool {
		return strings.Contains(r.c.LogTail(64<<10), "dropped WAL file '"+dropped+"' because archive queue exceeded 3MB")
	})
	r.configure("repo1-retention-full=2\n")
	r.archive()
	if left := r.run("--recurse repo-ls archive/demo"); strings.Contains(left, dropped) {
		t.Errorf("%s is in the archive", dropped)
	}
	has(t, r.want(103, "--stanza=demo verify"), "gap: the segments between", "make a new backup")
	r.backup("--type=full")
	r.run("--stanza=demo check")
}

// TestStanzaUpgrade: a cluster of a newer major version takes over the stanza; its backups stand beside the earlier ones.
func TestStanzaUpgrade(t *testing.T) {
	r := newRig(t, "repo1-retention-full=4")
	r.run("--stanza=demo stanza-create")
	r.insert("old")
	before := r.backup("")
	settings := map[string]string{"archive_mode": "on", "wal_level": "replica", "archive_command": r.c.QueryString(t, "show archive_command"), "checkpoint_timeout": "1h"}
	old := r.c
	old.Stop(t, "fast")
	r.c = pgtest.New(t, pgtest.Options{Version: 18, Checksums: true, WALSegMB: 1, Settings: settings})
	r.configure("repo1-retention-full=4")
	has(t, r.want(51, "--stanza=demo backup"), "ERROR: [051]", "stanza-upgrade")
	r.want(28, "--stanza=demo stanza-create")
	r.c.Stop(t, "fast")
	r.run("--stanza=demo --no-online stanza-upgrade")
	r.c.Start(t)
	r.run("--stanza=demo check")
	has(t, r.run("--stanza=demo --log-level-console=info stanza-upgrade"), "on repo1 is already up to date")
	r.insert("new")
	after := r.backup("")
	if !strings.HasSuffix(after, "F") { // nothing of another cluster to build on
		t.Error(after)
	}
	has(t, r.run("--stanza=demo info"), "db (current)", "wal archive min/max (18): ", after, "db (prior)", "wal archive min/max (15): ", before)
	r.archive()
	r.lose()
	r.run("--stanza=demo restore")
	r.start()
	if got := r.rows(); got != "new" {
		t.Error(got)
	}
	// The earlier cluster still comes back.
	dir := filepath.Join(ownDir(t), "data")
	r.run("--stanza=demo --pg1-path=" + dir + " --set=" + before + " restore")
	version, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if err != nil || string(version) != "15\n" {
		t.Errorf("%q %v", version, err)
	}
	r.run("--stanza=demo verify")
}

// TestLinks: a directory outside the data directory is backed up, and comes back as a directory, as a link to the same
// place, or as a link to another.
func TestLinks(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2")
	r.run("--stanza=demo stanza-create")
	r.insert("linked")
	outside := filepath.Join(ownDir(t), "outside")
	for _, command := range [][]string{{"/bin/mkdir", outside}, {"/bin/cp", "/etc/hostname", outside + "/extra.conf"}, {"/bin/ln", "-s", outside, r.c.DataDir() + "/conf.d"}} {
		if s := r.program(command[0], command[1:]...); s.code != 0 {
			t.Fatal(s.errs)
		}
	}
	r.backup("")
	r.archive()
	link := filepath.Join(r.c.DataDir(), "conf.d")
	moved := filepath.Join(ownDir(t), "moved")
	for _, c := range []struct{ option, want string }{{"", ""}, {"--link-all ", outside}, {"--link-map=conf.d=" + moved + " ", moved}} {
		r.lose()
		if err := os.RemoveAll(outside); err != nil {
			t.Fatal(err)
		}
		r.run("--stanza=demo " + c.option + "restore")
		got, err := os.Readlink(link)
		if c.want == "" && err == nil || got != c.want {
			t.Errorf("%q: %q %v", c.option, got, err)
		}
		if _, err := os.ReadFile(filepath.Join(link, "extra.conf")); err != nil {
			t.Errorf("%q: %v", c.option, err)
		}
	}
	r.start()
	has(t, r.rows(), "linked")
}

// TestHardLinksAndTime: with repo-hardlink an incremental backup looks like a full one; with retention by time, full backups
// stay until a later one is old enough.
func TestHardLinksAndTime(t *testing.T) {
	r := newRig(t, "repo1-hardlink=y\nrepo1-retention-full-type=time\nrepo1-retention-full=1")
	r.run("--stanza=demo stanza-create")
	r.insert("a")
	full := r.backup("--type=full")
	incr := r.backup("--type=incr")
	file := func(label string) os.FileInfo {
		info, err := os.Stat(filepath.Join(r.dir, "repo/backup/demo", label, "pg_data/PG_VERSION.gz"))
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	if !os.SameFile(file(full), file(incr)) {
		t.Error("the unchanged file is not the same")
	}
	r.backup("--type=full")
	r.backup("--type=full")
	has(t, r.run("--stanza=demo info"), full, incr) // none is older than a day
	r.run("--stanza=demo verify")
}
