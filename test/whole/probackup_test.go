package whole

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/test/world"
)

// standIn is the program that stands in for pg_probackup; HOLDFAST_TEST_PG_PROBACKUP names a real one to use in its place.
var standIn = sync.OnceValues(func() ([]byte, error) {
	if real := os.Getenv("HOLDFAST_TEST_PG_PROBACKUP"); real != "" {
		return os.ReadFile(real)
	}
	dir, err := os.MkdirTemp("", "hf-probackup-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "pg_probackup")
	build := exec.Command("go", "build", "-trimpath", "-o", bin, "holdfast/test/probackup")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, errors.New("build: " + err.Error() + "\n" + string(out))
	}
	return os.ReadFile(bin)
})

// realProbackup says whether the tests that need the stand-in's own abilities can't be run.
func realProbackup() bool { return os.Getenv("HOLDFAST_TEST_PG_PROBACKUP") != "" }

// install puts pg_probackup into the application and has it make PostgreSQL's backups from now on.
func install(t *testing.T, w *world.World) (program string) {
	t.Helper()
	b, err := standIn()
	must(t, err)
	program = filepath.Join(w.Root, "usr/local/bin/pg_probackup")
	must(t, os.WriteFile(program, b, 0o755), os.Chmod(program, 0o755))
	notes := program + ".notes"
	must(t, os.WriteFile(notes, nil, 0o600), os.Chmod(notes, 0o666)) // the server's user writes it
	ok(t, w, "alation_conf", "alation.feature_flags.enable_pgbackrest", "-s", "False", "pgsql.pg_probackup.path", "-s", "/usr/local/bin/pg_probackup")
	return program
}

func useProbackup(t *testing.T, w *world.World) (program string) {
	t.Helper()
	program = install(t, w)
	ok(t, w, "alation_action", "enable_backupv2")
	return program
}

// catalogDir is the backup catalog in use.
func catalogDir(w *world.World) string {
	return filepath.Join(filepath.Dir(w.Repo), "pg_probackup")
}

// inCatalog lists the backups in the catalog.
func inCatalog(t *testing.T, w *world.World) (ids []string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(catalogDir(w), "backups", world.Stanza, "*/backup.control"))
	must(t, err)
	for _, f := range found {
		ids = append(ids, filepath.Base(filepath.Dir(f)))
	}
	return ids
}

// asked counts the commands in the notes, all of which must have been run as the server's user.
func asked(t *testing.T, program string) map[string]int {
	t.Helper()
	b, err := os.ReadFile(program + ".notes")
	must(t, err)
	count := map[string]int{}
	for line := range strings.Lines(string(b)) {
		words := strings.Fields(line)
		if os.Geteuid() == 0 && words[0] != "postgres" {
			t.Errorf("not run as the server's user: %s", line)
		}
		count[words[1]]++
		if words[1] == "backup" {
			for _, w := range words {
				count[strings.TrimPrefix(w, "--backup-mode=")]++
			}
		}
	}
	return count
}

// TestProbackup: pg_probackup does all of PostgreSQL's part, in both modes.
func TestProbackup(t *testing.T) {
	for mode, apart := range map[string]bool{"included": false, "apart": true} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, apart)
			program := useProbackup(t, w)
			if got := ok(t, w, "alation_action", "backup_all", "--dry-run"); !strings.Contains(got, "FULL backup of "+w.Data) || !strings.Contains(got, "pg_probackup 2.5.") {
				t.Errorf("the plan:\n%s", got)
			}
			want := prove(t, w)
			s := backup(t, w)
			if n := len(inCatalog(t, w)); n != map[bool]int{true: 1, false: 0}[apart] {
				t.Errorf("%d backups in the catalog", n)
			}
			members, err := exec.Command("tar", "tzf", s.Pieces[0].Path).Output()
			if err != nil || strings.Contains(string(members), "pg_probackup/backups/"+world.Stanza+"/") == apart || strings.Contains(string(members), "pg_probackup/wal/"+world.Stanza+"/0000") == apart {
				t.Errorf("in the tarball: %v\n%.2000s", err, members)
			}
			if left, err := os.ReadDir(w.Temp); err != nil || len(left) > 0 {
				t.Errorf("staging holds %v %v", left, err)
			}
			ok(t, w, "holdfast", "sets", "verify", s.ID)
			ok(t, w, "holdfast", "sets", "inspect", s.ID)
			must(t, w.Lose(t.Context()))
			if !apart { // the tarball is enough
				must(t, os.RemoveAll(catalogDir(w)))
			}
			restore(t, w, s.ID)
			same(t, "after the loss", want, prove(t, w))
			must(t, w.Exec(t.Context(), "insert into ledger values (1)"))
			want = prove(t, w)
			second := backup(t, w) // on a later timeline
			must(t, w.Exec(t.Context(), "drop table t"))
			restore(t, w, second.ID)
			same(t, "the second set", want, prove(t, w))
			ok(t, w, "holdfast", "sets", "verify", s.ID)
			restore(t, w, s.ID)
			if realProbackup() {
				return
			}
			count := asked(t, program)
			for _, v := range []string{"init", "add-instance", "archive-push", "archive-get", "backup", "show", "show-config", "validate", "restore"} {
				if count[v] == 0 {
					t.Errorf("it was not asked to %s: %v", v, count)
				}
			}
			b, err := os.ReadFile(filepath.Join(w.Root, "opt/alation/site/logs/alation_backup.log"))
			if err != nil || !strings.Contains(string(b), s.Run+" backup: says: INFO: Backup ") {
				t.Errorf("the log does not have what it says, with the run: %v", err)
			}
		})
	}
}

