package whole

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"holdfast/test/tally"
	"holdfast/test/world"
)

// storeConf is external storage in a directory of the instance, for both kinds of copies.
var storeConf = []string{"pgsql.pgbackrest.redundancy.type", "-s", "posix", "pgsql.pgbackrest.redundancy.posix.path", "-s", "/far",
	"pgsql.pgbackrest.redundancy.enabled", "-s", "True", "alation.backup.redundancy.enabled", "-s", "True"}

func far(w *world.World) string { return filepath.Join(w.Root, "far") }

// copied is what the tests look at in a set's entry on its copy.
type copied struct {
	ID   string
	Copy *struct {
		Store              string
		Postgres, Tarballs bool
		Error              string
		LastSet            string `json:"last_set"`
		WAL                []struct{ Stanza, Last string }
	}
}

func copies(t *testing.T, w *world.World) (out []copied) {
	t.Helper()
	must(t, json.Unmarshal([]byte(ok(t, w, "holdfast", "sets", "list", "--json")), &out))
	return out
}

// away makes the external storage unusable until the returned function is called.
func away(t *testing.T, w *world.World) (back func()) {
	t.Helper()
	must(t, os.Rename(far(w), far(w)+"-gone"), os.WriteFile(far(w), []byte("not a directory"), 0o600))
	return func() { must(t, os.Remove(far(w)), os.Rename(far(w)+"-gone", far(w))) }
}

// writing writes until the returned function is called.
func writing(t *testing.T, w *world.World) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		var err error
		for n := 0; ctx.Err() == nil && err == nil; n++ {
			err = w.Exec(ctx, fmt.Sprintf("insert into t select g, repeat('w', 200) from generate_series(%d, %d) g", n*1000, n*1000+999), "select pg_switch_wal()")
			time.Sleep(50 * time.Millisecond)
		}
		if ctx.Err() != nil {
			err = nil
		}
		done <- err
	}()
	return func() { cancel(); must(t, <-done) }
}

// archived waits until nothing waits for the archive, and makes sure that nothing ever failed to get there.
func archived(t *testing.T, w *world.World) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		waiting, err := w.Text(t.Context(), "select count(*)::text from pg_ls_archive_statusdir() where name like '%.ready'")
		must(t, err)
		if waiting == "0" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s WAL files are not archived", waiting)
		}
	}
	failed, err := w.Text(t.Context(), "select failed_count::text from pg_stat_archiver")
	must(t, err)
	if failed != "0" {
		t.Errorf("archiving failed %s times", failed)
	}
}

// TestRedundancy: every run fills the external storage; while that is away for the whole of a run under load, archiving goes on,
// the run ends with 3, and the next one copies what is missing. From the copy alone, with everything else gone, a new instance is
// restored, which then goes on with the copy.
func TestRedundancy(t *testing.T) {
	for name, pass := range map[string]string{"in clear": "", "encrypted": passphrase} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conf := append([]string{}, storeConf...)
			if pass != "" {
				conf = append(conf, "pgsql.pgbackrest.cipher_pass", "-s", pass)
			}
			w := newWorld(t, true, conf...)
			first := backup(t, w)
			if c := copies(t, w); len(c) != 1 || c[0].Copy == nil || !c[0].Copy.Postgres || !c[0].Copy.Tarballs || c[0].Copy.Error != "" || len(c[0].Copy.WAL) != 1 {
				t.Fatalf("%+v", c)
			}
			if pass != "" {
				sealedBelow(t, far(w))
			}
			outage(t, w, first)
			at := catchUp(t, w)
			elsewhere(t, w, sets(t, w)[2].ID, at, pass)
		})
	}
}

