package whole

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/test/tally"
	"holdfast/test/world"
)

var incrementalConf = []string{"alation.backup_v2.incremental.enabled", "-s", "True", "alation.backup_v2.incremental.full_every", "-s", "3"}

// chainSet is what these tests look at in a set.
type chainSet struct {
	set
	Mode     string
	Warnings []string
	Backups  []struct{ Stanza, Label, Type, Prior, Why string }
}

// grow changes a little of everything.
func grow(t *testing.T, w *world.World, n int) *world.Proof {
	t.Helper()
	must(t, w.Exec(t.Context(), fmt.Sprintf("insert into ledger values (%d)", n), fmt.Sprintf("update t set h = 'changed %d' where id %% 5000 = %d", n, n), fmt.Sprintf("create table more%d as select generate_series(1, 100)", n)),
		os.WriteFile(filepath.Join(w.Files, fmt.Sprint("grown", n)), []byte(fmt.Sprint(n)), 0o600))
	return prove(t, w)
}

// made makes a set and wants its type, and the reason.
func made(t *testing.T, w *world.World, typ, why string, args ...string) chainSet {
	t.Helper()
	var s chainSet
	must(t, json.Unmarshal([]byte(ok(t, w, "alation_action", append([]string{"backup_all", "--json"}, args...)...)), &s))
	if len(s.Backups) != 1 || s.Backups[0].Type != typ || !strings.Contains(s.Backups[0].Why, why) || s.State != "complete" {
		t.Fatalf("%+v, want %s because of %q", s, typ, why)
	}
	return s
}

// TestIncremental: runs in both modes with a full backup every third; every set restores to the rows, files and records of its own time:
// on the host, over what is there, and the chain goes on on the new timeline; of mode included with nothing but the tarballs, and by pgbackrest.
func TestIncremental(t *testing.T) {
	for mode, apart := range map[string]bool{"included": false, "apart": true} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			conf := incrementalConf
			if apart {
				conf = append(slices.Clone(conf), "pgsql.pgbackrest.bundle", "-s", "True", "pgsql.pgbackrest.block", "-s", "True")
			}
			w := newWorld(t, apart, conf...)
			var want []*world.Proof
			var all []chainSet
			for i, typ := range []string{"full", "incr", "incr", "full", "incr"} {
				plan := ok(t, w, "holdfast", "backup_all", "--dry-run")
				if !strings.Contains(plan, typ+": ") {
					t.Errorf("run %d: no %s in the plan:\n%s", i, typ, plan)
				}
				want = append(want, grow(t, w, i))
				all = append(all, made(t, w, typ, ""))
				if slices.ContainsFunc(all[i].Warnings, func(s string) bool { return strings.Contains(s, "full backup") }) { // nor is it one that the first is full
					t.Errorf("run %d: %q", i, all[i].Warnings)
				}
			}
			for _, s := range all {
				ok(t, w, "holdfast", "sets", "verify", s.ID)
			}
			if apart {
				fails(t, w, 5, all[2].ID+", "+all[1].ID, "holdfast", "sets", "delete", all[0].ID, "--yes")
			} else {
				alone(t, w, all[2], want[2])
				theirs(t, w, all[2], want[2])
			}
			for _, i := range []int{1, 4, 2, 0, 3} {
				if i == 2 {
					must(t, w.Lose(t.Context()))
				}
				restore(t, w, all[i].ID)
				same(t, fmt.Sprintf("set %d", i), want[i], prove(t, w))
			}
			// On the timeline that the last restore began, what is newest is of another one.
			at := grow(t, w, 5)
			next := made(t, w, "incr", "built on "+all[4].Backups[0].Label+", run 3 of 3")
			grow(t, w, 6)
			restore(t, w, next.ID)
			same(t, "built on a backup of the timeline before", at, prove(t, w))
			ok(t, w, "holdfast", "sets", "verify", next.ID)
			switched(t, w, apart, next)
			if apart {
				for _, i := range []int{2, 1, 0} { // what is built on others first
					ok(t, w, "holdfast", "sets", "delete", all[i].ID, "--yes")
				}
				if left := sets(t, w); left[0].ID != all[3].ID {
					t.Errorf("%+v", left)
				}
				ok(t, w, "holdfast", "sets", "verify", all[4].ID)
			}
			tally.Count(t, "restores of incremental sets", 7)
		})
	}
}