// TestProbackupUntil recovers to a time after the set, and to one before which there is nothing.
func TestProbackupUntil(t *testing.T) {
	w := newWorld(t, true)
	useProbackup(t, w)
	s := backup(t, w)
	must(t, w.Exec(t.Context(), "insert into ledger values (7)"))
	time.Sleep(1100 * time.Millisecond)
	until := time.Now().UTC().Format("2006-01-02 15:04:05.000000+00")
	time.Sleep(1100 * time.Millisecond)
	must(t, w.Exec(t.Context(), "insert into ledger values (8)", "select pg_switch_wal()"))
	time.Sleep(2 * time.Second)
	ok(t, w, "holdfast", "restore", "--set", s.ID, "--until", until, "--yes")
	if got, err := w.Text(t.Context(), "select coalesce(string_agg(n::text, ','), '') from ledger"); err != nil || got != "7" {
		t.Errorf("ledger: %s %v", got, err)
	}
}

// TestProbackupIncremental: with incremental backups on DELTA and PAGE are made between full ones; every tarball stands alone, and
// deleting a full backup's set says which others go.
func TestProbackupIncremental(t *testing.T) {
	for mode, apart := range map[string]bool{"included": false, "apart": true} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, apart, "alation.backup_v2.incremental.enabled", "-s", "True", "alation.backup_v2.incremental.full_every", "-s", "3")
			program := useProbackup(t, w)
			var made []set
			var want []*world.Proof
			for i := range 4 {
				must(t, w.Exec(t.Context(), "insert into ledger values ("+strconv.Itoa(i)+")"))
				want = append(want, prove(t, w))
				made = append(made, backup(t, w))
			}
			if count := asked(t, program); count["FULL"] != 2 || count["DELTA"]+count["PAGE"] != 2 {
				t.Errorf("made %v", count)
			}
			for _, i := range []int{2, 3, 1} {
				ok(t, w, "holdfast", "sets", "verify", made[i].ID)
				restore(t, w, made[i].ID)
				same(t, fmt.Sprintf("set %d", i), want[i], prove(t, w))
			}
			if apart { // pg_probackup would remove with a backup all that is built on it
				ok(t, w, "holdfast", "sets", "pin", made[2].ID, "--reason", "it is needed")
				for _, how := range []string{"--dry-run", "--yes"} {
					fails(t, w, 5, made[2].ID+", "+made[1].ID, "holdfast", "sets", "delete", made[0].ID, how)
				}
				ok(t, w, "holdfast", "sets", "verify", made[2].ID)
				ok(t, w, "holdfast", "sets", "unpin", made[2].ID)
				ok(t, w, "holdfast", "sets", "delete", made[2].ID, "--yes")
				ok(t, w, "holdfast", "sets", "delete", made[1].ID, "--yes")
			}
			ok(t, w, "holdfast", "sets", "delete", made[0].ID, "--yes")
			ok(t, w, "holdfast", "sets", "verify", made[3].ID)
			restore(t, w, made[3].ID)
			same(t, "the last set", want[3], prove(t, w))
		})
	}
}

