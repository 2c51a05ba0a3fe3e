package whole

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/test/world"
)

// drive has the operator's pgbackrest do PostgreSQL's part from now on. It goes through a wrapper that notes who ran it with
// which words; the file of notes is returned.
func drive(t *testing.T, w *world.World) string {
	t.Helper()
	notes := filepath.Join(w.Dir, "notes")
	must(t, os.WriteFile(notes, nil, 0o600), os.Chmod(notes, 0o666)) // root's and the server's user's
	wrapper(t, w, fmt.Sprintf("echo \"$(id -un) $*\" >>%s\nexec /usr/bin/pgbackrest \"$@\"\n", notes))
	ok(t, w, "alation_conf", "pgsql.backup.tool_path", "-s", "/usr/local/bin/theirs")
	ok(t, w, "alation_action", "enable_backupv2")
	return notes
}

func wrapper(t *testing.T, w *world.World, script string) {
	t.Helper()
	file := filepath.Join(w.Root, "usr/local/bin/theirs")
	must(t, os.WriteFile(file, []byte("#!/bin/sh\n"+script), 0o755), os.Chmod(file, 0o755))
}

// ran counts the commands in the notes and looks at who ran them.
func ran(t *testing.T, notes string) map[string]int {
	t.Helper()
	b, err := os.ReadFile(notes)
	must(t, err)
	count := map[string]int{}
	for line := range strings.Lines(string(b)) {
		words := strings.Fields(line)
		if os.Geteuid() == 0 && words[0] != "postgres" {
			t.Errorf("not run as the server's user: %s", line)
		}
		for _, v := range []string{"stanza-create", "archive-push", "archive-get", "backup", "info", "restore", "verify", "expire"} {
			for _, word := range words[1:] {
				if word == v {
					count[v]++
				}
			}
		}
	}
	return count
}

// TestTool: an external pgbackrest does all of PostgreSQL's part, with and without encryption, in both modes.
func TestTool(t *testing.T) {
	for _, c := range []struct {
		name  string
		apart bool
		conf  []string
	}{
		{"included", false, nil},
		{"apart", true, nil},
		{"included encrypted", false, []string{"pgsql.pgbackrest.cipher_pass", "-s", passphrase}},
		{"apart encrypted", true, []string{"pgsql.pgbackrest.cipher_pass", "-s", passphrase, "pgsql.pgbackrest.bundle", "-s", "True"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, c.apart, c.conf...)
			notes := drive(t, w)
			roundTrip(t, w)
			count := ran(t, notes)
			for _, v := range []string{"archive-push", "archive-get", "backup", "info", "restore"} {
				if count[v] == 0 {
					t.Errorf("the tool was not asked to %s: %v", v, count)
				}
			}
			if c.apart && count["verify"] == 0 {
				t.Errorf("the tool was not asked to verify: %v", count)
			}
			if command, err := w.Text(t.Context(), "show archive_command"); err != nil || !strings.Contains(command, "usr/local/bin/theirs") || strings.Contains(command, passphrase) {
				t.Errorf("archive_command is %s %v", command, err)
			}
			b, err := os.ReadFile(filepath.Join(w.Root, "var/lib/holdfast/pgbackrest", world.Stanza+".conf"))
			if err != nil || strings.Contains(string(b), passphrase) {
				t.Errorf("configuration: %v\n%s", err, b)
			}
			if staged, err := filepath.Glob(filepath.Join(w.Repo, "backup", world.Stanza, "*F")); err != nil || (len(staged) == 0) == c.apart {
				t.Errorf("in the repository: %v %v", staged, err)
			}
			if bundles, err := filepath.Glob(filepath.Join(w.Repo, "backup", world.Stanza, "*F/bundle")); err != nil || (len(bundles) > 0) != (len(c.conf) == 6) {
				t.Errorf("bundles: %v %v", bundles, err)
			}
			deleteSets(t, w, c.apart, notes)
		})
	}
}

// deleteSets deletes every set: of a repository apart the tool expires all backups but the last, which goes too.
func deleteSets(t *testing.T, w *world.World, apart bool, notes string) {
	t.Helper()
	all := sets(t, w)
	for i, s := range all {
		args := []string{"sets", "delete", s.ID, "--yes"}
		if i == len(all)-1 {
			args = append(args, "--last")
		}
		ok(t, w, "holdfast", args...)
	}
	if staged, err := filepath.Glob(filepath.Join(w.Repo, "backup", world.Stanza, "*F")); err != nil || len(staged) > 0 {
		t.Errorf("after the last set: %v %v", staged, err)
	}
	if count := ran(t, notes); apart && count["expire"] != len(all)-1 {
		t.Errorf("%d sets, expired by the tool: %d", len(all), count["expire"])
	}
	s := backup(t, w)
	ok(t, w, "holdfast", "sets", "verify", s.ID)
}

