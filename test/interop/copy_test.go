package interop

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/pg/pgtest"
	"holdfast/test/tally"
)

// copyCase is a repository of one kind that is copied to one of another.
type copyCase struct {
	compress       string
	from, to       string // passphrases; "" is none
	bundle         bool
	full, inc, wal string // who makes them: "ours" or "theirs"
	again          bool   // files are re-encrypted
}

var copyCases = []copyCase{
	{"gz", "", "the copy's own words", false, "theirs", "theirs", "theirs", false},
	{"lz4", passphrase, "the copy's own words", true, "theirs", "ours", "theirs", false},
	{"zst", passphrase, "the copy's own words", true, "ours", "theirs", "ours", true},
	{"zst", passphrase, "", false, "ours", "ours", "ours", false},
	{"none", "", "", true, "theirs", "theirs", "ours", false},
}

// TestCopiesAreRepositories: a copy of a chain that the real pgbackrest made, or we, is a repository like any other. With the
// source gone pgbackrest finds nothing wrong with it, tells the same of it as we do, restores every backup as we do, recovers to
// the end of the WAL, and takes the next incremental backup in it.
func TestCopiesAreRepositories(t *testing.T) {
	for _, c := range copyCases {
		t.Run(fmt.Sprintf("%s bundle=%t from %q to %q again=%t", c.compress, c.bundle, c.from, c.to, c.again), func(t *testing.T) {
			t.Parallel()
			r := newRigFor(t, pgtest.Options{Checksums: true, WALSegMB: 1}, c.compress)
			r.bundled, r.encrypted, r.pass = c.bundle, c.from != "", c.from
			r.configure(c.compress)
			r.backrest("stanza-create")
			archive := func() {
				if c.wal == "ours" {
					r.ourArchive(c.compress)
				} else {
					r.archiveWith(fmt.Sprintf("pgbackrest --config=%s --stanza=%s archive-push %%p", r.conf, stanza))
				}
			}
			archive()
			r.c.Exec(t, "alter system set autovacuum = off", "alter system set bgwriter_lru_maxpages = 0", "select pg_reload_conf()")
			r.fill()
			for _, b := range []struct{ typ, by, change string }{
				{"full", c.full, "update big set pad = 'diff' where id % 1000 = 0"},
				{"diff", c.inc, "create table later as select * from big where id < 2000"},
				{"incr", c.full, "drop table later; truncate empty_t; delete from big where id % 5000 = 1"},
			} {
				stop := r.busy()
				r.backup(b.typ, b.by, c.compress)
				stop()
				r.c.Exec(t, append(strings.Split(b.change, ";"), "checkpoint")...)
			}
			r.holdfast("check", r.server()...) // from here on no WAL is on its way
			was := map[string]map[string]string{}
			for _, label := range r.labels() {
				was[label] = r.restoredFiles(label)
			}
			r.moveTo(c)
			r.agree()
			for _, label := range r.labels() {
				r.restoreAlike(label)
				if got := r.restoredFiles(label); !maps.Equal(got, was[label]) {
					t.Errorf("%s restores to other files from the copy", label)
				}
			}
			r.recovers(30000 - 6)
			archive()
			r.backup("incr", "theirs", c.compress)
			r.holdfast("check", r.server()...)
			r.agree()
			labels := r.labels()
			r.restoreAlike(labels[len(labels)-1])
			tally.Count(t, "backups restored from a copy alone", len(labels))
		})
	}
}

// recovers restores the newest backup and replays all WAL that the repository has.
func (r *rig) recovers(rows int64) {
	r.t.Helper()
	dir, spaces := r.dirFor("end"), r.dirFor("end-spaces")
	r.holdfast("restore", "--pg1-path="+dir, "--tablespace-map-all="+spaces, "--archive-mode=off")
	if n := queryInt(r.t, r.start(dir), "select count(*) from big"); n != rows {
		r.t.Errorf("big has %d rows, not %d", n, rows)
	}
}

// restoredFiles are the files of a backup, as we restore it.
func (r *rig) restoredFiles(label string) map[string]string {
	r.t.Helper()
	dir, spaces := r.dirFor("w-"+label), r.dirFor("ws-"+label)
	r.holdfast("restore", "--set="+label, "--pg1-path="+dir, "--tablespace-map-all="+spaces, "--type=none")
	files := r.tree(dir, spaces)
	for _, d := range []string{dir, spaces} {
		if err := os.RemoveAll(d); err != nil {
			r.t.Fatal(err)
		}
	}
	return files
}

// moveTo copies the repository, removes it and goes on with the copy.
func (r *rig) moveTo(c copyCase) {
	r.t.Helper()
	to := filepath.Join(r.dir, "copy-pgbackrest")
	args := []string{"repo", "sync", "--from=" + r.repo, "--to=" + to, "--lock-path=" + r.dir + "/lock"}
	if c.from != "" {
		from := r.passFile() + "-source"
		b, err := os.ReadFile(r.passFile())
		if err == nil {
			err = os.WriteFile(from, b, 0o640)
		}
		if err == nil && postgres(r.t) != nil {
			err = os.Chown(from, int(postgres(r.t).Uid), int(postgres(r.t).Gid))
		}
		if err != nil {
			r.t.Fatal(err)
		}
		args = append(args, "--from-cipher-pass-file="+from)
	}
	source := r.repo
	r.repo, r.pass, r.encrypted = to, c.to, c.to != ""
	r.configure(c.compress)
	if c.to != "" {
		args = append(args, "--to-cipher-pass-file="+r.passFile())
	} else {
		args = append(args, "--decrypt")
	}
	if c.again {
		args = append(args, "--reencrypt")
	}
	r.run(r.bin, args...)
	if out := r.run(r.bin, args...); !strings.Contains(out, "0 backup(s) copied, 3 there before; 0 objects") {
		r.t.Errorf("a second sync copies again:\n%s", out)
	}
	if err := os.RemoveAll(source); err != nil {
		r.t.Fatal(err)
	}
}