// TestProbackupMissing: without the program, with another one, or one of another version, the message names the parameter and
// nothing is changed.
func TestProbackupMissing(t *testing.T) {
	w := newWorld(t, true)
	before, err := w.Text(t.Context(), "show archive_command")
	must(t, err)
	ok(t, w, "alation_conf", "alation.feature_flags.enable_pgbackrest", "-s", "False")
	file := filepath.Join(w.Root, "usr/local/bin/theirs")
	for _, c := range []struct{ path, script, says string }{
		{"", "", "pgsql.pg_probackup.path is empty and pg_probackup is not installed"},
		{"/usr/local/bin/theirs", "", "pgsql.pg_probackup.path: stat"},
		{"/usr/local/bin/theirs", "echo pgBackRest 2.45", "the program is not pg_probackup"},
		{"/usr/local/bin/theirs", "exit 1", "the program is not pg_probackup"},
		{"/usr/local/bin/theirs", "echo 'pg_probackup 2.4.15 (PostgreSQL 15.4)'", "versions 2.5 and later of 2 are driven"},
		{"/usr/local/bin/theirs", "echo 'pg_probackup 3.0.0 (PostgreSQL 15.4)'", "versions 2.5 and later of 2 are driven"},
		{"/usr/local/bin/theirs", "echo 'pg_probackup 2.5.16 (PostgreSQL 14.9)'", "is of PostgreSQL 15: name the program for that version"},
	} {
		if c.path != "" {
			ok(t, w, "alation_conf", "pgsql.pg_probackup.path", "-s", c.path)
		}
		if c.script != "" {
			must(t, os.WriteFile(file, []byte("#!/bin/sh\n"+c.script+"\n"), 0o755))
		}
		for _, verb := range []string{"enable_backupv2", "backup_all"} {
			out, err := w.As(t.Context(), "alation_action", "", verb)
			failed(t, out, err, 1, c.says, "pgsql.pg_probackup.path")
		}
		for _, words := range [][]string{{"backup", "--dry-run"}, {"enable", "--dry-run"}} {
			out, err := w.As(t.Context(), "holdfast", "", words...)
			if err == nil || !strings.Contains(out.Stdout, c.says) {
				t.Errorf("%v with %q: %s%s", words, c.script, out.Stdout, out.Stderr)
			}
		}
	}
	if after, err := w.Text(t.Context(), "show archive_command"); err != nil || after != before {
		t.Errorf("archive_command was %s, is %s %v", before, after, err)
	}
	if _, err := os.Stat(catalogDir(w)); err == nil {
		t.Error("a catalog was made")
	}
}

// TestProbackupFails has the program fail at each of its steps: what it says is shown, and run again it works.
func TestProbackupFails(t *testing.T) {
	for mode, apart := range map[string]bool{"included": false, "apart": true} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, apart)
			program := install(t, w)
			failing := program + ".fail"
			at := func(what string) { must(t, os.WriteFile(failing, []byte(what), 0o644)) }
			for _, step := range []string{"init start", "add-instance start"} {
				at(step + " exit")
				fails(t, w, 1, "as the test wants it", "alation_action", "enable_backupv2")
				must(t, os.RemoveAll(filepath.Join(catalogDir(w), "backups", world.Stanza)), os.RemoveAll(filepath.Join(catalogDir(w), "wal", world.Stanza))) // half an instance is the operator's to remove
			}
			must(t, os.Remove(failing))
			ok(t, w, "alation_action", "enable_backupv2")
			first := backup(t, w)
			for _, how := range []string{"exit", "kill"} {
				for _, step := range []string{"show start", "backup start", "backup copy", "backup stop", "backup end"} {
					at(step + " " + how)
					out, err := w.As(t.Context(), "alation_action", "", "backup_all")
					failed(t, out, err, 1, "pg_probackup "+strings.Fields(step)[0])
					noSession(t, w)
				}
			}
			must(t, os.Remove(failing))
			must(t, w.Exec(t.Context(), "insert into ledger values (5)"))
			want := prove(t, w)
			s := backup(t, w)
			ids := inCatalog(t, w)
			if n := len(ids); n > map[bool]int{true: 2 + 1, false: 0}[apart] { // one that was complete when its run failed stays, and is its set's to remove
				t.Errorf("left in the catalog: %v", ids)
			}
			for _, step := range []string{"validate start", "restore copy", "restore settings"} {
				before := change(t, w)
				at(step + " exit")
				fails(t, w, 1, "as the test wants it", "holdfast", "restore", "--set", s.ID, "--yes")
				same(t, "given back after "+step, before, prove(t, w))
			}
			must(t, os.Remove(failing))
			restore(t, w, s.ID)
			same(t, "restored", want, prove(t, w))
			restore(t, w, first.ID)
			ok(t, w, "holdfast", "restore", "--set", s.ID, "--yes")
			same(t, "restored again", want, prove(t, w))
			damageProbackup(t, w, apart, s)
		})
	}
}

