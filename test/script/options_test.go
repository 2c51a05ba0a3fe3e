package script

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/pg"
)

// manifestOf is what the manifest command says as JSON.
type manifestOf struct {
	Label     string
	Reference []string
	Type      string
	Bundle    struct{ Bundle bool }
	Block     struct{ Block bool }
	FileList  []struct {
		Name      string
		Reference string
		Size      int64
		Bundle    *struct{ ID int64 }
		Block     *struct {
			Size     int64
			Checksum struct{ Size int }
			Map      struct {
				Size  int64
				Delta []struct {
					Reference  int
					SuperBlock struct {
						Total int
						Size  int64
					}
					Block struct{ Total int }
				}
			}
		}
	}
}

func (r *rig) manifest(args string) (m manifestOf) {
	r.t.Helper()
	out := r.run("--stanza=demo --output=json --log-level-console=off " + args + " manifest")
	if err := json.Unmarshal([]byte(out), &m); err != nil {
		r.t.Fatalf("%v\n%s", err, out)
	}
	return m
}

// TestBlockOptions: each option of block incremental changes what is written, and what was written so comes back.
func TestBlockOptions(t *testing.T) {
	r := newRig(t, "repo1-retention-full=9\nrepo1-bundle=y\nrepo1-block=y\ncompress-type=zst\nlog-level-file=off")
	r.run("--stanza=demo stanza-create")
	r.c.Exec(t, "create table large (g int, sum text) with (autovacuum_enabled = off)", "insert into large select g, md5(g::text) from generate_series(1, 30000) g", "vacuum freeze large", "checkpoint")
	name := "pg_data/" + r.c.QueryString(t, "select pg_relation_filepath('large')")
	file := filepath.Join(r.c.DataDir(), strings.TrimPrefix(name, "pg_data/"))
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	size := info.Size()
	blocks := func(unit int64) int { return int((size + unit - 1) / unit) }
	age := func(days int) {
		at := time.Now().Add(-time.Duration(days)*24*time.Hour - time.Hour)
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
	}
	var first string
	for _, c := range []struct {
		options string
		days    int   // since the file was changed
		block   int64 // expected; 0: stored whole
		sum     int
		supers  int // at least
	}{
		{"", 0, 8 << 10, 6, 1},
		{"--repo1-block-size-map=1MiB=32KiB --repo1-block-size-map=1GiB=64KiB --repo1-block-checksum-size-map=32KiB=11", 0, 32 << 10, 11, 1},
		{"--repo1-block-size-map=1GiB=8KiB", 0, 0, 0, 0},
		{"--repo1-block-age-map=1=2 --repo1-block-age-map=30=0 --repo1-block-size-super-full=64KiB", 2, 16 << 10, 6, int(size / (64 << 10))},
		{"--repo1-block-age-map=1=2 --repo1-block-age-map=30=0", 31, 0, 0, 0},
	} {
		age(c.days)
		label := r.backup("--type=full " + c.options)
		m := r.manifest("--filter=" + name)
		if m.Label != label || len(m.FileList) != 1 || m.FileList[0].Name != name || m.FileList[0].Size != size || !m.Bundle.Bundle || !m.Block.Block {
			t.Fatalf("%s: %+v", c.options, m)
		}
		b := m.FileList[0].Block
		if (b != nil) != (c.block > 0) {
			t.Errorf("%s after %d days: in blocks: %t", c.options, c.days, b != nil)
			continue
		}
		if b == nil {
			continue
		}
		d := b.Map.Delta
		if b.Size != c.block || b.Checksum.Size != c.sum || len(d) != 1 || d[0].Block.Total != blocks(c.block) || d[0].SuperBlock.Total < c.supers {
			t.Errorf("%s after %d days: %+v", c.options, c.days, b)
		}
		if c.options == "" {
			first = label
			if d[0].SuperBlock.Total != blocks(1<<20) {
				t.Errorf("super blocks of 1 MiB: %+v of %d bytes", d, size)
			}
		}
	}
	// An incremental backup has super blocks of its own size, and stores what changed.
	r.c.Exec(t, "update large set sum = 'changed' where g % 3 = 0", "checkpoint")
	incr := r.backup("--repo1-block-size-super=32KiB")
	m := r.manifest("--set=" + incr + " --filter=" + name)
	if m.Type != "incr" || len(m.Reference) != 2 {
		t.Fatalf("%+v", m)
	}
	changed := m.FileList[0].Block.Map.Delta[len(m.FileList[0].Block.Map.Delta)-1]
	if m.Reference[changed.Reference] != incr || changed.SuperBlock.Total < changed.Block.Total/8 || changed.Block.Total < 8 {
		t.Errorf("%+v", changed)
	}
	// The manifest command by itself: of the newest, of one, of what is stored where; as text.
	if all := r.manifest(""); all.Label != incr || len(all.FileList) < 900 {
		t.Errorf("%s: %d files", all.Label, len(all.FileList))
	}
	for _, f := range r.manifest("--set=" + incr + " --reference=latest").FileList {
		if f.Reference != "" {
			t.Errorf("%s is stored in %s", f.Name, f.Reference)
		}
	}
	older := r.manifest("--set=" + incr + " --reference=" + m.Reference[0])
	if len(older.FileList) == 0 {
		t.Error("nothing is stored in " + m.Reference[0])
	}
	for _, f := range older.FileList {
		if f.Reference != m.Reference[0] {
			t.Errorf("%s is not stored in %s", f.Name, m.Reference[0])
		}
	}
	has(t, r.run("--stanza=demo --set="+first+" manifest"), "label: "+first+"\n", "type: full\n", "bundle: true\nblock: true\n", "  - "+name+"\n", "block: size 8KB, map size ", "checksum size 6B")
	has(t, r.run("--stanza=demo --set="+first+" --filter="+name+" manifest"), "block delta:\n        reference: "+first+", read: 1/")
	r.want(75, "--stanza=demo --set=20200101-000000F manifest")
	has(t, r.want(32, "--stanza=demo --set=bogus manifest"), "not a valid backup label format")
	r.want(37, "manifest")
	r.archive()
	r.run("--stanza=demo verify")
	r.lose()
	r.run("--stanza=demo restore")
	r.start()
	if got := r.c.QueryInt(t, "select count(*) from large where sum = 'changed'"); got != 10000 {
		t.Error(got)
	}
}

