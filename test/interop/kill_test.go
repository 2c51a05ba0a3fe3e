package interop

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/pg"
	"holdfast/test/tally"
)

// killer runs our program under the name pgbackrest and kills it, as kill -9 does, at each step that it names.
type killer struct {
	*rig
	name      string
	was       map[string]map[string]string // the files of each backup, as first restored
	positions []string
}

// killerOptions are those of every command of these tests; the configuration file has the rest.
const killerOptions = "process-max=2\nrepo1-block=y\nrepo1-retention-full=20\nrepo1-retention-archive=1\nlog-level-console=off\n"

func newKiller(t *testing.T) *killer {
	t.Helper()
	k := &killer{rig: newRig(t, 15, "zst"), was: map[string]map[string]string{}}
	k.bundled = true
	k.configure("zst")
	text, err := os.ReadFile(k.conf)
	if err == nil {
		err = os.WriteFile(k.conf, []byte(strings.Replace(string(text), "[global]\n", "[global]\n"+killerOptions, 1)), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	k.name = filepath.Join(k.dirFor("bin"), "pgbackrest")
	if err := os.Symlink(k.bin, k.name); err != nil {
		t.Fatal(err)
	}
	return k
}

// start runs one command line; at is a step to die at, or empty.
func (k *killer) start(at string, args ...string) (string, syscall.WaitStatus) {
	k.t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(k.name, append([]string{"--config=" + k.conf, "--stanza=" + stanza}, args...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", &out, &out
	cmd.Env = append(os.Environ(), "HOLDFAST_TEST_KILL_AT="+at)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: postgres(k.t)}
	err := cmd.Run()
	if cmd.ProcessState == nil {
		k.t.Fatal(err)
	}
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok {
		k.t.Fatalf("%T is no wait status", cmd.ProcessState.Sys())
	}
	return out.String(), status
}

// ours runs a command that has to succeed.
func (k *killer) ours(args ...string) string {
	k.t.Helper()
	out, status := k.start("", args...)
	if status.ExitStatus() != 0 {
		k.t.Fatalf("%s: %d\n%s", strings.Join(args, " "), status.ExitStatus(), out)
	}
	return out
}

// kill runs a command that dies at a step.
func (k *killer) kill(at string, args ...string) {
	k.t.Helper()
	if out, status := k.start(at, args...); !status.Signaled() || status.Signal() != syscall.SIGKILL {
		k.t.Fatalf("%s did not die at %s: exit code %d\n%s", strings.Join(args, " "), at, status.ExitStatus(), out)
	}
	k.positions = append(k.positions, at)
}

var stepLine = regexp.MustCompile(`(?m)P00\s+(?:INFO|DETAIL|DEBUG): ([a-z-]+): ([a-z]+)(?::|$)`)

// steps runs a command to its end and returns the steps that it named, each once.
func (k *killer) steps(args ...string) []string {
	k.t.Helper()
	var steps []string
	for _, m := range stepLine.FindAllStringSubmatch(k.ours(append(args, "--log-level-console=debug", "--log-level-stderr=off")...), -1) {
		if step := m[1] + ":" + m[2]; m[1] == args[0] && !slices.Contains(steps, step) {
			steps = append(steps, step)
		}
	}
	if len(steps) < 2 {
		k.t.Fatalf("%s names only the steps %v", args[0], steps)
	}
	return steps
}

// restored are the files of a backup, restored into an empty directory.
func (k *killer) restored(label string) map[string]string {
	k.t.Helper()
	dir, spaces := k.dirFor("r-"+label), k.dirFor("rs-"+label)
	k.ours("restore", "--set="+label, "--pg1-path="+dir, "--tablespace-map-all="+spaces, "--type=none")
	files := k.tree(dir, spaces)
	k.remove(dir, spaces)
	return files
}

func (k *killer) remove(dirs ...string) {
	k.t.Helper()
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			k.t.Fatal(err)
		}
	}
}

// finished are the labels of the backups that exist, oldest first.
func (k *killer) finished() []string {
	return slices.DeleteFunc(k.labels(), func(label string) bool {
		_, err := os.Stat(filepath.Join(k.repo, "backup", stanza, label, "backup.manifest"))
		return err != nil
	})
}

// newest is the label of the latest backup, whose files are remembered.
func (k *killer) newest() string {
	k.t.Helper()
	labels := k.finished()
	label := labels[len(labels)-1]
	if k.was[label] == nil {
		k.was[label] = k.restored(label)
	}
	return label
}

// unharmed: what was restorable is, and every object of the repository is right. Between a manifest and its line in
// backup.info, verify names the backup that has one without the other, and nothing else.
func (k *killer) unharmed(at string, labels ...string) {
	k.t.Helper()
	for _, label := range labels {
		if got := k.restored(label); !maps.Equal(got, k.was[label]) {
			k.t.Errorf("after a kill at %s backup %s is not what it was", at, label)
		}
	}
	if out, status := k.start("", "verify"); status.ExitStatus() != 0 && !(strings.HasSuffix(at, ":catalogue") &&
		strings.Contains(out, "/backup.manifest: ") && strings.Contains(out, "[103]: 1 finding(s)")) {
		k.t.Errorf("verify after a kill at %s: %d\n%s", at, status.ExitStatus(), out)
	}
}

// TestKilledBackup kills a full and an incremental backup with bundles and block maps at every step.
func TestKilledBackup(t *testing.T) {
	t.Parallel()
	k := newKiller(t)
	k.ours("stanza-create")
	k.archiveWith(fmt.Sprintf("%s --config=%s --stanza=%s archive-push %%p", k.name, k.conf, stanza))
	k.fill()
	for _, typ := range []string{"full", "incr"} {
		for i, step := range k.steps("backup", "--type="+typ) {
			before := k.finished()
			var restore []string // verify reads every backup; every second time one is restored besides
			if i%2 == 1 {
				restore = []string{k.newest()}
			}
			k.c.Exec(t, fmt.Sprintf("update big set pad = '%s%d' where id %% 1000 = %d", typ, i, i), "checkpoint")
			k.kill(step, "backup", "--type="+typ)
			for end := time.Now().Add(20 * time.Second); k.c.QueryInt(t, "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()") != 0; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(end) { // the backup mode ends with the session that began it
					t.Fatalf("after a kill at %s PostgreSQL is in backup mode", step)
				}
			}
			k.unharmed(step, restore...)
			k.ours("backup", "--type="+typ)
			if after := k.finished(); len(after) <= len(before) || !slices.Equal(after[:len(before)], before) {
				t.Errorf("the backup after a kill at %s left nothing", step)
			}
		}
	}
	// Expiry removes one full backup and its WAL each time, killed at every step.
	fulls := 0
	for _, label := range k.finished() {
		if strings.HasSuffix(label, "F") {
			fulls++
		}
	}
	expire := func(keep int) []string { return []string{"expire", fmt.Sprintf("--repo1-retention-full=%d", keep)} }
	fulls--
	for _, step := range k.steps(expire(fulls)...) {
		fulls--
		oldest, newest := k.finished()[0], k.newest()
		k.kill(step, expire(fulls)...)
		k.unharmed(step, newest)
		k.ours(expire(fulls)...)
		if left := k.labels(); left[0] == oldest || !slices.Equal(left, k.finished()) {
			t.Errorf("the expiry after a kill at %s left %v", step, left)
		}
	}
	k.newest()
	k.unharmed("the end", slices.DeleteFunc(k.finished(), func(label string) bool { return k.was[label] == nil })...)
	k.report(18)
}

