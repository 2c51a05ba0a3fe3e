package script

import (
	"crypto/sha1"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// restoreCase is one set of options for a restore by both programs, each into a directory of its own. In args, @D is that directory,
// ~ a blank, and the words in capitals below stand for what the test knows of the repository.
type restoreCase struct {
	args     string
	dirty    bool // into what an earlier restore left, with files lost, changed and added since
	outside  bool // the directory that conf.d links to is gone
	code     int
	original int    // its code where it differs, and why says for what reason
	why      string // also where the codes are the same and the trees are not
}

const mapped = "--tablespace-map-all=@D/ts "

var restoreCases = []restoreCase{
	{args: mapped}, {args: "", code: 40}, {args: mapped + "--delta"}, {args: mapped + "--force"}, {args: mapped + "--process-max=4"},
	{args: mapped, dirty: true, code: 40}, {args: mapped + "--delta", dirty: true}, {args: mapped + "--force", dirty: true}, {args: mapped + "--delta --force --process-max=2", dirty: true},
	// Which backup.
	{args: mapped + "--set=latest", original: 75, why: "the original has this word for its default and does not take it"}, {args: mapped + "--set=FULL"}, {args: mapped + "--set=INCR"}, {args: mapped + "--set=20200101-000000F", code: 75}, {args: mapped + "--set=FULL --delta", dirty: true},
	{args: mapped + "--repo=1", why: "restore_command asks every repository"}, {args: mapped + "--repo=2", code: 32},
	// How far.
	{args: mapped + "--type=default"}, {args: mapped + "--type=immediate"}, {args: mapped + "--type=immediate --target-action=promote"}, {args: mapped + "--type=immediate --target-action=shutdown"}, {args: mapped + "--type=immediate --set=FULL --target-action=pause"},
	{args: mapped + "--type=time --target=LATE"}, {args: mapped + "--type=time --target=BETWEEN"}, {args: mapped + "--type=time --target=LATE --target-exclusive --target-action=promote"}, {args: mapped + "--type=time --target=LATE --target-timeline=current"},
	{args: mapped + "--type=xid --target=XID"}, {args: mapped + "--type=xid --target=XID --target-exclusive"}, {args: mapped + "--type=lsn --target=LSN"}, {args: mapped + "--type=lsn --target=LSN --target-exclusive --target-action=shutdown"}, {args: mapped + "--type=lsn --target=MIDDLE"},
	{args: mapped + "--type=name --target=later"}, {args: mapped + "--type=name --target=later --target-action=promote --target-timeline=latest"},
	{args: mapped + "--type=standby"}, {args: mapped + "--type=standby --recovery-option=primary_conninfo=host=a~port=1 --recovery-option=primary_slot_name=s"}, {args: mapped + "--type=standby --target-timeline=latest"},
	{args: mapped + "--type=none"}, {args: mapped + "--type=preserve", why: "there is no postgresql.auto.conf to be preserved: that of the backup is better than none"}, {args: mapped + "--type=preserve --delta", dirty: true}, {args: mapped + "--type=none --delta", dirty: true}, {args: mapped + "--type=standby --delta", dirty: true},
	{args: mapped + "--target-timeline=current"}, {args: mapped + "--target-timeline=latest"}, {args: mapped + "--target-timeline=1"},
	{args: mapped + "--recovery-option=recovery_end_command=/bin/true --recovery-option=archive-cleanup-command=/bin/echo~a"}, {args: mapped + "--recovery-option=archive-cleanup-command=a'b", why: "the original does not double the quote, so that PostgreSQL does not start"}, {args: mapped + "--recovery-option=restore_command=/bin/false"}, {args: mapped + "--recovery-option=archive_mode=off"},
	{args: mapped + "--archive-mode=off"}, {args: mapped + "--archive-mode=preserve"}, {args: mapped + "--archive-mode=off --type=immediate --target-action=promote"},
	// What.
	{args: mapped + "--db-include=one"}, {args: mapped + "--db-include=one --db-include=two"}, {args: mapped + "--db-exclude=one"}, {args: mapped + "--db-exclude=one --db-exclude=two --type=immediate"}, {args: mapped + "--db-include=nosuch", code: 80}, {args: mapped + "--db-exclude=nosuch", code: 80},
	{args: mapped + "--db-include=two --delta", dirty: true},
	// Where to.
	{args: "--tablespace-map=ts1=@D/elsewhere"}, {args: mapped + "--tablespace-map=ts1=@D/elsewhere"}, {args: mapped + "--tablespace-map=ts1=@D/elsewhere --delta", dirty: true}, {args: "--tablespace-map=OID=@D/by-number"}, {args: "--tablespace-map=nosuch=@D/x", code: 76}, {args: "--tablespace-map-all=@D/data/inside", code: 70},
	{args: mapped + "--link-all", outside: true}, {args: mapped + "--link-all", code: 40}, {args: mapped + "--link-map=conf.d=@D/linked"}, {args: mapped + "--link-map=conf.d=@D/linked --delta", dirty: true}, {args: mapped + "--link-map=extra.conf=@D/other.conf --link-map=conf.d=@D/l"}, {args: mapped + "--link-map=nosuch=@D/x", code: 78},
	{args: mapped + "--link-map=conf.d=@D/data/inside", code: 70}, {args: mapped + "--link-map=global=@D/global"},
}

// TestRestoreOptions: a repository restored with each set of options by this program and by pgbackrest 2.45. The exit code is the
// same, and so are all names, modes, contents, time stamps and links, among them postgresql.auto.conf and the signal files.
func TestRestoreOptions(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2\nrepo1-bundle=y\ncompress-type=lz4\nexclude=base/1/\nexclude=base/4/\nlog-level-file=off\nlog-level-stderr=off")
	outside := filepath.Join(ownDir(t), "outside")
	room := r.memory()
	r.c.AddTablespace(t, "ts1")
	r.run("--stanza=demo stanza-create")
	r.c.Exec(t, "create database one", "create database two", "create table in_space (a int) tablespace ts1", "insert into in_space values (1)", "create unlogged table gone (a int)", "alter system set work_mem = '5MB'")
	fill := "mkdir " + outside + " && echo a=1 >" + outside + "/extra && chmod 640 " + outside + "/extra && "
	if s := r.program("/bin/sh", "-c", fill+"cp "+outside+"/extra "+outside+".conf && ln -s "+outside+" "+r.c.DataDir()+"/conf.d && ln -s "+outside+".conf "+r.c.DataDir()+"/extra.conf"); s.code != 0 {
		t.Fatal(s.errs)
	}
	full := r.backup("--type=full")
	time.Sleep(1100 * time.Millisecond) // ends of backups are known to the second
	now := func() string { return r.c.QueryString(t, "select clock_timestamp()::text") }
	lsn := func() string { return r.c.QueryString(t, "select pg_current_wal_lsn()::text") }
	between, middle := now(), lsn()
	time.Sleep(1100 * time.Millisecond)
	r.insert("a")
	incr := r.backup("--type=incr")
	time.Sleep(1100 * time.Millisecond)
	xid := r.c.QueryString(t, "select pg_current_xact_id()::text")
	r.c.Exec(t, "select pg_create_restore_point('later')")
	late, end := now(), lsn()
	r.insert("b")
	r.archive()
	known := []string{"FULL", full, "INCR", incr, "LATE", late, "BETWEEN", between, "XID", xid, "LSN", end, "MIDDLE", middle, "OID", r.c.QueryString(t, "select oid::text from pg_tablespace where spcname = 'ts1'")}
	run := func(c restoreCase, own bool) (said, []string) {
		program, dir := "/usr/bin/pgbackrest", filepath.Join(room, "theirs")
		if own {
			program, dir = r.name, filepath.Join(room, "ours")
		}
		restore := func(args string) said {
			words := []string{"--config=" + r.conf, "--stanza=demo", "--pg1-path=" + dir + "/data"}
			expand := strings.NewReplacer(append(known, "@D", dir, "~", " ")...)
			for _, w := range strings.Fields(args) {
				words = append(words, expand.Replace(w))
			}
			return r.program(program, append(words, "restore")...)
		}
		prepare := "rm -rf " + dir + " && mkdir " + dir
		if c.outside {
			prepare += " && rm -rf " + outside + " " + outside + ".conf"
		}
		if s := r.program("/bin/sh", "-c", prepare); s.code != 0 {
			t.Fatal(s.errs)
		}
		if c.dirty {
			if s := restore(mapped); s.code != 0 {
				t.Fatalf("%+v", s)
			}
			if s := r.program("/bin/sh", "-c", "cd "+dir+"/data && rm -r base/5/2* pg_hba.conf; echo x >foreign; mkdir -p foreign.d/e; ln -s /etc foreign.l; echo y >>base/5/1259; chmod 777 base global/pg_filenode.map; touch -d 2001-01-01 postgresql.conf; echo other >pg_ident.conf; touch standby.signal; rm -r ../ts/*/PG_15*; mkdir -p pg_wal/archive_status; echo w >pg_wal/000000010000000000000001"); s.code != 0 {
				t.Fatal(s.errs)
			}
		}
		s := restore(c.args)
		tree := r.tree(dir)
		if c.outside {
			tree = append(tree, r.tree(outside)...)
			if s := r.program("/bin/sh", "-c", "rm -rf "+outside+"; "+fill+"cp "+outside+"/extra "+outside+".conf"); s.code != 0 {
				t.Fatal(s.errs)
			}
		}
		return s, tree
	}
	for _, c := range restoreCases {
		var theirs said
		var theirTree []string
		done := make(chan bool)
		together := !c.outside // there is one such directory
		if together {
			go func() { defer close(done); theirs, theirTree = run(c, false) }()
		}
		ours, tree := run(c, true)
		if together {
			<-done
		} else {
			theirs, theirTree = run(c, false)
		}
		show := strings.TrimSpace(fmt.Sprintf("%s dirty=%t", c.args, c.dirty))
		want := c.code
		if c.original != 0 {
			want = c.original
		}
		if ours.code != c.code || theirs.code != want {
			t.Errorf("%s: code %d, want %d; the original's is %d, want %d\n%s%s\n%s%s", show, ours.code, c.code, theirs.code, want, ours.out, ours.errs, theirs.out, theirs.errs)
		}
		if c.code != 0 || c.why != "" {
			continue // what a refused restore leaves is the business of other tests
		}
		for _, line := range slices.DeleteFunc(slices.Clone(tree), func(l string) bool { return slices.Contains(theirTree, l) }) {
			t.Errorf("%s: only ours: %s", show, line)
		}
		for _, line := range slices.DeleteFunc(slices.Clone(theirTree), func(l string) bool { return slices.Contains(tree, l) }) {
			t.Errorf("%s: only the original's: %s", show, line)
		}
	}
	t.Logf("%d sets of options", len(restoreCases))
}

// memory is a directory in memory, where there is one: a hundred restores are made there, and each syncs what it writes.
func (r *rig) memory() string {
	r.t.Helper()
	dir := ownDir(r.t)
	shared, err := os.MkdirTemp("/dev/shm", "hf-script-")
	if err != nil {
		return dir
	}
	r.t.Cleanup(func() {
		if err := os.RemoveAll(shared); err != nil {
			r.t.Error(err)
		}
	})
	if cred := postgres(r.t); cred != nil {
		if err := os.Chown(shared, int(cred.Uid), int(cred.Gid)); err != nil {
			r.t.Fatal(err)
		}
	}
	return shared
}

// anew are the files that a restore writes itself: their time stamps, and what else is said below, are not those of the backup.
var anew = []string{"postgresql.auto.conf", "recovery.signal", "standby.signal", "pg_control", "backup.manifest"}

// tree lists what is below a directory, with all that a restore decides. The directory's own name and that of the program are left out.
func (r *rig) tree(dir string) (list []string) {
	r.t.Helper()
	plain := strings.NewReplacer(dir, "@D", r.name+" ", "@P ", "/usr/bin/pgbackrest", "@P")
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil || name == dir {
			return err
		}
		line := fmt.Sprintf("%s %v", plain.Replace(name), info.Mode())
		switch base := filepath.Base(name); {
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(name)
			if err != nil {
				return err
			}
			line += " " + plain.Replace(to)
		case !info.Mode().IsRegular():
		case base == "pg_control":
			line += fmt.Sprint(" ", info.Size()) // a restore may mark it, so that nothing starts without backup_label
		default:
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			if base == "postgresql.auto.conf" {
				line += "\n" + settings(plain.Replace(string(b)))
			} else {
				line += fmt.Sprintf(" %x", sha1.Sum(b))
			}
			if !slices.Contains(anew, base) {
				line += " " + info.ModTime().UTC().Format(time.DateTime)
			}
		}
		list = append(list, line)
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return list
}

// settings are the lines of a configuration file that count.
func settings(text string) string {
	lines := strings.Split(text, "\n")
	return strings.Join(slices.DeleteFunc(lines, func(l string) bool { return l == "" || l[0] == '#' }), "\n")
}