// TestToolKilled kills runs where the tool is about to be started, and around it: the next run
// settles what was left, and a restore is given back or repeated.
func TestToolKilled(t *testing.T) {
	w := newWorld(t, false)
	drive(t, w)
	backup(t, w)
	steps := stepsOf(t, w, "backup", "info", "remove") // those of backup_all itself are TestKilledBackup's
	for _, step := range steps {
		killAt(t, w, step, "alation_action", "backup_all")
	}
	want := prove(t, w)
	s := backup(t, w)
	ok(t, w, "holdfast", "sets", "verify", s.ID)
	restore(t, w, s.ID)
	same(t, "after the kills", want, prove(t, w))
	restoring := []string{"restore:move-aside", "restore:tool", "restore:recover", "restore:commit"}
	for i, step := range restoring {
		before := change(t, w)
		killAt(t, w, step, "holdfast", "restore", "--set", s.ID, "--yes")
		if i%2 == 0 {
			ok(t, w, "holdfast", "restore", "--give-back")
			same(t, "given back after a kill at "+step, before, prove(t, w))
		}
		restore(t, w, s.ID)
		same(t, "restored after a kill at "+step, want, prove(t, w))
	}
	t.Logf("killed at %d steps: %s", len(steps)+len(restoring), strings.Join(append(steps, restoring...), " "))
}

// TestToolFails: what the tool says is shown with its exit code, its warnings are ours, and with the cause gone it works.
func TestToolFails(t *testing.T) {
	w := newWorld(t, true)
	ok(t, w, "alation_conf", "pgsql.backup.tool_path", "-s", "/usr/local/bin/theirs")
	fails(t, w, 1, "theirs: no such file", "alation_action", "enable_backupv2")
	drive(t, w)
	for _, c := range []struct {
		script string
		code   int
		says   []string
	}{
		{"echo 'P00  INFO: begin' >&2\necho 'ERROR: [042]: the disk is blue' >&2\nexit 42", 1, []string{"pgbackrest backup: exit code 42", "the disk is blue"}},
		{"echo 'ERROR: [050]: unable to acquire lock' >&2\nexit 50", 4, []string{"exit code 50", "unable to acquire lock"}},
		{"kill -9 $$", 1, []string{"pgbackrest backup: signal: killed"}},
		{"echo 'WARN: the moon is full'\necho 'WARN: the moon is full' >&2\nexit 0", 1, []string{"the moon is full", "pgbackrest info"}},
	} {
		wrapper(t, w, "for last; do :; done\n[ \"$last\" = archive-push ] && exec /usr/bin/pgbackrest \"$@\"\n"+c.script+"\n")
		out, err := w.As(t.Context(), "alation_action", "", "backup_all")
		failed(t, out, err, c.code, c.says...)
	}
	killedWithTool(t, w)
	drive(t, w)
	s := backup(t, w)
	out, err := os.ReadFile(filepath.Join(w.Root, "opt/alation/site/logs/alation_backup.log"))
	if err != nil || !strings.Contains(string(out), "backup: tool: ") {
		t.Errorf("the log does not name the tool: %v", err)
	}
	// A damaged backup is found by the tool's verify.
	files, err := filepath.Glob(filepath.Join(w.Repo, "backup", world.Stanza, "*F/pg_data/base/*/1259.*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	must(t, os.Truncate(files[0], 100))
	fails(t, w, 6, "finding", "holdfast", "sets", "verify", s.ID)
}

// killedWithTool kills backup_all while the tool is at work: the tool does not go on by itself.
func killedWithTool(t *testing.T, w *world.World) {
	t.Helper()
	file := filepath.Join(w.Sock, "pid") // in a directory of the server's user
	wrapper(t, w, "for last; do :; done\n[ \"$last\" = backup ] || exec /usr/bin/pgbackrest \"$@\"\necho $$ >"+file+".new\nmv "+file+".new "+file+"\nexec sleep 600\n")
	cmd := w.Command(t.Context(), "alation_action", "backup_all")
	must(t, cmd.Start())
	var pid int
	for end := time.Now().Add(time.Minute); pid == 0; time.Sleep(10 * time.Millisecond) {
		if b, err := os.ReadFile(file); err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
			must(t, err)
		}
		if time.Now().After(end) {
			t.Fatal("the tool was not started")
		}
	}
	must(t, cmd.Process.Kill())
	if err := cmd.Wait(); err == nil {
		t.Error("killed, but it ended well")
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(b), ") Z ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %d of the tool goes on", pid)
		}
	}
}