// damageProbackup: damage in the catalog is found by the program's own look, before anything is touched.
func damageProbackup(t *testing.T, w *world.World, apart bool, s set) {
	t.Helper()
	if !apart {
		return // the tarball's checksum tells
	}
	files, err := filepath.Glob(filepath.Join(catalogDir(w), "backups", world.Stanza, slices.Max(inCatalog(t, w)), "database/base/*/1259"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	must(t, os.Truncate(files[0], 100))
	before := prove(t, w)
	fails(t, w, 1, "is corrupt", "holdfast", "restore", "--set", s.ID, "--yes")
	same(t, "after a restore of a damaged backup", before, prove(t, w))
	fails(t, w, 6, "finding", "holdfast", "sets", "verify", s.ID)
}

// TestProbackupKilled kills runs at their steps, and while the program hangs, which then does not go on by itself.
func TestProbackupKilled(t *testing.T) {
	w := newWorld(t, false)
	program := useProbackup(t, w)
	killAt(t, w, "backup_all:end-both", "alation_action", "backup_all") // the first set
	backup(t, w)
	if got, err := w.Text(t.Context(), "show archive_command"); err != nil || strings.Contains(got, "&&") {
		t.Errorf("archive_command is %s %v", got, err)
	}
	steps := slices.DeleteFunc(stepsOf(t, w, "backup", "backup_all"), func(s string) bool { return s == "backup_all:end-both" })
	for _, step := range steps {
		killAt(t, w, step, "alation_action", "backup_all")
	}
	must(t, os.WriteFile(program+".fail", []byte("backup copy hang"), 0o644))
	cmd := w.Command(t.Context(), "alation_action", "backup_all")
	must(t, cmd.Start())
	var pids []string
	for end := time.Now().Add(time.Minute); len(pids) == 0; time.Sleep(20 * time.Millisecond) {
		if b, err := os.ReadFile(filepath.Join(catalogDir(w), "hanging")); err == nil {
			pids = strings.Fields(string(b))
		}
		if time.Now().After(end) {
			t.Fatal("it was not started")
		}
	}
	must(t, cmd.Process.Signal(os.Interrupt))
	if err := cmd.Wait(); err == nil {
		t.Error("cancelled, but it ended well")
	}
	for _, pid := range pids {
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			b, err := os.ReadFile("/proc/" + pid + "/stat")
			if err != nil || strings.Contains(string(b), ") Z ") {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("process %s of the program goes on", pid)
			}
		}
	}
	must(t, os.Remove(program+".fail"), os.Remove(filepath.Join(catalogDir(w), "hanging")))
	want := prove(t, w)
	s := backup(t, w)
	ok(t, w, "holdfast", "sets", "verify", s.ID)
	restore(t, w, s.ID)
	same(t, "after the kills", want, prove(t, w))
	for i, step := range []string{"restore:validate", "restore:move-aside", "restore:tool", "restore:recover", "restore:commit"} {
		before := change(t, w)
		killAt(t, w, step, "holdfast", "restore", "--set", s.ID, "--yes")
		if i%2 == 0 {
			ok(t, w, "holdfast", "restore", "--give-back")
			same(t, "given back after a kill at "+step, before, prove(t, w))
		}
		restore(t, w, s.ID)
		same(t, "restored after a kill at "+step, want, prove(t, w))
	}
	t.Logf("killed at %d steps: %s", len(steps), strings.Join(steps, " "))
}

// TestSwitchTools changes the tool in both directions. Until the first set of the new tool WAL goes to both archives, so that every
// moment can be reached; sets of before stay restorable, to their points and to later times.
func TestSwitchTools(t *testing.T) {
	for mode, apart := range map[string]bool{"included": false, "apart": true} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, apart)
			one := prove(t, w)
			first := backup(t, w) // in pgBackRest's format
			command := func() string {
				text, err := w.Text(t.Context(), "show archive_command")
				must(t, err)
				return text
			}
			holdfastOnly := command()
			install(t, w)
			for _, words := range [][]string{{"enable", "--dry-run"}, {"backup", "--dry-run"}} {
				out, _ := w.As(t.Context(), "holdfast", "", words...) // a backup would fail until archiving is switched
				if !strings.Contains(out.Stdout, "can't be continued by the other") {
					t.Errorf("%v does not say it:\n%s%s", words, out.Stdout, out.Stderr)
				}
			}
			fails(t, w, 1, "run: alation_action enable_backupv2", "alation_action", "backup_all")
			if command() != holdfastOnly {
				t.Error("a plan changed archive_command")
			}
			if got := ok(t, w, "alation_action", "enable_backupv2"); !strings.Contains(got, "WAL goes to the archive of the tool before as well") {
				t.Errorf("enable_backupv2 says:\n%s", got)
			}
			if got := command(); !strings.Contains(got, "--instance="+world.Stanza) || !strings.HasSuffix(got, " && "+holdfastOnly) {
				t.Errorf("archive_command is %s", got)
			}
			// Between the switch and the first set of the new tool.
			must(t, w.Exec(t.Context(), "insert into ledger values (1)"))
			time.Sleep(1100 * time.Millisecond)
			between := time.Now().UTC().Format("2006-01-02 15:04:05.000000+00")
			time.Sleep(1100 * time.Millisecond)
			must(t, w.Exec(t.Context(), "insert into ledger values (2)"))
			two := prove(t, w)
			second := backup(t, w)
			if got := command(); strings.Contains(got, "&&") || !strings.Contains(got, "--instance="+world.Stanza) {
				t.Errorf("after a complete set archive_command is %s", got)
			}
			ledger := func(what, want string) {
				t.Helper()
				if got, err := w.Text(t.Context(), "select coalesce(string_agg(n::text, ',' order by n), '') from ledger"); err != nil || got != want {
					t.Errorf("%s: ledger %q, want %q %v", what, got, want, err)
				}
			}
			ok(t, w, "holdfast", "restore", "--set", first.ID, "--until", between, "--yes")
			ledger("the first set, until a time after the switch", "1")
			restore(t, w, first.ID)
			same(t, "the first set", one, prove(t, w))
			restore(t, w, second.ID)
			same(t, "the second set", two, prove(t, w))
			ok(t, w, "holdfast", "sets", "verify", first.ID)
			ok(t, w, "holdfast", "sets", "verify", second.ID)
			switchBack(t, w, backup(t, w), command) // a set of the timeline that the restore began
		})
	}
}

