package script

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestEncryption: nothing in the repository can be read without the passphrase, everything with it; and the passphrase is
// never shown.
func TestEncryption(t *testing.T) {
	const pass = "zWaf6XtpjIVZC5444yXB+cgFDFl7MxGlgkZSaoPvTGirhPygu4jOKOXf9LO4vjfO"
	r := newRig(t, "repo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass="+pass+"\nlog-level-console=debug\nrepo1-retention-full=1")
	out := r.run("--stanza=demo stanza-create")
	r.insert("very secret row")
	label := r.backup0("--stanza=demo --start-fast --type=full backup")
	has(t, out, "--repo1-cipher-pass=<redacted>")
	r.archive()
	for _, dir := range []string{"repo", "log"} {
		err := filepath.WalkDir(filepath.Join(r.dir, dir), func(name string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			hasNot(t, string(b), pass, "very secret row", "[backrest]")
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	has(t, r.run("--stanza=demo info"), "cipher: aes-256-cbc", label)
	has(t, r.run("repo-get backup/demo/backup.info"), "[backrest]", label)
	has(t, r.run("repo-get backup/demo/"+label+"/backup.manifest"), "[target:file]")
	if raw := r.run("--raw repo-get backup/demo/backup.info"); !strings.Contains(raw, "Salted__") {
		t.Error("raw is not as it is stored")
	}
	r.lose()
	r.run("--stanza=demo restore")
	r.start()
	if got := r.rows(); got != "very secret row" {
		t.Error(got)
	}
	r.run("--stanza=demo verify")
	// Without the passphrase, and with a wrong one: two messages.
	r.configure("repo1-cipher-type=aes-256-cbc\n")
	has(t, r.want(37, "--stanza=demo verify"), "verify command requires option: repo1-cipher-pass")
	r.env = []string{"PGBACKREST_REPO1_CIPHER_PASS=wrong"}
	if wrong := r.program(r.name, "--config="+r.conf, "--stanza=demo", "verify"); wrong.code != 95 || !strings.Contains(wrong.errs, "passphrase") {
		t.Errorf("a wrong passphrase: %+v", wrong)
	}
	r.env = []string{"PGBACKREST_REPO1_CIPHER_PASS=" + pass}
	r.run("--stanza=demo verify")
}

// TestTablespacesAndDatabases: a tablespace goes elsewhere, and of two databases only one comes back.
func TestTablespacesAndDatabases(t *testing.T) {
	r := newRig(t, "repo1-retention-full=1")
	space := r.c.AddTablespace(t, "ts1")
	r.run("--stanza=demo stanza-create")
	r.c.Exec(t, "create table important_table (message text) tablespace ts1", "insert into important_table values ('in ts1')", "create database test1", "create database test2")
	label := r.backup("")
	has(t, r.run("--stanza=demo --set="+label+" info"), "test1 (", "test2 (", "ts1 (", space)
	r.archive()
	r.lose()
	moved := filepath.Join(ownDir(t), "moved")
	r.run("--stanza=demo --tablespace-map=ts1=" + moved + " --db-include=test2 restore")
	r.start()
	if got := r.rows(); got != "in ts1" {
		t.Error(got)
	}
	if got := r.c.QueryString(t, "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'ts1'"); got != moved {
		t.Error(got)
	}
	psql := func(db string) said {
		return r.program(filepath.Join(r.c.BinDir(), "psql"), "-h", r.c.SocketDir(), "-p", strings.TrimSpace(r.c.QueryString(t, "show port")), "-U", "postgres", "-d", db, "-c", "select 1")
	}
	if kept := psql("test2"); kept.code != 0 {
		t.Errorf("test2: %s", kept.errs)
	}
	if gone := psql("test1"); gone.code == 0 {
		t.Error("test1 was to be left out")
	}
	r.c.Exec(t, "drop database test1") // what is left of it can be removed
	r.c.Stop(t, "fast")
	has(t, r.want(80, "--stanza=demo --delta --db-include=nosuch restore"), "ERROR: [080]")
	has(t, r.want(76, "--stanza=demo --delta --tablespace-map=nosuch=/x restore"), "ERROR: [076]")
}

// TestSeveralRepositories: WAL goes to all, a backup to one, a restore takes what it finds, and one that is away does not
// stop the others.
func TestSeveralRepositories(t *testing.T) {
	lines := "repo1-path=@/repo1\nrepo1-retention-full=2\nrepo2-path=@/repo2\nrepo2-cipher-type=aes-256-cbc\nrepo2-cipher-pass=second\nrepo2-retention-full=1\nrepo2-bundle=y\nlog-level-console=info"
	r := newRig(t, lines)
	has(t, r.run("--stanza=demo stanza-create"), "on repo1", "on repo2")
	has(t, r.run("--stanza=demo check"), "' on repo1", "' on repo2")
	r.insert("first")
	one := r.backup0("--stanza=demo --start-fast backup")
	r.insert("second")
	two := r.backup0("--stanza=demo --start-fast --repo=2 backup")
	r.archive()
	has(t, r.run("--stanza=demo info"), "cipher: mixed", one, two, "repo1: backup", "repo2: backup")
	hasNot(t, r.run("--stanza=demo --repo=2 info"), one)
	has(t, r.run("--stanza=demo --output=json info"), `"repo-key":1`, `"repo-key":2`)
	for _, repo := range []string{"1", "2"} {
		if wal := r.run("--repo=" + repo + " --recurse --filter=^15-1/.{16}/ repo-ls archive/demo"); strings.Count(wal, "\n") < 3 {
			t.Errorf("repo%s: %s", repo, wal)
		}
	}
	r.lose()
	has(t, r.run("--stanza=demo --type=immediate --target-action=promote --recovery-option=archive_mode=off restore"), "repo1: restore backup set "+one)
	r.start()
	if got := r.rows(); got != "first" {
		t.Error(got)
	}
	r.lose()
	has(t, r.run("--stanza=demo --set="+two+" restore"), "repo2: restore backup set "+two)
	r.start()
	if got := r.rows(); got != "first second" {
		t.Error(got)
	}
	r.archive() // the history file of the new timeline among it
	// The first repository goes away: its place is taken by a file.
	if err := os.Rename(filepath.Join(r.dir, "repo1"), filepath.Join(r.dir, "away")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "repo1"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	wal := filepath.Join(r.dir, "wal")
	has(t, r.run("--stanza=demo archive-get 00000002.history "+wal), "found 00000002.history in the repo2 archive")
	r.want(1, "--stanza=demo --repo=2 archive-get 00000009.history "+wal)
	if s := r.program(r.name, "--config="+r.conf, "--stanza=demo", "archive-get", "00000009.history", wal); s.code < 25 {
		t.Errorf("not found, although one repository could not be asked: %+v", s)
	}
	// A segment gets to the second repository all the same; PostgreSQL keeps it until the first has it too.
	r.insert("third")
	segment := r.c.QueryString(t, "select pg_walfile_name(pg_switch_wal())")
	for end := time.Now().Add(time.Minute); !strings.Contains(r.run("--repo=2 --recurse repo-ls archive/demo"), segment); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s is not in repo2\n%s", segment, r.c.LogTail(2<<10))
		}
	}
	if ready := filepath.Join(r.c.DataDir(), "pg_wal/archive_status", segment+".ready"); !exists(ready) {
		t.Error("PostgreSQL was told that the segment is safe")
	}
	if err := os.Remove(filepath.Join(r.dir, "repo1")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(r.dir, "away"), filepath.Join(r.dir, "repo1")); err != nil {
		t.Fatal(err)
	}
	r.archive()
	has(t, r.run("--repo=1 --recurse repo-ls archive/demo"), segment)
	third := r.backup0("--stanza=demo --start-fast --repo=2 backup")
	has(t, r.run("--stanza=demo --repo=2 info"), third)
	has(t, r.want(32, "--stanza=demo --repo=3 backup"), "key '3' is not valid for 'repo' option")
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// TestHousekeeping: stop and start, notes, a look into the repository, and the end of a stanza.
func TestHousekeeping(t *testing.T) {
	r := newRig(t, "repo1-retention-full=1\nrepo2-path=@/repo2")
	r.run("--stanza=demo stanza-create")
	label := r.backup("")
	r.run("--stanza=demo stop")
	has(t, r.run("--stanza=demo stop"), "WARN: stop file already exists for stanza demo")
	has(t, r.want(62, "--stanza=demo backup"), "ERROR: [062]", "run: pgbackrest start --stanza=demo")
	r.run("--stanza=demo start")
	has(t, r.run("start"), "WARN: stop file does not exist\n")
	r.run("--stanza=demo --set=" + label + " --annotation=ticket=42 annotate")
	has(t, r.run("--stanza=demo --set="+label+" --repo=1 info"), "ticket: 42")
	r.run("--stanza=demo --set=" + label + " --annotation=ticket= annotate")
	hasNot(t, r.run("--stanza=demo --set="+label+" --repo=1 info"), "ticket")
	has(t, r.want(32, "--stanza=demo --set=bogus --annotation=a=b annotate"), "'bogus' is not a valid backup label format")
	r.want(75, "--stanza=demo --set=20010101-000000F --annotation=a=b annotate")
	has(t, r.run("--output=json repo-ls backup/demo"), `"backup.info":{"type":"file"`, `"`+label+`":{"type":"path"}`)
	has(t, r.run("repo-ls "+r.dir+"/repo"), "archive\nbackup\n")
	has(t, r.want(55, "repo-get nothing"), "ERROR: [055]")
	r.want(1, "--ignore-missing repo-get nothing")
	has(t, r.want(37, "--stanza=demo stanza-delete"), "stanza-delete command requires option: repo")
	has(t, r.want(55, "--stanza=demo --repo=1 stanza-delete"), "stop file does not exist")
	r.run("--stanza=demo stop")
	has(t, r.want(38, "--stanza=demo --repo=1 stanza-delete"), "ERROR: [038]")
	r.c.Stop(t, "fast")
	for _, repo := range []string{"1", "2"} {
		r.run("--stanza=demo stop") // the end of a stanza takes the stop file along
		r.run("--stanza=demo --repo=" + repo + " stanza-delete")
		if left := r.run("--repo=" + repo + " --recurse repo-ls"); strings.Contains(left, "demo") {
			t.Errorf("repo%s: %s", repo, left)
		}
	}
	r.c.Start(t)
	r.run("--stanza=demo stanza-create") // the stop file is gone
}

// TestTakingTurns: this program and Debian's on one configuration file, each going on where the other stopped.
func TestTakingTurns(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=shared\ncompress-type=zst\nstart-fast=y\nlog-level-console=info")
	r.original("--stanza=demo stanza-create")
	r.original("--stanza=demo check") // by way of our archive_command
	r.insert("a")
	r.original("--stanza=demo --type=full backup")
	r.insert("b")
	ours := r.backup0("--stanza=demo --type=diff backup")
	r.insert("c")
	theirs := newLabel.FindStringSubmatch(r.original("--stanza=demo --type=incr backup"))[1]
	if info, oinfo := r.run("--stanza=demo info"), r.original("--stanza=demo info"); info != oinfo {
		t.Errorf("info\n%s\nthe original\n%s", info, oinfo)
	}
	r.archive()
	for _, c := range []struct{ set, want string }{{ours, "a b"}, {theirs, "a b c"}} {
		for name, restore := range map[string]func(string) string{"ours": r.run, "the original": r.original} {
			r.lose()
			restore("--stanza=demo --set=" + c.set + " --type=immediate --target-action=promote --recovery-option=archive_mode=off restore")
			r.start()
			if got := r.rows(); got != c.want {
				t.Errorf("%s by %s: %s, want %s", c.set, name, got, c.want)
			}
		}
	}
	if dry, odry := r.run("--stanza=demo --dry-run --repo1-retention-full=1 expire"), r.original("--stanza=demo --dry-run --repo1-retention-full=1 expire"); strings.Contains(dry, "expire backup") != strings.Contains(odry, "expire full") {
		t.Errorf("expire\n%s\nthe original\n%s", dry, odry)
	}
}

// TestEachRepositoryForItself: faults that the original had when a repository was not the first one. Retention of the first was
// applied to others (2.41), the manifests of removed backups were looked for in the first, and files in blocks could not be
// restored from another (2.55.0).
func TestEachRepositoryForItself(t *testing.T) {
	r := newRig(t, "repo1-path=@/repo1\nrepo1-retention-full-type=time\nrepo1-retention-full=30\nrepo2-path=@/repo2\nrepo2-retention-full=1\nrepo2-retention-history=0\nrepo2-bundle=y\nrepo2-block=y\ncompress-type=zst\nlog-level-console=info")
	r.run("--stanza=demo stanza-create")
	r.c.Exec(t, "create table big as select g as id, repeat(md5(g::text), 8) as pad from generate_series(1, 20000) g", "checkpoint")
	backup := func(repo, typ string) string {
		return r.backup0("--stanza=demo --start-fast --repo=" + repo + " --type=" + typ + " backup")
	}
	first := []string{backup("1", "full"), backup("1", "full")}
	gone, full := backup("2", "full"), backup("2", "full")
	r.c.Exec(t, "update big set pad = 'changed' where id % 2000 = 7", "checkpoint")
	incr := backup("2", "incr")
	r.run("--stanza=demo expire")
	has(t, r.run("--stanza=demo --repo=1 info"), first...)
	has(t, r.run("--stanza=demo --repo=2 info"), full, incr)
	hasNot(t, r.run("--stanza=demo --repo=2 info"), gone)
	has(t, r.run("--repo=1 --recurse repo-ls backup/demo/backup.history"), first...)
	has(t, r.run("--repo=2 --recurse repo-ls backup/demo/backup.history"), full, incr)
	hasNot(t, r.run("--repo=2 --recurse repo-ls backup/demo/backup.history"), gone+".")
	r.archive()
	r.run("--stanza=demo verify")
	r.lose()
	has(t, r.run("--stanza=demo --log-level-console=info --repo=2 restore"), "repo2: restore backup set "+incr)
	r.start()
	if got := r.c.QueryString(t, "select count(*) || ' ' || count(*) filter (where pad = 'changed') from big"); got != "20000 10" {
		t.Error(got)
	}
}
