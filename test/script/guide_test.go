package script

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestQuickStart: stanza-create, check, a first backup, info, loss, restore.
func TestQuickStart(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2\nstart-fast=y")
	has(t, r.run("--stanza=demo --log-level-console=info stanza-create"), "P00   INFO: stanza-create command begin", "for stanza 'demo' on repo1", "command end: completed successfully (")
	has(t, r.run("--stanza=demo --log-level-console=info stanza-create"), "already exists on repo1 and is valid")
	has(t, r.run("--stanza=demo --log-level-console=info check"), "successfully archived to '"+r.dir+"/repo/archive/demo/15-1/", ".gz' on repo1")
	r.insert("Important")
	label := r.backup("")
	if !strings.HasSuffix(label, "F") { // incr is the default, and there is nothing to build on
		t.Error(label)
	}
	has(t, r.run("info"), "stanza: demo", "status: ok", "full backup: "+label)
	r.archive()
	r.lose()
	has(t, r.run("--stanza=demo --log-level-console=detail restore"), "restore backup set "+label, "DETAIL: restore file")
	r.start()
	if got := r.rows(); got != "Important" {
		t.Error(got)
	}
	auto, err := os.ReadFile(filepath.Join(r.c.DataDir(), "postgresql.auto.conf"))
	if err != nil {
		t.Fatal(err)
	}
	has(t, string(auto), "restore_command = '"+r.name+" --config="+r.conf+` --stanza=demo archive-get %f "%p"'`)
	// A file that PostgreSQL can't do without is lost, and comes back.
	r.archive()
	r.c.Stop(t, "fast")
	if err := os.Remove(filepath.Join(r.c.DataDir(), "global/pg_control")); err != nil {
		t.Fatal(err)
	}
	r.run("--stanza=demo --delta restore")
	r.start()
	if got := r.rows(); got != "Important" {
		t.Error(got)
	}
	r.run("--stanza=demo verify")
	// Archiving that does not work is found, soon if asked to.
	r.c.Exec(t, "alter system set archive_command = 'false'", "select pg_reload_conf()")
	has(t, r.want(82, "--stanza=demo --archive-timeout=.1 check"), "ERROR: [082]: ", "pg_stat_archiver")
}