// TestBackupOptions: options of a backup that nothing else here needs: each changes what it says.
func TestBackupOptions(t *testing.T) {
	r := newRig(t, "repo1-retention-full=9\ncompress-type=none\nlog-level-file=off")
	space := filepath.Base(r.c.AddTablespace(t, "ts1"))
	r.run("--stanza=demo stanza-create")
	r.c.Exec(t, "create table in_space (a int) tablespace ts1", "create table paged (a int) with (autovacuum_enabled = off)", "insert into paged select generate_series(1, 1000)", "checkpoint")
	oid := r.c.QueryString(t, "select oid::text from pg_tablespace where spcname = 'ts1'")
	link := func(label string) string { return "repo/backup/demo/" + label + "/pg_data/pg_tblspc/" + oid }

	// repo-symlink: without it, no link is made in the repository; with it, two.
	label := r.backup("--type=full --no-repo1-symlink")
	if exists(filepath.Join(r.dir, "repo/backup/demo/latest")) || exists(filepath.Join(r.dir, link(label))) {
		t.Error("links, although there were to be none")
	}
	label = r.backup("--type=full")
	if !exists(filepath.Join(r.dir, "repo/backup/demo/latest")) || !exists(filepath.Join(r.dir, link(label))) {
		t.Errorf("no links (%s)", space)
	}

	r.pageHeaders()
	r.archiveAlways()
	r.timeouts()
	r.umasks()
}

// pageHeaders: a page whose upper bound is 0 counts as never written, so that it must be empty. A cluster that encrypts its pages has
// such headers by chance; with page-header-check=n the checksum alone decides.
func (r *rig) pageHeaders() {
	t := r.t
	t.Helper()
	file := filepath.Join(r.c.DataDir(), r.c.QueryString(t, "select pg_relation_filepath('paged')"))
	r.c.Stop(t, "fast")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	whole := append([]byte(nil), b...)
	binary.LittleEndian.PutUint16(b[14:], 0)
	binary.LittleEndian.PutUint16(b[8:], pg.PageChecksum(b[:8192], 0))
	write := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const offline = "--no-online --type=full --log-level-console=info "
	write(b)
	warning := "WARN: invalid page checksums found in file pg_data/" + strings.TrimPrefix(file, r.c.DataDir()+"/")
	has(t, r.run("--stanza=demo "+offline+"backup"), warning)
	hasNot(t, r.run("--stanza=demo "+offline+"--no-page-header-check backup"), warning)
	b[100] ^= 1
	write(b)
	has(t, r.run("--stanza=demo "+offline+"--no-page-header-check backup"), warning)
	hasNot(t, r.run("--stanza=demo "+offline+"--no-checksum-page backup"), warning)
	write(whole)
	r.c.Start(t)
}