// switchBack changes from pg_probackup to pgBackRest's format.
func switchBack(t *testing.T, w *world.World, second set, command func() string) {
	t.Helper()
	ok(t, w, "alation_conf", "alation.feature_flags.enable_pgbackrest", "-s", "True")
	if got := ok(t, w, "alation_action", "enable_backupv2", "--dry-run"); !strings.Contains(got, "can't be continued by the other") {
		t.Errorf("the plan does not say it:\n%s", got)
	}
	ok(t, w, "alation_action", "enable_backupv2")
	if got := command(); strings.Count(got, " && ") != 1 || strings.Index(got, "--instance=") < strings.Index(got, "&&") {
		t.Errorf("archive_command is %s", got)
	}
	ok(t, w, "alation_action", "enable_backupv2") // again: nothing changes
	must(t, w.Exec(t.Context(), "insert into ledger values (3)"))
	time.Sleep(1100 * time.Millisecond)
	between := time.Now().UTC().Format("2006-01-02 15:04:05.000000+00")
	time.Sleep(1100 * time.Millisecond)
	must(t, w.Exec(t.Context(), "insert into ledger values (4)"))
	three := prove(t, w)
	third := backup(t, w)
	if got := command(); strings.Contains(got, "&&") || strings.Contains(got, "--instance=") {
		t.Errorf("after a complete set archive_command is %s", got)
	}
	ok(t, w, "holdfast", "restore", "--set", second.ID, "--until", between, "--yes")
	if got, err := w.Text(t.Context(), "select string_agg(n::text, ',' order by n) from ledger"); err != nil || got != "1,2,3" {
		t.Errorf("the second set, until a time after the switch back: ledger %s %v", got, err)
	}
	restore(t, w, third.ID)
	same(t, "the third set", three, prove(t, w))
}