// TestConfiguration: where values come from, and what the log says of them.
func TestConfiguration(t *testing.T) {
	r := newRig(t, "repo1-path=@/wrong\ncompress-type=gz\nlog-level-console=off\n[global:backup]\ncompress-type=none\n[global:archive-push]\ncompress-type=lz4\n")
	include := filepath.Join(r.dir, "conf.d")
	if err := os.Mkdir(include, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(include, "a.conf"), []byte("[demo]\nrepo1-path="+r.dir+"/repo\nexclude=junk/\nnot-an-option=1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	with := "--config-include-path=" + include + " --stanza=demo "
	r.c.Exec(t, "alter system set archive_command = '"+r.name+" --config="+r.conf+" "+with+"archive-push %p'", "select pg_reload_conf()")
	junk := filepath.Join(r.c.DataDir(), "junk")
	if err := os.Mkdir(junk, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(junk, "file"), []byte("x"), 0o666); err != nil {
		t.Fatal(err)
	}
	has(t, r.run(with+"stanza-create"), "WARN: configuration file contains invalid option 'not-an-option'")
	r.env = []string{"PGBACKREST_PROCESS_MAX=2", "PGBACKREST_START_FAST=y"}
	out := r.run(with + "--log-level-console=info --annotation=source=guide backup")
	has(t, out, "P00   INFO: backup command begin 0.", "--annotation=source=guide", "--compress-type=none", "--exclude=junk/", "--process-max=2", "--repo1-path="+r.dir+"/repo ", "--start-fast",
		"WARN: option 'repo1-retention-full' is not set")
	label := newLabel.FindStringSubmatch(out)[1]
	has(t, r.run(with+"--set="+label+" info"), "source: guide")
	has(t, r.run(with+"--recurse --filter=lz4$ repo-ls archive"), ".lz4")
	if files := r.run(with + "--recurse repo-ls backup/demo/" + label); !strings.Contains(files, "pg_data/PG_VERSION\n") || strings.Contains(files, "junk/") {
		t.Errorf("compressed, or not excluded:\n%s", files)
	}
	log, err := os.ReadFile(filepath.Join(r.dir, "log", "demo-backup.log"))
	if err != nil {
		t.Fatal(err)
	}
	has(t, string(log), "-------------------PROCESS START-------------------\n", "P00   INFO: backup command begin", "P00 DETAIL: backup file ", "new backup label = "+label, "backup command end: completed successfully (")
	if _, err := os.Stat(filepath.Join(r.dir, "wrong")); err == nil {
		t.Error("the weaker of two values was used")
	}
	// Codes of the original.
	has(t, r.want(31, with+"--nonsense backup"), "ERROR: [031]: invalid option '--nonsense'")
	has(t, r.want(32, with+"--process-max=many backup"), "ERROR: [032]: 'many' is not valid for 'process-max' option")
	has(t, r.want(31, with+"--repo1-host=store backup"), "ERROR: [031]: option 'repo1-host=store' is not done by Holdfast", "HINT: run the command on the host that has the repository")
	has(t, r.want(37, "--stanza=other backup"), "backup command requires option: pg1-path", "HINT: does this stanza exist?")
	has(t, r.want(55, "--stanza=demo verify"), "ERROR: [055]: ", "run: pgbackrest stanza-create")
	has(t, r.want(1, with+"archive-get 0000000100000000000000FF /tmp/none"), "")
}

// TestBackupTypes: a full backup, what builds on it, and the types in info.
func TestBackupTypes(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2\nrepo1-bundle=y\ncompress-type=zst")
	r.run("--stanza=demo stanza-create")
	r.insert("full")
	full := r.backup("--type=full")
	r.insert("diff")
	diff := r.backup("--type=diff")
	r.insert("incr")
	incr := r.backup("")
	r.insert("late")
	if !strings.HasPrefix(diff, full+"_") || !strings.HasSuffix(diff, "D") || !strings.HasPrefix(incr, full+"_") || !strings.HasSuffix(incr, "I") {
		t.Error(full, diff, incr)
	}
	has(t, r.run("--stanza=demo info"), "full backup: "+full, "diff backup: "+diff, "incr backup: "+incr, "backup reference list: "+full)
	hasNot(t, r.run("--stanza=demo --type=diff info"), "full backup: "+full)
	has(t, r.run("--stanza=demo --output=json info"), `"label":"`+incr+`"`, `"prior":"`+diff+`"`)
	r.archive()
	for set, want := range map[string]string{full: "full", diff: "diff full", incr: "diff full incr"} {
		r.lose()
		r.run("--stanza=demo --set=" + set + " --type=immediate --target-action=promote --recovery-option=archive_mode=off restore")
		r.start()
		if got := r.rows(); got != want {
			t.Errorf("%s: %s, want %s", set, got, want)
		}
	}
}

// TestRetention: what expires after a backup, by itself, by hand, and what a dry run shows.
func TestRetention(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2\nrepo1-retention-diff=1")
	r.run("--stanza=demo stanza-create")
	first := r.backup("--type=full")
	diff1 := r.backup("--type=diff")
	diff2 := r.backup("--type=diff")
	info := r.run("info")
	has(t, info, first, diff2)
	hasNot(t, info, diff1)
	second := r.backup("--type=full")
	out := r.run("--stanza=demo --start-fast --type=full --no-expire-auto --log-level-console=info backup")
	third := newLabel.FindStringSubmatch(out)[1]
	hasNot(t, out, "expire backup")
	has(t, r.run("info"), first, second, third)
	has(t, r.run("--stanza=demo --dry-run --log-level-console=info expire"), "[DRY-RUN] repo1: expire backup "+first)
	has(t, r.run("info"), first)
	has(t, r.run("--stanza=demo --log-level-console=info expire"), "repo1: expire backup "+first, "remove archive")
	hasNot(t, r.run("info"), first)
	has(t, r.want(0, "--stanza=demo --set="+second+" --log-level-console=info expire"), "expire backup "+second)
	hasNot(t, r.run("info"), second)
	has(t, r.want(104, "--stanza=demo --set="+third+" expire"), "ERROR: [075]: repo1: ")
	r.run("--stanza=demo verify")
}

// TestPointInTime: a table is dropped, and comes back from before that.
func TestPointInTime(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2\nlog-level-console=info")
	r.run("--stanza=demo stanza-create")
	r.insert("kept")
	label := r.backup("")
	r.insert("also")
	time.Sleep(1100 * time.Millisecond) // a backup's end is known to the second, and a target must be later
	r.c.Exec(t, "select pg_create_restore_point('before_drop')")
	lsn := r.c.QueryString(t, "select pg_current_wal_lsn()::text")
	time.Sleep(20 * time.Millisecond)
	moment := r.c.QueryString(t, "select to_char(clock_timestamp(), 'YYYY-MM-DD HH24:MI:SS.US') || to_char(extract(timezone_hour from clock_timestamp()), 'SG09')")
	time.Sleep(20 * time.Millisecond)
	r.c.Exec(t, "drop table important_table")
	r.archive()
	for _, c := range []struct {
		target, want string
	}{{"--type=time|--target=" + moment, "also kept"}, {"--type=name|--target=before_drop", "also kept"}, {"--type=lsn|--target=" + lsn, "also kept"}, {"--type=immediate|--set=" + label, "kept"}} {
		r.lose()
		args := append([]string{"--config=" + r.conf, "--stanza=demo", "--target-action=promote", "--recovery-option=archive_mode=off"}, strings.Split(c.target, "|")...)
		if s := r.program(r.name, append(args, "restore")...); s.code != 0 {
			t.Fatalf("%s: %d\n%s%s", c.target, s.code, s.out, s.errs)
		}
		r.start()
		if got := r.rows(); got != c.want {
			t.Errorf("%s: %q, want %q", c.target, got, c.want)
		}
	}
	r.lose()
	has(t, r.want(75, "--stanza=demo --type=time --target=2001-01-01T00:00:00+00 restore"), "ERROR: [075]")
	has(t, r.want(37, "--stanza=demo --type=time restore"), "restore command requires option: target")
}

// TestDeltaRestore: some files are lost, one is changed, one is foreign; the rest stays.
func TestDeltaRestore(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2\nprocess-max=2")
	r.run("--stanza=demo stanza-create")
	r.insert("kept")
	r.backup("")
	r.archive()
	has(t, r.want(38, "--stanza=demo --delta restore"), "ERROR: [038]")
	r.c.Stop(t, "fast")
	data := r.c.DataDir()
	has(t, r.want(40, "--stanza=demo restore"), "ERROR: [040]")
	kept := filepath.Join(data, "PG_VERSION")
	before, err := os.Stat(kept)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(data, "global")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "foreign"), []byte("x"), 0o666); err != nil {
		t.Fatal(err)
	}
	r.run("--stanza=demo --delta restore")
	if after, err := os.Stat(kept); err != nil || !os.SameFile(before, after) {
		t.Error("a file that was right was written again", err)
	}
	if _, err := os.Stat(filepath.Join(data, "foreign")); err == nil {
		t.Error("a foreign file stayed")
	}
	r.start()
	if got := r.rows(); got != "kept" {
		t.Error(got)
	}
}