// report prints how many positions were tried.
func (k *killer) report(least int) {
	k.t.Helper()
	k.t.Logf("killed at %s", strings.Join(k.positions, " "))
	tally.Count(k.t, "positions at which the process was killed", len(k.positions))
	if len(k.positions) < least {
		k.t.Errorf("only %d positions", len(k.positions))
	}
}

// TestKilledRestore kills a restore at every step, into an empty directory and over a changed one: PostgreSQL must not start
// on what is left, and a restore with --delta must complete it, file by file.
func TestKilledRestore(t *testing.T) {
	t.Parallel()
	k := newKiller(t)
	k.ours("stanza-create")
	k.archiveWith(fmt.Sprintf("%s --config=%s --stanza=%s archive-push %%p", k.name, k.conf, stanza))
	k.fill()
	k.ours("backup", "--type=full")
	k.c.Exec(t, "update big set pad = 'new' where id % 1000 = 0", "checkpoint")
	k.ours("backup")
	label := k.newest()
	dir, spaces := k.dirFor("data"), k.dirFor("spaces")
	restore := []string{"restore", "--set=" + label, "--pg1-path=" + dir, "--tablespace-map-all=" + spaces, "--type=immediate", "--target-action=promote", "--archive-mode=off"}
	delta := append(slices.Clone(restore), "--delta")
	// What one that was not killed leaves.
	fresh := k.steps(restore...)
	want := k.replaced(dir, spaces)
	over := k.steps(delta...)
	for mode, steps := range map[string][]string{"fresh": fresh, "over": over} {
		for _, step := range steps {
			command := delta
			if mode == "fresh" {
				k.remove(dir, spaces)
				k.dirFor("data")
				k.dirFor("spaces")
				command = restore
			} else {
				k.spoil(dir)
			}
			k.kill(step, command...)
			if untouched := mode == "over" && step == "restore:directories"; !untouched {
				k.unusable(mode+": "+step, dir)
			}
			k.ours(delta...)
			k.sameTrees(want, k.replaced(dir, spaces))
		}
	}
	k.start2(dir)
	k.report(9)
}

// replaced are the files of a restore but the one that tells how it was called, and when.
func (k *killer) replaced(dirs ...string) map[string]string {
	k.t.Helper()
	files := k.tree(dirs...)
	delete(files, "0/postgresql.auto.conf")
	return files
}