// outage makes a set while the storage is away.
func outage(t *testing.T, w *world.World, first set) {
	t.Helper()
	back := away(t, w)
	stop := writing(t, w)
	out, err := w.As(t.Context(), "holdfast", "", "backup_all")
	if err != nil || out.Code != 3 || !strings.Contains(out.Stderr, "is behind by 1 set(s), the newest set there is "+first.ID) || !strings.Contains(out.Stderr, "holdfast sets copy") {
		t.Errorf("code %d %v:\n%s", out.Code, err, out.Stderr)
	}
	out, err = w.As(t.Context(), "holdfast", "", "sets", "copy")
	if err != nil || out.Code != 3 {
		t.Errorf("sets copy: code %d %v", out.Code, err)
	}
	stop()
	archived(t, w)
	c := copies(t, w)
	if len(c) != 2 || c[1].Copy == nil || c[1].Copy.Postgres || c[1].Copy.Tarballs || c[1].Copy.Error == "" || c[1].Copy.LastSet != first.ID || len(c[1].Copy.WAL) != 1 {
		t.Errorf("%+v", c)
	}
	if list := ok(t, w, "holdfast", "sets", "list"); !strings.Contains(list, "behind") || !strings.Contains(list, "whole") {
		t.Error(list)
	}
	if show := ok(t, w, "holdfast", "sets", "show", c[1].ID); !strings.Contains(show, "nothing of this set") || !strings.Contains(show, "newest set there: "+first.ID) {
		t.Error(show)
	}
	back()
}