// switched: the other mode has a chain of its own; back again the first one goes on.
func switched(t *testing.T, w *world.World, apart bool, last chainSet) {
	t.Helper()
	mode := func(included string) {
		t.Helper()
		ok(t, w, "alation_conf", "alation.backup_v2.pgbackup_compression", "-s", included)
		ok(t, w, "alation_action", "enable_backupv2")
	}
	here, there := "True", "False"
	if apart {
		here, there = there, here
	}
	mode(there)
	first := made(t, w, "full", "there is no backup in")
	want := grow(t, w, 7)
	second := made(t, w, "incr", "built on "+first.Backups[0].Label)
	grow(t, w, 8)
	restore(t, w, second.ID)
	same(t, "of the other mode", want, prove(t, w))
	mode(here)
	back := made(t, w, "incr", "built on "+last.Backups[0].Label, "--type", "incr")
	grow(t, w, 9)
	restore(t, w, back.ID)
	same(t, "back in the first mode", want, prove(t, w))
	ok(t, w, "holdfast", "sets", "verify", back.ID)
}

// alone restores a set of mode included on a new host that has its two tarballs and nothing else.
func alone(t *testing.T, w *world.World, s chainSet, want *world.Proof) {
	t.Helper()
	n := startWorld(t, world.Options{Brokers: newBus(t).ListenAddrs()})
	app := ""
	for _, p := range s.Pieces {
		b, err := os.ReadFile(p.Path)
		must(t, err, os.WriteFile(filepath.Join(n.Dump, filepath.Base(p.Path)), b, 0o600))
		if p.Kind == "application" {
			app = filepath.Join(n.Dump, filepath.Base(p.Path))
		}
	}
	ok(t, n, "holdfast", "restore", "--file", app, "--yes")
	same(t, "alone on a new host", want, prove(t, n))
	made(t, n, "full", "") // its own staging repository has nothing yet
}