// TestKilledCopies kills a copy, as kill -9 does, at each step that it names and after so and so many objects, and runs it again:
// the target is then, to the last byte, what an undisturbed copy makes, and pgbackrest finds nothing wrong with it.
func TestKilledCopies(t *testing.T) {
	r := newRig(t, 15, "gz")
	r.backrest("stanza-create")
	r.archiveWith(fmt.Sprintf("pgbackrest --config=%s --stanza=%s archive-push %%p", r.conf, stanza))
	r.c.Exec(t, "alter system set autovacuum = off", "select pg_reload_conf()") // no more WAL comes by itself
	r.fill()
	for _, typ := range []string{"full", "incr"} {
		r.backup(typ, "theirs", "gz")
		r.c.Exec(t, "update big set pad = 'more' where id % 100 = 0", "checkpoint")
	}
	r.holdfast("check", r.server()...)
	source := r.repo
	sync := func(to string) []string {
		return []string{"repo", "sync", "--from=" + source, "--to=" + to, "--at-once=2", "--lock-path=" + r.dir + "/lock"}
	}
	fresh := filepath.Join(r.dir, "fresh")
	r.run(r.bin, sync(fresh)...)
	want := r.objects(fresh)
	if len(want) < 1000 {
		t.Fatalf("only %d objects", len(want))
	}
	kills := 0
	check := func(at, to string) {
		t.Helper()
		r.listsOnlyWhole(at, to)
		r.run(r.bin, sync(to)...)
		if got := r.objects(to); !maps.Equal(got, want) {
			for name := range want {
				if got[name] != want[name] {
					t.Errorf("after a kill at %s: %s is not as in an undisturbed copy", at, name)
				}
			}
			for name := range got {
				if _, ok := want[name]; !ok {
					t.Errorf("after a kill at %s: %s is in no undisturbed copy", at, name)
				}
			}
		}
		if err := os.RemoveAll(to); err != nil {
			t.Fatal(err)
		}
		kills++
	}
	for _, step := range []string{"copy:plan", "copy:stanza", "copy:backup", "copy:objects", "copy:wal", "copy:publish", "copy:catalogue"} {
		to := filepath.Join(r.dir, "killed")
		cmd := r.process(sync(to)...)
		cmd.Env = append(os.Environ(), "HOLDFAST_TEST_KILL_AT="+step)
		if err := cmd.Run(); cmd.ProcessState.ExitCode() != -1 {
			t.Fatalf("it did not die at %s: %v", step, err)
		}
		check(step, to)
	}
	for _, objects := range []int{1, 2, 7, 50, 300, 900, len(want) - 5} {
		to := filepath.Join(r.dir, "killed")
		cmd := r.process(append(sync(to), "--rate=4")...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for ended := false; !ended && len(r.objects(to)) < objects; {
			time.Sleep(2 * time.Millisecond)
			ended = cmd.Process.Signal(syscall.Signal(0)) != nil
		}
		err := cmd.Process.Kill()
		if werr := cmd.Wait(); err != nil && werr != nil {
			t.Fatal(err, werr)
		}
		check(fmt.Sprintf("%d objects", objects), to)
	}
	r.repo = fresh
	r.configure("gz")
	r.agree()
	tally.Count(t, "kills of a copy between repositories", kills)
}

// process is our program, not yet started, as the server's user.
func (r *rig) process(args ...string) *exec.Cmd {
	cmd := exec.Command(r.bin, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: postgres(r.t)}
	return cmd
}

// objects are the files of a repository with their content; what is being written is left out.
func (r *rig) objects(dir string) map[string]string {
	r.t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() || strings.HasSuffix(p, ".pgbackrest.tmp") {
			return err
		}
		b, err := os.ReadFile(p)
		if os.IsNotExist(err) {
			return nil
		}
		files[strings.TrimPrefix(p, dir)] = string(b)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return files
}

// listsOnlyWhole: pgbackrest restores every backup that it sees in what a killed copy left.
func (r *rig) listsOnlyWhole(at, dir string) {
	r.t.Helper()
	if _, err := os.Stat(filepath.Join(dir, "backup", stanza, "backup.info")); err != nil {
		return
	}
	info := r.run("pgbackrest", "--config="+r.conf, "--repo1-path="+dir, "--stanza="+stanza, "info")
	for line := range strings.Lines(info) {
		_, label, ok := strings.Cut(line, " backup: ")
		if !ok {
			continue
		}
		label = strings.TrimSpace(label)
		to, spaces := r.dirFor("k-"+label), r.dirFor("ks-"+label)
		if out, err := r.try("pgbackrest", "--config="+r.conf, "--repo1-path="+dir, "--stanza="+stanza, "--set="+label, "--pg1-path="+to, "--tablespace-map-all="+spaces,
			"--type=none", "--log-level-console=warn", "restore"); err != nil {
			r.t.Errorf("after a kill at %s backup %s is listed and does not restore: %v\n%s", at, label, err, out)
		}
		for _, d := range []string{to, spaces} {
			if err := os.RemoveAll(d); err != nil {
				r.t.Fatal(err)
			}
		}
	}
}