// unusable: PostgreSQL does not start on what a killed restore left.
func (k *killer) unusable(at, dir string) {
	k.t.Helper()
	if _, err := os.Stat(filepath.Join(dir, "global/pg_control")); err == nil {
		k.t.Errorf("after a kill at %s there is a pg_control", at)
	}
	s := k.server2(dir)
	s.opts.Timeout = 10 * time.Second
	if err := pg.Start(k.t.Context(), s.opts); err == nil {
		s.stop(k.t, "immediate")
		k.t.Errorf("after a kill at %s PostgreSQL starts", at)
	}
}

// spoil changes, adds and removes files of a data directory.
func (k *killer) spoil(dir string) {
	k.t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "base/5/1*"))
	if err != nil || len(files) < 30 {
		k.t.Fatalf("%d files: %v", len(files), err)
	}
	for i, f := range files[:30] {
		switch i % 3 {
		case 0:
			err = os.Truncate(f, 100)
		case 1:
			err = os.Remove(f)
		default:
			err = os.WriteFile(f+"x", []byte("foreign"), 0o600)
		}
		if err != nil {
			k.t.Fatal(err)
		}
	}
}

// start2 starts PostgreSQL on a restored directory and looks for the last change.
func (k *killer) start2(dir string) {
	k.t.Helper()
	if n := queryInt(k.t, k.rig.start(dir), "select count(*) from big where pad = 'new'"); n != 30 {
		k.t.Errorf("%d rows have the last change, not 30", n)
	}
}

// TestKilledArchiving kills archive-push and archive-get, and the background process that does their work with archive-async,
// at every step; and stanza-create before that.
func TestKilledArchiving(t *testing.T) {
	t.Parallel()
	k := newKiller(t)
	create := []string{"stanza-create"}
	for _, step := range []string{"stanza-create:look", "stanza-create:write"} {
		k.kill(step, create...)
		k.ours(create...)
		k.remove(k.repo)
	}
	k.ours(create...)
	spool := filepath.Join(k.dir, "spool")
	async := []string{"--archive-async"}
	dest := filepath.Join(k.dirFor("got"), "RECOVERYXLOG")
	for _, mode := range []struct {
		name string
		more []string
		out  func(step string, args ...string)
	}{
		{"sync", nil, func(step string, args ...string) { k.kill(step, args...) }},
		// The background process dies. The one in front says that it waited, or does the work itself and dies likewise.
		{"async", async, func(step string, args ...string) {
			out, status := k.start(step, append(args, "--archive-timeout=1")...)
			if status.ExitStatus() != 82 && !status.Signaled() {
				t.Fatalf("%s with a killed background process: %d\n%s", strings.Join(args, " "), status.ExitStatus(), out)
			}
			k.positions = append(k.positions, "async-"+step)
		}},
	} {
		push := func(segment string) []string {
			return append([]string{"archive-push", filepath.Join(k.c.DataDir(), "pg_wal", segment)}, mode.more...)
		}
		get := func(segment string) []string {
			return append([]string{"archive-get", segment, dest}, mode.more...)
		}
		segment := k.segment()
		for _, step := range k.steps2("archive-push", mode.name, push(segment)) {
			segment = k.segment()
			mode.out(step, push(segment)...)
			k.ours(push(segment)...)
			k.ours(push(segment)...) // PostgreSQL asks again after a crash
			k.got(segment, dest)
		}
		for _, step := range k.steps2("archive-get", mode.name, get(segment)) {
			k.remove(spool, dest)
			mode.out(step, get(segment)...)
			if _, err := os.Stat(dest); err == nil {
				t.Errorf("%s: something was delivered at %s", mode.name, step)
			}
			k.ours(get(segment)...)
			k.same(segment, dest)
		}
	}
	k.ours("verify")
	k.report(10)
}

// steps2 are the steps of a command of the archive. Those of a background process are the same.
func (k *killer) steps2(verb, mode string, args []string) []string {
	k.t.Helper()
	if mode == "async" {
		k.ours(args...)
		return map[string][]string{"archive-push": {"archive-push:store", "archive-push:stored"}, "archive-get": {"archive-get:fetch", "archive-get:place"}}[verb]
	}
	return k.steps(args...)
}

// segment is a complete segment that waits to be archived.
func (k *killer) segment() string {
	k.t.Helper()
	k.c.Exec(k.t, "create table if not exists filler (t text)", "insert into filler select md5(g::text) from generate_series(1, 500) g")
	return k.c.QueryString(k.t, "select pg_walfile_name(pg_switch_wal())")
}

// got fetches a segment without the spool and compares.
func (k *killer) got(segment, dest string) {
	k.t.Helper()
	k.ours("archive-get", segment, dest)
	k.same(segment, dest)
}

// same: the delivered file is the segment.
func (k *killer) same(segment, dest string) {
	k.t.Helper()
	got, err := os.ReadFile(dest)
	if err != nil {
		k.t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(k.c.DataDir(), "pg_wal", segment))
	if err != nil {
		k.t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		k.t.Errorf("%s was delivered changed", segment)
	}
}