// theirs unpacks the tarball and has pgbackrest list, verify and restore what is in it.
func theirs(t *testing.T, w *world.World, s chainSet, want *world.Proof) {
	t.Helper()
	dir := filepath.Join(w.Dir, "unpacked")
	data, sock := filepath.Join(w.Dir, "theirs"), filepath.Join(w.Dir, "theirsock")
	must(t, os.Mkdir(dir, 0o755), w.MakeOwned(data, 0o700), w.MakeOwned(sock, 0o755), w.MakeOwned(filepath.Join(w.Dir, "theirlocks"), 0o755))
	tarball := filepath.Join(w.Dump, s.ID+"_alation_backup.tar.gz")
	for _, args := range [][]string{{"tar", "xzf", tarball, "-C", dir, "pgbackrest"}, {"chmod", "-R", "a+rX", dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
	}
	as := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		w.AsOwner(cmd)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	pgbackrest := func(args ...string) string {
		t.Helper()
		return as("pgbackrest", append([]string{"--no-config", "--stanza=" + world.Stanza, "--repo1-path=" + filepath.Join(dir, "pgbackrest"), "--log-level-file=off", "--log-level-console=off"}, args...)...)
	}
	var infos []struct {
		Backup []struct{ Label, Type string }
		Status struct{ Code int }
	}
	must(t, json.Unmarshal([]byte(pgbackrest("info", "--output=json")), &infos))
	if len(infos) != 1 || infos[0].Status.Code != 0 || len(infos[0].Backup) != 3 || infos[0].Backup[2].Label != s.Backups[0].Label || infos[0].Backup[0].Type != "full" {
		t.Errorf("info: %+v", infos)
	}
	if out := pgbackrest("verify", "--output=text", "--verbose"); !strings.Contains(out, "status: ok") || strings.Count(out, "status: valid") != 3 {
		t.Errorf("verify: %s", out)
	}
	pgbackrest("--lock-path="+filepath.Join(w.Dir, "theirlocks"), "--pg1-path="+data, "--type=name", "--target=holdfast_"+s.ID, "--target-action=promote", "restore")
	ctl := "/usr/lib/postgresql/15/bin/pg_ctl"
	as(ctl, "-D", data, "-l", filepath.Join(sock, "log"), "-w", "-s", "-o", fmt.Sprintf("-k %s -c archive_mode=off", sock), "start")
	defer as(ctl, "-D", data, "-m", "immediate", "-w", "-s", "stop")
	sql := func(q string) string {
		t.Helper()
		return strings.TrimSpace(as("/usr/lib/postgresql/15/bin/psql", "-h", sock, "-p", fmt.Sprint(w.Port), "-U", "postgres", "-d", "postgres", "-Atc", q))
	}
	for end := time.Now().Add(time.Minute); sql("select pg_is_in_recovery()") != "f"; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("recovery does not end")
		}
	}
	for table, rows := range want.Rows {
		if got := sql("select count(*)||' rows, '||coalesce(md5(string_agg(md5(x::text), '' order by md5(x::text))),'-') from " + table + " x"); got != rows {
			t.Errorf("restored by pgbackrest, %s: %s, want %s", table, got, rows)
		}
	}
}

// TestIncrementalCopy: what the external storage has of incremental sets in bundles and blocks restores a new instance, everything
// else gone.
func TestIncrementalCopy(t *testing.T) {
	w := newWorld(t, true, append(append([]string{"pgsql.pgbackrest.bundle", "-s", "True", "pgsql.pgbackrest.block", "-s", "True"}, storeConf...), incrementalConf...)...)
	var want *world.Proof
	var last chainSet
	for i, typ := range []string{"full", "incr", "incr"} {
		want = grow(t, w, i)
		last = made(t, w, typ, "")
		if c := copies(t, w); c[i].Copy == nil || !c[i].Copy.Postgres || !c[i].Copy.Tarballs {
			t.Fatalf("%+v", c[i].Copy)
		}
	}
	elsewhere(t, w, last.ID, want, "")
}

// TestKilledIncremental kills runs at every step that they announce, incremental and full ones; what is complete afterwards is whole, and
// the next runs build on what is there.
func TestKilledIncremental(t *testing.T) {
	for mode, apart := range map[string]bool{"included": false, "apart": true} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, apart, incrementalConf...)
			for range 4 { // full, two incremental, and full again: the chain before goes
				made(t, w, made4[len(sets(t, w))], "")
			}
			steps := stepsOf(t, w, "backup_all", "backup", "remove")
			for i, step := range steps {
				grow(t, w, i)
				args := []string{"backup_all"}
				if strings.HasPrefix(step, "remove:") {
					args = append(args, "--type=full")
				}
				killAt(t, w, step, "alation_action", args...)
			}
			want := prove(t, w)
			last := backup(t, w)
			for _, s := range sets(t, w) {
				if s.State != "complete" && s.State != "failed" {
					t.Errorf("set %s is %s after a good run", s.ID, s.State)
				}
				if s.State == "complete" {
					ok(t, w, "holdfast", "sets", "verify", s.ID)
				}
			}
			grow(t, w, 99)
			restore(t, w, last.ID)
			same(t, "after the kills", want, prove(t, w))
			t.Logf("killed at %d steps: %s", len(steps), strings.Join(steps, " "))
		})
	}
}

var made4 = []string{"full", "incr", "incr", "full"}