// TestSwitchFormerGone: an archive that does not take WAL any more is not given any, so that WAL does not pile up, and that is said.
func TestSwitchFormerGone(t *testing.T) {
	w := newWorld(t, true, "pgsql.pgbackrest.archive_timeout", "-s", "10")
	backup(t, w)
	install(t, w)
	must(t, w.Exec(t.Context(), "alter system set archive_command = '/nowhere/holdfast pg archive-push --stanza=rosemeta %p'", "select pg_reload_conf()"))
	time.Sleep(time.Second)
	out, err := w.As(t.Context(), "alation_action", "", "enable_backupv2")
	if err != nil && out.Code != 3 || !strings.Contains(out.Stderr, "does not take WAL any more") {
		t.Errorf("code %d: %s%s", out.Code, out.Stdout, out.Stderr)
	}
	if got, err := w.Text(t.Context(), "show archive_command"); err != nil || strings.Contains(got, "&&") || !strings.Contains(got, "--instance=") {
		t.Errorf("archive_command is %s %v", got, err)
	}
	s := backup(t, w)
	restore(t, w, s.ID)
}

// TestProbackupRefuses: what does not go together with pg_probackup.
func TestProbackupRefuses(t *testing.T) {
	w := newWorld(t, true)
	install(t, w)
	fails(t, w, 2, "a backup catalog of pg_probackup does not allow", "alation_conf", "pgsql.pgbackrest.redundancy.enabled", "-s", "True")
	fails(t, w, 2, "must be different directories", "alation_conf", "pgsql.pg_probackup.dir_name", "-s", "data2/pgbackrest/inside")
	ok(t, w, "alation_conf", "pgsql.pg_probackup.dir_name", "-s", "data2/backup/pg_probackup") // the one for staging, which is emptied
	fails(t, w, 5, "name a directory of its own", "alation_action", "backup_all")
	ok(t, w, "alation_conf", "pgsql.pg_probackup.dir_name", "-s", "data2/pg_probackup")
	// A directory that is something else's.
	must(t, w.MakeOwned(catalogDir(w), 0o755), w.MakeOwned(filepath.Join(catalogDir(w), "something"), 0o755))
	fails(t, w, 1, "neither empty nor a backup catalog", "alation_action", "enable_backupv2")
	must(t, os.Remove(filepath.Join(catalogDir(w), "something")))
	ok(t, w, "alation_action", "enable_backupv2")
	// Backups of others in the same catalog stay.
	s := backup(t, w)
	theirs := filepath.Join(catalogDir(w), "backups", world.Stanza, inCatalog(t, w)[0], "backup.control")
	b, err := os.ReadFile(theirs)
	must(t, err)
	foreign := filepath.Join(catalogDir(w), "backups", world.Stanza, "AAAAAA")
	must(t, os.Mkdir(foreign, 0o777), os.WriteFile(filepath.Join(foreign, "backup.control"), []byte(strings.NewReplacer("note = 'holdfast", "note = 'by hand", "status = 'OK'", "status = 'ERROR'").Replace(string(b))), 0o666))
	backup(t, w)
	if _, err := os.Stat(foreign); err != nil {
		t.Error(err)
	}
	ok(t, w, "holdfast", "sets", "delete", s.ID, "--yes")
	if _, err := os.Stat(foreign); err != nil {
		t.Error(err)
	}
}

// TestProbackupAlone: an instance that never had pgBackRest's repository is backed up, and its preflight finds nothing to complain of.
func TestProbackupAlone(t *testing.T) {
	w := newWorld(t, true)
	install(t, w)
	must(t, w.Exec(t.Context(), "alter system set archive_command = ''"), w.Exec(t.Context(), "select pg_reload_conf()"))
	for range 100 {
		if now, err := w.Text(t.Context(), "show archive_command"); err == nil && !strings.Contains(now, "archive-push") {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	must(t, os.RemoveAll(w.Repo))
	ok(t, w, "alation_action", "enable_backupv2")
	if got := ok(t, w, "alation_action", "backup_all", "--dry-run"); strings.Contains(got, "stanza") || strings.Contains(got, w.Repo) {
		t.Errorf("the plan:\n%s", got)
	}
	s := backup(t, w)
	if found := ok(t, w, "holdfast", "doctor"); strings.Contains(found, w.Repo+":") || strings.Contains(found, "not what the parameters give") {
		t.Errorf("doctor:\n%s", found)
	}
	ok(t, w, "holdfast", "sets", "verify", s.ID)
}