// archiveAlways: archive_mode=always is refused by check and backup, and with archive-mode-check=n taken.
func (r *rig) archiveAlways() {
	t := r.t
	t.Helper()
	r.c.Exec(t, "alter system set archive_mode = always")
	r.c.Restart(t)
	for _, command := range []string{"check", "--start-fast --type=full backup"} {
		has(t, r.want(67, "--stanza=demo "+command), "archive_mode", "--no-archive-mode-check")
		r.run("--stanza=demo --no-archive-mode-check " + command)
	}
	r.archive()
	segment := r.c.QueryString(t, "select last_archived_wal from pg_stat_archiver")
	push := func(option string) string {
		return r.run("--stanza=demo " + option + " archive-push " + filepath.Join(r.c.DataDir(), "pg_wal", segment))
	}
	has(t, push(""), "WARN: WAL file "+segment+" is in the archive already")
	hasNot(t, push("--no-archive-mode-check"), "WARN")
	r.c.Exec(t, "alter system reset archive_mode")
	r.c.Restart(t)
}

// timeouts: a server that hangs, in the middle of a command or before it, is given up.
func (r *rig) timeouts() {
	t := r.t
	t.Helper()
	checkpointer := int(r.c.QueryInt(t, "select pid from pg_stat_activity where backend_type = 'checkpointer'"))
	stopped := func(pid int, do func()) {
		t.Helper()
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
				t.Error(err)
			}
		}()
		do()
	}
	stopped(checkpointer, func() { // the backup's checkpoint never ends
		has(t, r.want(57, "--stanza=demo --start-fast --db-timeout=5 --protocol-timeout=10 backup"), "ERROR: [057]", "statement timeout")
	})
	pid, err := os.ReadFile(filepath.Join(r.c.DataDir(), "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	var postmaster int
	if _, err := fmt.Sscan(string(pid), &postmaster); err != nil {
		t.Fatal(err)
	}
	stopped(postmaster, func() { // a session is never begun
		has(t, r.want(56, "--stanza=demo --db-timeout=1 --protocol-timeout=2 backup"), "WARN: unable to check pg1: ", "unable to find primary cluster")
	})
	r.backup("--type=full")
}

// umasks: the modes of what is made are those of neutral-umask, whatever the umask; without it, the umask counts. As with the original.
func (r *rig) umasks() {
	t := r.t
	t.Helper()
	for _, c := range []struct{ umask, option, dir, file string }{
		{"077", "", "drwxr-x---", "-rw-r-----"}, {"077", "--no-neutral-umask", "drwx------", "-rw-------"}, {"022", "--no-neutral-umask", "drwxr-x---", "-rw-r-----"}, {"000", "", "drwxr-x---", "-rw-r-----"},
	} {
		for _, program := range []string{r.name, "/usr/bin/pgbackrest"} {
			repo := filepath.Join(r.dir, "umask")
			if s := r.program("/bin/sh", "-c", "rm -rf "+repo+" "+repo+"-log && mkdir "+repo+"-log && umask "+c.umask+" && exec "+program+" --config="+r.conf+" --stanza=demo --repo1-path="+repo+" --log-level-file=info --log-path="+repo+"-log "+c.option+" --no-online stanza-create"); s.code != 0 {
				t.Fatalf("%+v", s)
			}
			err := filepath.WalkDir(repo, func(name string, d fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				info, err := d.Info()
				if err != nil {
					return err
				}
				want := c.file
				if d.IsDir() {
					want = c.dir
				}
				if got := info.Mode().String(); got != want {
					t.Errorf("umask %s %s: %s of %s is %s, want %s", c.umask, c.option, strings.TrimPrefix(name, r.dir), filepath.Base(program), got, want)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			if log, err := os.Stat(repo + "-log/demo-stanza-create.log"); err != nil || log.Mode().String() != c.file {
				t.Errorf("umask %s %s: the log file of %s: %v %v, want %s", c.umask, c.option, filepath.Base(program), log.Mode(), err, c.file)
			}
		}
	}
}

// TestForkOfPostgreSQL: a cluster with a catalog version of its own is one of an unknown PostgreSQL, unless pg-version-force says what
// it is built on; then everything works on it.
func TestForkOfPostgreSQL(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2\nlog-level-file=off")
	r.insert("a")
	segment := r.c.QueryString(t, "select pg_walfile_name(pg_switch_wal())")
	r.c.Stop(t, "fast")
	fork := filepath.Join(ownDir(t), "data")
	if s := r.program("/bin/cp", "-a", r.c.DataDir(), fork); s.code != 0 {
		t.Fatal(s.errs)
	}
	change := func(name string, at int, value []byte, sum int) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(fork, name))
		if err != nil {
			t.Fatal(err)
		}
		copy(b[at:], value)
		if sum > 0 {
			binary.LittleEndian.PutUint32(b[sum:], crc32.Checksum(b[:sum], crc32.MakeTable(crc32.Castagnoli)))
		}
		if err := os.WriteFile(filepath.Join(fork, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	change("global/pg_control", 12, binary.LittleEndian.AppendUint32(nil, 202299999), 288)
	change("pg_wal/"+segment, 0, []byte{0xFF, 0xD2}, 0)
	at := "--stanza=demo --pg1-path=" + fork + " "
	const forced = "--pg-version-force=15 "
	has(t, r.want(46, at+"--no-online stanza-create"), "ERROR: [046]", "202299999")
	r.run(at + forced + "--no-online stanza-create")
	r.want(46, at+"--no-online backup")
	label := r.backup(strings.TrimPrefix(at, "--stanza=demo ") + forced + "--no-online --type=full")
	push := "archive-push " + filepath.Join(fork, "pg_wal", segment)
	if s := r.program(r.name, append([]string{"--config=" + r.conf}, strings.Fields(at+push)...)...); s.code == 0 {
		t.Error("WAL of an unknown PostgreSQL was pushed")
	}
	r.run(at + forced + push)
	has(t, r.run("info"), label, "wal archive min/max (15): "+segment)
	r.run("--stanza=demo " + forced + "verify")
	if s := r.program("/bin/rm", "-rf", fork); s.code != 0 {
		t.Fatal(s.errs)
	}
	r.run(at + forced + "restore")
	b, err := os.ReadFile(filepath.Join(fork, "global/pg_control"))
	if err != nil || binary.LittleEndian.Uint32(b[12:]) != 202299999 {
		t.Error("another pg_control", err)
	}
}

var logLine = regexp.MustCompile(`(?m)^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} )?(P00 +)?(ERROR|WARN|INFO|DETAIL|DEBUG|TRACE): `)

// TestLogLevels: which levels go to which stream and file, and how a line begins, as with the original.
func TestLogLevels(t *testing.T) {
	r := newRig(t, "log-level-file=off")
	r.run("--stanza=demo stanza-create")
	shape := func(text string) string { // what levels there are, and what lines begin with
		seen := map[string]bool{}
		var list []string
		for _, m := range logLine.FindAllStringSubmatch(text, -1) {
			s := fmt.Sprintf("%s stamp=%t process=%t", m[3], m[1] != "", m[2] != "")
			if !seen[s] && m[3] != "DEBUG" && m[3] != "TRACE" && m[3] != "DETAIL" { // those are each program's own
				seen[s] = true
				list = append(list, s)
			}
		}
		return strings.Join(list, ", ")
	}
	for _, options := range []string{"", "--log-level-console=off", "--log-level-console=error", "--log-level-console=info", "--log-level-stderr=off", "--log-level-stderr=off --log-level-console=info", "--log-level-stderr=error", "--log-level-stderr=error --log-level-console=info",
		"--log-level-stderr=info --log-level-console=info", "--log-level-stderr=info --log-level-console=off", "--log-level-stderr=detail --log-level-console=debug", "--no-log-timestamp --log-level-console=info", "--no-log-timestamp --log-level-stderr=off",
		"--log-level-file=error", "--log-level-file=warn", "--log-level-file=info", "--log-level-file=info --no-log-timestamp"} {
		for _, command := range []string{"expire", "--repo1-path=" + r.dir + "/none expire"} { // a warning; an error too
			var shapes [2]string
			for i, program := range []string{r.name, "/usr/bin/pgbackrest"} {
				log := filepath.Join(r.dir, "log", "demo-expire.log")
				if err := os.RemoveAll(log); err != nil {
					t.Fatal(err)
				}
				s := r.program(program, append([]string{"--config=" + r.conf, "--stanza=demo"}, strings.Fields(options+" "+command)...)...)
				shapes[i] = fmt.Sprintf("%d; out: %s; err: %s", s.code, shape(s.out), shape(s.errs))
				if entries, err := os.ReadDir(filepath.Join(r.dir, "log")); err != nil || len(entries) > 1 {
					t.Errorf("%s: %d log files, %v", options, len(entries), err)
				}
				if b, err := os.ReadFile(log); err == nil {
					shapes[i] += fmt.Sprintf("; file: %t %s", strings.HasPrefix(string(b), "-------------------PROCESS START-------------------\n"), shape(string(b)))
				}
			}
			if shapes[0] != shapes[1] {
				t.Errorf("%s %s:\n%s\nthe original:\n%s", options, command, shapes[0], shapes[1])
			}
		}
	}
	// There are no workers with files of their own.
	r.run("--stanza=demo --log-level-file=info --log-subprocess --process-max=2 verify")
	if entries, err := os.ReadDir(filepath.Join(r.dir, "log")); err != nil || len(entries) != 2 {
		t.Errorf("%d log files, %v", len(entries), err)
	}
}