// catchUp: the next run copies the set before as well, and sets copy what was archived since. It returns what the run's set holds.
func catchUp(t *testing.T, w *world.World) *world.Proof {
	t.Helper()
	at := prove(t, w)
	out, err := w.As(t.Context(), "holdfast", "", "backup_all")
	if err != nil || out.Code != 0 {
		t.Fatalf("code %d %v:\n%s", out.Code, err, out.Stderr)
	}
	log, err := os.ReadFile(filepath.Join(w.Root, "opt/alation/site/logs/alation_backup.log"))
	if late := "copy: caught-up: " + far(w) + "/holdfast has the sets that it lacked: " + copies(t, w)[1].ID; err != nil || strings.Count(string(log), late) != 1 {
		t.Errorf("the log does not tell that %q, %v", late, err)
	}
	reach := ""
	for _, c := range copies(t, w) {
		if c.Copy == nil || !c.Copy.Postgres || !c.Copy.Tarballs || c.Copy.Error != "" {
			t.Errorf("%+v", c.Copy)
		}
		reach = c.Copy.WAL[0].Last
	}
	must(t, w.Exec(t.Context(), "insert into ledger values (5)", "select pg_switch_wal()"))
	archived(t, w)
	if out := ok(t, w, "holdfast", "sets", "copy"); !strings.Contains(out, "0 set(s) new there") || strings.Contains(out, ", 0 WAL segments") || strings.Contains(out, reach) {
		t.Errorf("reached %s before:\n%s", reach, out)
	}
	args := []string{"repo", "diff", "--from=" + w.Repo, "--to=" + filepath.Join(far(w), "holdfast/pgbackrest")}
	if pass := filepath.Join(w.Root, "var/lib/holdfast/pgbackrest/cipher_pass"); exists(pass) {
		args = append(args, "--from-cipher-pass-file="+pass, "--to-cipher-pass-file="+pass)
	}
	if out := ok(t, w, "holdfast", args...); !strings.Contains(out, "the target has everything") {
		t.Error(out)
	}
	return at
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// elsewhere restores a set on a new instance that has nothing but the external storage.
func elsewhere(t *testing.T, w *world.World, id string, want *world.Proof, pass string) {
	t.Helper()
	must(t, w.Close(t.Context()))
	conf := append([]string{"pgsql.pgbackrest.restore.source", "-s", "s3"}, storeConf...)
	if pass != "" {
		conf = append(conf, "pgsql.pgbackrest.cipher_pass", "-s", pass)
	}
	n := newWorld(t, true, conf...)
	must(t, os.RemoveAll(far(n)), os.Rename(far(w), far(n)), os.RemoveAll(w.Repo), os.RemoveAll(w.Dump))
	if out := ok(t, n, "holdfast", "sets", "list", "--store"); strings.Count(out, "complete") != 3 {
		t.Errorf("sets in the store:\n%s", out)
	}
	fails(t, n, 2, "no such backup set", "holdfast", "sets", "fetch", "202001010000_1-0-0-0")
	ok(t, n, "holdfast", "sets", "fetch", id)
	plan := ok(t, n, "holdfast", "restore", "--set", id, "--dry-run")
	if !strings.Contains(plan, "postgres     "+far(n)+"/holdfast") {
		t.Errorf("the plan does not say where PostgreSQL comes from:\n%s", plan)
	}
	back := away(t, n)
	out, err := n.As(t.Context(), "holdfast", "", "restore", "--set", id, "--dry-run")
	if err == nil || !strings.Contains(out.Stdout, "PostgreSQL backup") {
		t.Errorf("a plan without the storage: %v\n%s", err, out.Stdout)
	}
	back()
	ok(t, n, "holdfast", "restore", "--set", id, "--yes")
	same(t, "restored on a new instance from the external storage alone", want, prove(t, n))
	// The new instance goes on with the copy: its own repository knows the cluster under another history id.
	if out, err := n.As(t.Context(), "holdfast", "", "backup_all"); err != nil || out.Code != 0 && !strings.Contains(out.Stderr, "there is no backup in "+n.Repo+" to build on") {
		t.Fatalf("code %d %v:\n%s", out.Code, err, out.Stderr)
	}
	c := copies(t, n)
	if last := c[len(c)-1]; last.Copy == nil || !last.Copy.Postgres || !last.Copy.Tarballs {
		t.Errorf("%+v", last.Copy)
	}
	ok(t, n, "holdfast", "sets", "verify", c[len(c)-1].ID)
	tally.Count(t, "restores from external storage alone", 1)
}

// TestRedundancySet: what setting the parameters says, in the order in which they are printed in the manual.
func TestRedundancySet(t *testing.T) {
	w := newWorld(t, true)
	set := func(code int, want string, words ...string) {
		t.Helper()
		out, err := w.As(t.Context(), "alation_conf", "", words...)
		if out.Code != code || !strings.Contains(out.Stdout+out.Stderr, want) || err != nil && code == 0 {
			t.Errorf("%v: code %d, %v\n%s%s", words, out.Code, err, out.Stdout, out.Stderr)
		}
	}
	set(0, "enabled = True", "pgsql.pgbackrest.redundancy.enabled", "-s", "True")
	set(0, "type = s3", "pgsql.pgbackrest.redundancy.type", "-s", "s3")
	set(2, "redundancy copies the separate PostgreSQL backup", "alation.backup_v2.pgbackup_compression", "-s", "True")
	set(0, "type = posix", "pgsql.pgbackrest.redundancy.type", "-s", "posix")
	must(t, os.WriteFile(far(w), []byte("in the way"), 0o600))
	set(3, "it is set, but can't be used", "pgsql.pgbackrest.redundancy.posix.path", "-s", "/far")
	out, err := w.As(t.Context(), "alation_action", "", "backup_all")
	if err != nil || out.Code != 3 || !strings.Contains(out.Stderr, "no set is there yet") {
		t.Errorf("code %d %v\n%s", out.Code, err, out.Stderr)
	}
	must(t, os.Remove(far(w)))
	set(0, "can be written, read, listed and removed from", "pgsql.pgbackrest.redundancy.posix.path", "-s", "/far")
	if left, err := filepath.Glob(far(w) + "/holdfast/*/holdfast-check/*"); err != nil || len(left) > 0 {
		t.Errorf("the check left %v", left)
	}
}

// TestRedundancyKilled kills a run at the steps of the copy: the set is complete whatever happens, and the next run copies it.
func TestRedundancyKilled(t *testing.T) {
	w := newWorld(t, true, storeConf...)
	kills := 0
	for _, step := range []string{"backup_all:copy-tarballs", "copy:tarball", "backup_all:copy-postgres", "copy:set", "copy:stanza", "copy:objects", "copy:wal", "copy:publish", "copy:catalogue", "copy:archive"} {
		if step == "copy:stanza" || kills == 0 {
			must(t, os.RemoveAll(far(w)))
		}
		killAt(t, w, step, "holdfast", "backup_all")
		kills++
		if s := sets(t, w); s[len(s)-1].State != "complete" {
			t.Errorf("killed at %s: the set is %s", step, s[len(s)-1].State)
		}
		if step == "copy:archive" || step == "copy:objects" {
			if out, err := w.As(t.Context(), "holdfast", "", "sets", "copy"); err != nil || out.Code != 0 {
				t.Fatalf("after a kill at %s: code %d %v\n%s", step, out.Code, err, out.Stderr)
			}
			for _, c := range copies(t, w) {
				if c.Copy == nil || !c.Copy.Postgres || !c.Copy.Tarballs {
					t.Errorf("after a kill at %s: %s: %+v", step, c.ID, c.Copy)
				}
			}
			ok(t, w, "holdfast", "pg", "verify", "--stanza="+world.Stanza, "--repo1-path="+filepath.Join(far(w), "holdfast/pgbackrest"))
		}
	}
	tally.Count(t, "kills of a copy between repositories", kills)
}

// TestPostScript: the program gets both tarballs, its output is in the log, and its failure is a warning with a code of its own.
func TestPostScript(t *testing.T) {
	w := newWorld(t, true)
	program := filepath.Join(w.Root, "relocate")
	script := func(text string) {
		t.Helper()
		must(t, os.WriteFile(program, []byte("#!/bin/sh\n"+text), 0o755))
	}
	ok(t, w, "alation_conf", "alation.backup.post_script.path", "-s", "/relocate")
	script("mkdir -p $HOLDFAST_ROOT/moved && echo \"relocating $# files of $HOLDFAST_SET\" && echo $HOLDFAST_APPLICATION_SHA256 \"$1\" | sha256sum -c >&2 && mv \"$1\" \"$2\" $HOLDFAST_ROOT/moved/\n")
	out, err := w.As(t.Context(), "alation_action", "", "backup_all")
	if err != nil || out.Code != 0 {
		t.Fatalf("code %d %v\n%s", out.Code, err, out.Stderr)
	}
	s := sets(t, w)[0]
	if moved, err := filepath.Glob(filepath.Join(w.Root, "moved", s.ID+"*")); err != nil || len(moved) != 2 {
		t.Errorf("moved %v", moved)
	}
	log, err := os.ReadFile(filepath.Join(w.Root, "opt/alation/site/logs/alation_backup.log"))
	if err != nil || !strings.Contains(string(log), "relocating 2 files of "+s.ID) || !strings.Contains(string(log), ": OK") {
		t.Errorf("%v\n%s", err, log)
	}
	for text, want := range map[string]string{"echo no room >&2; exit 9": "exit status 9", "sleep 60 & sleep 60": "took longer than 2s"} {
		script(text + "\n")
		limit := "300"
		if strings.HasPrefix(text, "sleep") {
			limit = "2"
		}
		ok(t, w, "alation_conf", "alation.backup.post_script.timeout", "-s", limit)
		out, err := w.As(t.Context(), "alation_action", "", "backup_all")
		if err == nil || out.Code != 7 || !strings.Contains(out.Stderr, want) || !strings.Contains(out.Stdout, "complete") {
			t.Errorf("%s: code %d\n%s%s", text, out.Code, out.Stdout, out.Stderr)
		}
	}
	must(t, os.Remove(program))
	if out, err := w.As(t.Context(), "alation_action", "", "backup_all"); err == nil || out.Code != 7 {
		t.Errorf("without the program: code %d\n%s", out.Code, out.Stderr)
	}
	for _, x := range sets(t, w) {
		if x.State != "complete" {
			t.Errorf("%s is %s", x.ID, x.State)
		}
	}
}

// TestKilledAfterComplete: a run that dies when its set is complete leaves the recovery kit and the program that relocates the tarballs
// to the next run. Tarballs that the program had already taken away are not offered to it again.
func TestKilledAfterComplete(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	must(t, err)
	w := newWorld(t, true, "alation.backup.recovery_kit.recipient", "-s", id.Recipient().String(), "alation.backup.post_script.path", "-s", "/relocate")
	program, calls := filepath.Join(w.Root, "relocate"), filepath.Join(w.Root, "calls")
	script := func(text string) {
		t.Helper()
		must(t, os.WriteFile(program, []byte("#!/bin/sh\necho $HOLDFAST_SET $HOLDFAST_RECOVERY_KIT >>"+calls+"\n"+text), 0o755))
	}
	called := func(s set) (n int) {
		t.Helper()
		b, err := os.ReadFile(calls)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return strings.Count(string(b), s.ID+" "+filepath.Join(w.Dump, s.ID+"_recovery_kit.age"))
	}
	for step, c := range map[string]struct {
		script string
		calls  int
	}{
		"backup_all:catalogue":    {"", 1},
		"backup_all:recovery-kit": {"", 1},
		"backup_all:post-script":  {"", 1},
		"before it moves":         {"kill -9 $PPID\n", 2},
		"after it has moved":      {"mkdir -p $HOLDFAST_ROOT/moved && mv \"$1\" \"$2\" $HOLDFAST_ROOT/moved/ && kill -9 $PPID\n", 1},
	} {
		script(c.script)
		killAt(t, w, step, "holdfast", "backup_all") // a step that there is not: it is killed by the program
		script("")
		all := sets(t, w)
		s := all[len(all)-1]
		if now := called(s); now != 0 && c.script == "" || now != 1 && c.script != "" {
			t.Fatalf("killed at %s: the program was called %d times", step, now)
		}
		next := backup(t, w)
		if now := called(s); now != c.calls || called(next) != 1 {
			t.Errorf("killed at %s: the program was called %d times for that set, want %d, and %d times for the next one", step, now, c.calls, called(next))
		}
		if !exists(filepath.Join(w.Dump, s.ID+"_recovery_kit.age")) {
			t.Errorf("killed at %s: the set has no recovery kit", step)
		}
		for _, s := range sets(t, w) {
			if s.State != "complete" {
				t.Errorf("killed at %s: set %s is %s", step, s.ID, s.State)
			}
		}
		before := called(s)
		backup(t, w)
		if now := called(s); now != before {
			t.Errorf("killed at %s: the second run after it called the program once more", step)
		}
	}
	tally.Count(t, "kills of a run whose set was complete", 5)
}

// TestRedundancyHere: on the same instance, its repository lost, a set comes back from the external storage as it was at a moment
// after it; and the external storage keeps what the retention and the catalogue want, and no more.
func TestRedundancyHere(t *testing.T) {
	w := newWorld(t, true, storeConf...)
	first, second := backup(t, w), backup(t, w)
	labels := func() (out []string) {
		dirs, err := filepath.Glob(filepath.Join(far(w), "holdfast/pgbackrest/backup", world.Stanza, "*F"))
		must(t, err)
		return dirs
	}
	stored := func() []string {
		dirs, err := filepath.Glob(filepath.Join(far(w), "holdfast/sets/*"))
		must(t, err)
		return dirs
	}
	if len(labels()) != 2 || len(stored()) != 2 {
		t.Errorf("there are %v and %v", labels(), stored())
	}
	only := func(s set, after string) {
		t.Helper()
		if len(labels()) != 1 || len(stored()) != 1 || !strings.Contains(stored()[0], s.ID) {
			t.Errorf("after %s there are %v and %v", after, labels(), stored())
		}
	}
	ok(t, w, "alation_conf", "alation.backup_v2.retention.sets", "-s", "1")
	ok(t, w, "holdfast", "sets", "delete", first.ID, "--yes")
	ok(t, w, "holdfast", "sets", "copy")
	only(second, "the deletion of "+first.ID)
	second = backup(t, w) // a run ends with the retention, here and there
	only(second, "a run that leaves one set")
	must(t, w.Exec(t.Context(), "insert into ledger values (77)"))
	time.Sleep(20 * time.Millisecond)
	at := time.Now().UTC().Format("2006-01-02 15:04:05.999999+00")
	time.Sleep(20 * time.Millisecond)
	must(t, w.Exec(t.Context(), "insert into ledger values (78)", "select pg_switch_wal()"))
	archived(t, w)
	ok(t, w, "holdfast", "sets", "copy")
	must(t, os.RemoveAll(w.Repo))
	out, err := w.As(t.Context(), "holdfast", "", "restore", "--set", second.ID, "--until", at, "--yes")
	if err == nil || !strings.Contains(out.Stdout+out.Stderr, "alation_conf pgsql.pgbackrest.restore.source -s s3") {
		t.Errorf("without the repository: code %d\n%s%s", out.Code, out.Stdout, out.Stderr)
	}
	ok(t, w, "holdfast", "restore", "--set", second.ID, "--until", at, "--yes", "--source=s3")
	rows, err := w.Text(t.Context(), "select string_agg(n::text, ',') from ledger")
	if err != nil || rows != "77" {
		t.Errorf("the ledger has %q, %v", rows, err)
	}
	archived(t, w)
	tally.Count(t, "restores from external storage alone", 1)
}
